"""Kept streams to peers, for clients and for hops: one to each peer, shared by all sessions that lead there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from routing.domain import PeerId, short
from routing.errors import PeerError, PeerTimeout, PeerUnreachable, PeerUntrusted, WireError
from routing.handshake import HANDSHAKE_SECONDS, dial
from routing.messages import Busy, Done, Fault, Grant, Message, Opened, Ping, Pong, Stale, Unknown, Verdict
from routing.reserved import Handover, Leaving
from routing.streams import MessageStream
from routing.transport import Transport
from routing.wire import session_of

HEARTBEAT_SECONDS = 15.0
SILENCE_SECONDS = 10.0

Listener = Callable[[PeerId, Message | PeerError], None]
"""Hears what a peer says about one session; an error means that the peer will say nothing more."""


class Link:
    """A greeted stream to one peer. A task sorts what comes in by session, another asks whether the peer is there.

    Attributes:
        peer: who is at the other end.
        rtt_seconds: of a round trip, smoothed; None until one was made.
    """

    def __init__(self, stream: MessageStream) -> None:
        self.peer = stream.remote
        self.rtt_seconds: float | None = None
        self._stream = stream
        self._listeners: dict[bytes, Listener] = {}
        self._pongs: dict[int, asyncio.Future[Pong]] = {}
        self._next_nonce = 1
        self._error: PeerError | None = None
        self._tasks = [
            asyncio.create_task(self._read(), name=f"link to {short(self.peer)}"),
            asyncio.create_task(self._beat(), name=f"heartbeat of {short(self.peer)}"),
        ]

    @property
    def is_open(self) -> bool:
        """Is the peer still there, as far as we know?"""
        return self._error is None and self._stream.is_open

    @property
    def num_bytes(self) -> int:
        """Sent and received."""
        return self._stream.num_bytes_sent + self._stream.num_bytes_received

    def send(self, message: Message) -> None:
        """Queue a message.

        Raises:
            PeerUnreachable: the peer is gone.
            WireError: the message is too large.
        """
        self._stream.send(message)

    def subscribe(self, session: bytes, listener: Listener) -> None:
        """From now on ``listener`` hears what the peer says about a session; at once, if it is gone already.

        Who subscribes to ``b""`` hears about every session that nobody else listens to.
        """
        self._listeners[session] = listener
        if self._error is not None:
            listener(self.peer, self._error)

    def unsubscribe(self, session: bytes) -> None:
        """What else comes about the session is dropped."""
        self._listeners.pop(session, None)

    async def ping(self, timeout_seconds: float = HANDSHAKE_SECONDS) -> tuple[Pong, float]:
        """The peer's Pong, and the seconds that it took.

        Raises:
            PeerError: it gives none.
        """
        loop = asyncio.get_running_loop()
        nonce = self._next_nonce
        self._next_nonce += 1
        answer = self._pongs[nonce] = loop.create_future()
        began = loop.time()
        try:
            self._stream.send(Ping(nonce))
            async with asyncio.timeout(timeout_seconds):
                pong = await answer
        except TimeoutError:
            raise PeerTimeout(self.peer, f"no answer within {timeout_seconds:.0f} s") from None
        finally:
            self._pongs.pop(nonce, None)
        seconds = loop.time() - began
        self.rtt_seconds = seconds if self.rtt_seconds is None else 0.75 * self.rtt_seconds + 0.25 * seconds
        return pong, seconds

    async def close(self) -> None:
        """Say goodbye and end the stream."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self._stream.close()

    async def _read(self) -> None:
        try:
            while True:
                self._hear(await self._stream.receive())
        except PeerUnreachable as error:
            self._end(error)
        except WireError as error:
            self._end(PeerUntrusted(self.peer, str(error)))

    def _hear(self, message: Message) -> None:
        """Give a message to whom it is for.

        Raises:
            WireError: a peer that we dialled has no reason to say this.
        """
        match message:
            case Pong():
                waiting = self._pongs.get(message.nonce)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
            case Fault() if not message.session:
                raise WireError(f"it ended the stream: {message.text}")
            case Opened() | Busy() | Verdict() | Done() | Stale() | Fault() | Grant() | Handover():
                listener = self._listeners.get(session_of(message), self._listeners.get(b""))
                if listener is not None:
                    listener(self.peer, message)
            case Ping():
                self._stream.send(Pong(message.nonce, "", 0, 0, 0, 0))  # nothing is served at this end
            case Leaving():
                return  # nothing hangs on it yet: who is gone is noticed
            case Unknown():
                text = f"messages of kind {message.kind} are not in this version"
                self._stream.send(Fault("unsupported", text, message.session))
            case _:
                raise WireError(f"{type(message).__name__} from a peer that was dialled")

    async def _beat(self) -> None:
        """While somebody listens, ask now and then; who does not answer is gone, whatever the transport says."""
        clock = asyncio.get_running_loop().time
        while self._error is None:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            if not self._listeners:
                continue
            began = clock()
            try:
                await self.ping(SILENCE_SECONDS)
            except PeerTimeout:
                if clock() - began < 2 * SILENCE_SECONDS:  # else it was this machine that slept
                    self._end(PeerUnreachable(self.peer, "it does not answer any more"))
            except PeerError as error:
                self._end(error)

    def _end(self, error: PeerError) -> None:
        if self._error is not None:
            return
        self._error = error
        for pong in self._pongs.values():
            if not pong.done():
                pong.set_exception(error)
        for listener in list(self._listeners.values()):
            listener(self.peer, error)


class Links:
    """The links of one client or peer, made when they are first wanted."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._links: dict[PeerId, Link] = {}
        self._dialling: dict[PeerId, asyncio.Lock] = {}

    @property
    def num_bytes(self) -> int:
        """Sent and received over all links that are kept."""
        return sum(link.num_bytes for link in self._links.values())

    async def get(self, peer: PeerId, addresses: Sequence[str], timeout_seconds: float = HANDSHAKE_SECONDS) -> Link:
        """The open link to a peer.

        Raises:
            PeerError: there is none to be had.
        """
        async with self._dialling.setdefault(peer, asyncio.Lock()):
            try:
                return await self._open(peer, addresses, timeout_seconds)
            finally:
                if peer not in self._links:
                    self._dialling.pop(peer, None)  # strangers can name any number of peers

    async def _open(self, peer: PeerId, addresses: Sequence[str], timeout_seconds: float) -> Link:
        link = self._links.get(peer)
        if link is not None and link.is_open:
            return link
        if link is not None:
            del self._links[peer]
            await link.close()
        stream = await dial(self._transport, peer, addresses, timeout_seconds)
        if (link := self._links.get(peer)) is not None and link.is_open:  # somebody else was as fast
            await stream.close()
            return link
        link = self._links[peer] = Link(stream)
        return link

    async def close(self) -> None:
        """End every link."""
        with contextlib.suppress(TimeoutError):
            await asyncio.gather(*(link.close() for link in self._links.values()))
