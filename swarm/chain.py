"""A session's hops, opened: waves go down, answers come up."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator

from routing.domain import Hop, PeerId, Route, SamplingParams, SessionId, short
from routing.errors import PeerBusy, PeerError, PeerRefused, PeerTimeout, PeerUnreachable, PeerUntrusted
from routing.links import Link, Links
from routing.messages import Busy, Cancel, Close, Done, Fault, Grant, Message, Opened, Stale, Timing, Verdict, Wave
from routing.wire import open_message
from swarm.patience import Patience
from swarm.session_events import CancelWaves, Dropped, Event, Prefilled, RouteLost, SendWave, Verified

MAX_INBOX = 64
"""Messages that a session may have waiting; honest hops never say so much unasked."""
EPOCH = 0
"""Sessions do not change their route yet."""
OPEN_SECONDS = 30.0
QUIET_SECONDS = 5.0


Item = tuple[PeerId, Message | PeerError] | Event
"""What lies in an inbox: what a peer says, or an event from this side. An error is the last that a peer says."""


class Inbox:
    """The one queue of a conversation: answers, drafts, stops, losses. What nobody asked for does not pile up."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Item] = asyncio.Queue()

    def hear(self, peer: PeerId, message: Message | PeerError) -> None:
        """Take what a peer says; of more than anybody should say only the last place is taken, by an error."""
        if isinstance(message, Grant):
            return  # four waves of token ids are always within the first grant
        if self._queue.qsize() < MAX_INBOX or isinstance(message, PeerError):
            self._queue.put_nowait((peer, message))
        elif self._queue.qsize() == MAX_INBOX:
            self._queue.put_nowait((peer, PeerUntrusted(peer, "it talks on and on, unasked")))

    def put(self, event: Event) -> None:
        """An event from this side."""
        self._queue.put_nowait(event)

    async def get(self) -> Item:
        """The next one."""
        return await self._queue.get()

    def get_nowait(self) -> Item | None:
        """The next one that is there, or None."""
        return None if self._queue.empty() else self._queue.get_nowait()


class Chain:
    """An open session on one route. Made by ``open``, ended by ``close``."""

    def __init__(self, session: SessionId, route: Route, links: list[Link], inbox: Inbox, num_kv_tokens: int) -> None:
        self.route = route
        self.num_kv_tokens = num_kv_tokens
        self.timings: tuple[Timing, ...] = ()
        self._session = session
        self._links = links
        self.inbox = inbox

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
                link.subscribe(session, inbox.hear)
                link.send(open_message(session, EPOCH, model, index, route, num_kv_tokens, params))
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
        self._links[0].send(Wave(self._session, EPOCH, wave.wave, wave.commit, wave.start, nodes, rewind=wave.rewind))

    def cancel(self, cancel: CancelWaves) -> None:
        """Tell every hop that some waves are not wanted any more."""
        for link in self._links:
            with contextlib.suppress(PeerUnreachable):  # its end is in the inbox
                link.send(Cancel(self._session, EPOCH, cancel.first, cancel.last))

    async def event(self, num_rows: int) -> Event:
        """What happens next. When nothing has for a while, each hop is asked whether it is there.

        Args:
            num_rows: nodes of all waves under way.
        """
        clock = asyncio.get_running_loop().time
        patience = Patience.for_rows(num_rows)
        while not patience.is_over:
            began = clock()
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    item = await self.inbox.get()
            except TimeoutError:
                if not patience.waited(QUIET_SECONDS, clock() - began):
                    continue
                began = clock()
                silent = await self._silent_hop()
                if patience.waited(QUIET_SECONDS, clock() - began) and silent is not None:
                    return RouteLost(f"{silent} does not answer any more")
                continue
            if (event := self._event(item)) is not None:
                return event
        return RouteLost(f"no answer within {patience.seconds:.0f} s: a hop of {self.route} hangs")

    def events_so_far(self) -> Iterator[Event]:
        """What has happened already."""
        while (item := self.inbox.get_nowait()) is not None:
            if (event := self._event(item)) is not None:
                yield event

    def _event(self, item: Item) -> Event | None:
        """What a message means for the session; None if it is not this hop's to say."""
        if not isinstance(item, tuple):
            return item
        peer, message = item
        hop, is_last = self._hop(peer), peer == self.route.hops[-1].peer
        match message:
            case PeerError():
                return RouteLost(f"{hop} was lost: {message.reason}")
            case Fault():
                return RouteLost(f"{hop} can't go on: {message.text}", message.epoch)
            case Verdict() if is_last:
                self.timings = message.timings
                return Verified(message.wave, message.path, message.next_token, message.epoch)
            case Done() if is_last:
                return Prefilled(message.wave, message.epoch)
            case Stale() if is_last:
                return Dropped(message.wave, message.epoch)
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
        clock = asyncio.get_running_loop().time
        waiting = {link.peer for link in self._links}
        patience = Patience(OPEN_SECONDS)
        while waiting:
            began = clock()
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    item = await self.inbox.get()
            except TimeoutError:
                patience.waited(QUIET_SECONDS, clock() - began)
                if patience.is_over:
                    text = f"did not open the session within {OPEN_SECONDS:.0f} s"
                    raise PeerTimeout(min(waiting), text) from None
                continue
            match item:
                case (peer, Opened()):
                    waiting.discard(peer)
                case (peer, Busy() as busy):
                    raise PeerBusy(peer, busy.retry_after_seconds)
                case (peer, Fault() as fault):
                    raise PeerRefused(peer, fault.text)
                case (_, PeerError() as error):
                    raise error

    def _hop(self, peer: PeerId) -> str:
        hop: Hop = next(hop for hop in self.route.hops if hop.peer == peer)
        return f"the peer {short(peer)} with the blocks {hop.span}"
