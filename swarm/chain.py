"""A session's hops, opened: waves go down, answers come up."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

from routing.domain import Hop, PeerId, Route, SamplingParams, SessionId, short
from routing.errors import PeerBusy, PeerError, PeerRefused, PeerTimeout, PeerUnreachable, PeerUntrusted, SwarmError
from routing.links import Link, Links
from routing.messages import Busy, Close, Done, Fault, Message, Opened, Timing, Verdict, Wave
from routing.wire import open_message
from swarm.session import Prefilled, RouteLost, SendWave, Verified

MAX_INBOX = 64
"""Messages that a session may have waiting; honest hops never say so much unasked."""
OPEN_SECONDS = 30.0
ANSWER_SECONDS = 60.0
QUIET_SECONDS = 5.0


class Inbox:
    """What the hops of one session say, until it is read. What nobody asked for does not pile up."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[PeerId, Message | PeerError]] = asyncio.Queue()

    def put(self, peer: PeerId, message: Message | PeerError) -> None:
        """Take a message; of more than anybody should say only the last place is taken, by an error."""
        if self._queue.qsize() < MAX_INBOX:
            self._queue.put_nowait((peer, message))
        elif self._queue.qsize() == MAX_INBOX:
            self._queue.put_nowait((peer, PeerUntrusted(peer, "it talks on and on, unasked")))

    async def get(self) -> tuple[PeerId, Message | PeerError]:
        """The next message; an error means that its peer will say nothing more."""
        return await self._queue.get()


class Chain:
    """An open session on one route. Made by ``open``, ended by ``close``."""

    def __init__(self, session: SessionId, route: Route, links: list[Link], inbox: Inbox, num_kv_tokens: int) -> None:
        self.route = route
        self.num_kv_tokens = num_kv_tokens
        self.timings: tuple[Timing, ...] = ()
        self._session = session
        self._links = links
        self._inbox = inbox

    @classmethod
    async def open(cls, links: Links, model: str, route: Route, num_kv_tokens: int, params: SamplingParams) -> Chain:
        """Open a session at every hop at once.

        Raises:
            PeerBusy: a hop has no room; nothing is left open.
            PeerError: a hop can't or does not want to.
        """
        session = SessionId(secrets.token_bytes(16))
        inbox = Inbox()
        dialled = await asyncio.gather(
            *(links.get(hop.peer, hop.addresses) for hop in route.hops), return_exceptions=True
        )
        for result in dialled:
            if isinstance(result, BaseException):
                raise result
        hops = [link for link in dialled if isinstance(link, Link)]
        chain = cls(session, route, hops, inbox, num_kv_tokens)
        try:
            for index, link in enumerate(hops):
                link.subscribe(session, inbox.put)
                link.send(open_message(session, 0, model, index, route, num_kv_tokens, params))
            await chain._wait_until_opened()
        except BaseException:
            chain.close()
            raise
        return chain

    def send(self, wave: SendWave) -> None:
        """Send a wave to the first hop.

        Raises:
            PeerUnreachable: the first hop is gone.
        """
        nodes = tuple((node.id, node.parent, node.token) for node in wave.nodes)
        self._links[0].send(Wave(self._session, 0, wave.wave, wave.commit, wave.start, nodes))

    async def answer(self) -> Prefilled | Verified | RouteLost:
        """What the hops say next. When none has said anything for a while, each is asked whether it is there."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + ANSWER_SECONDS
        while clock() < deadline:
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    peer, message = await self._inbox.get()
            except TimeoutError:
                if (silent := await self._silent_hop()) is not None:
                    return RouteLost(f"{silent} does not answer any more")
                continue
            if (event := self._event(peer, message)) is not None:
                return event
        return RouteLost(f"no answer within {ANSWER_SECONDS:.0f} s: a hop of {self.route} hangs")

    def _event(self, peer: PeerId, message: Message | SwarmError) -> Prefilled | Verified | RouteLost | None:
        """What a message means for the session; None if it is not this hop's to say."""
        hop = self._hop(peer)
        match message:
            case PeerError():
                return RouteLost(f"{hop} was lost: {message.reason}")
            case SwarmError():
                return RouteLost(f"{hop} was lost: {message}")
            case Fault():
                return RouteLost(f"{hop} can't go on: {message.text}")
            case Verdict() if peer == self.route.hops[-1].peer:
                self.timings = message.timings
                return Verified(message.wave, message.path, message.next_token)
            case Done() if peer == self.route.hops[-1].peer:
                return Prefilled(message.wave)
            case _:
                return None

    async def _silent_hop(self) -> str | None:
        """The first hop that does not answer a ping, or None."""
        pings = await asyncio.gather(*(link.ping(QUIET_SECONDS) for link in self._links), return_exceptions=True)
        silent = [link.peer for link, ping in zip(self._links, pings, strict=True) if isinstance(ping, PeerError)]
        return self._hop(silent[0]) if silent else None

    def close(self) -> None:
        """Free the session at every hop."""
        for link in self._links:
            link.unsubscribe(self._session)
            with contextlib.suppress(PeerUnreachable):
                link.send(Close(self._session))

    async def _wait_until_opened(self) -> None:
        waiting = {link.peer for link in self._links}
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                while waiting:
                    peer, message = await self._inbox.get()
                    match message:
                        case Opened():
                            waiting.discard(peer)
                        case Busy():
                            raise PeerBusy(peer, message.retry_after_seconds)
                        case Fault():
                            raise PeerRefused(peer, message.text)
                        case SwarmError():
                            raise message
                        case _:
                            continue
        except TimeoutError:
            silent = min(waiting)
            raise PeerTimeout(silent, f"did not open the session within {OPEN_SECONDS:.0f} s") from None

    def _hop(self, peer: PeerId) -> str:
        hop: Hop = next(hop for hop in self.route.hops if hop.peer == peer)
        return f"the peer {short(peer)} with the blocks {hop.span}"
