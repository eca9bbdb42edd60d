"""Kept streams from a client to peers: one each, shared by all of the client's sessions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from routing.domain import PeerId, short
from routing.errors import PeerTimeout, PeerUnreachable, SwarmError, WireError
from routing.handshake import HANDSHAKE_SECONDS, dial
from routing.streams import MessageStream
from routing.transport import Transport
from routing.wire import Fault, Message, Ping, Pong, session_of

Inbox = asyncio.Queue[tuple[PeerId, Message | SwarmError]]
"""What peers say about one session; an error means that the peer will say nothing more."""


class Link:
    """A greeted stream to one peer, with a task that sorts what comes in by session."""

    def __init__(self, stream: MessageStream) -> None:
        self.stream = stream
        self.peer = stream.remote
        self._inboxes: dict[bytes, Inbox] = {}
        self._pongs: dict[int, asyncio.Future[Pong]] = {}
        self._next_nonce = 1
        self._error: SwarmError | None = None
        self._reader = asyncio.create_task(self._read(), name=f"link to {short(self.peer)}")

    @property
    def is_open(self) -> bool:
        """Is the peer still there, as far as we know?"""
        return self._error is None and self.stream.is_open

    def subscribe(self, session: bytes, inbox: Inbox) -> None:
        """From now on what the peer says about a session goes to ``inbox``."""
        self._inboxes[session] = inbox
        if self._error is not None:
            inbox.put_nowait((self.peer, self._error))

    def unsubscribe(self, session: bytes) -> None:
        """What else comes about the session is dropped."""
        self._inboxes.pop(session, None)

    async def ping(self, timeout_seconds: float = HANDSHAKE_SECONDS) -> tuple[Pong, float]:
        """The peer's Pong, and the seconds that it took.

        Raises:
            PeerTimeout, PeerUnreachable: it gives none.
        """
        loop = asyncio.get_running_loop()
        nonce = self._next_nonce
        self._next_nonce += 1
        answer = self._pongs[nonce] = loop.create_future()
        began = loop.time()
        try:
            self.stream.send(Ping(nonce))
            async with asyncio.timeout(timeout_seconds):
                return await answer, loop.time() - began
        except TimeoutError:
            raise PeerTimeout(self.peer, f"no answer within {timeout_seconds:.0f} s") from None
        finally:
            self._pongs.pop(nonce, None)

    async def close(self) -> None:
        """Say goodbye and end the stream."""
        self._reader.cancel()
        await asyncio.wait([self._reader])
        await self.stream.close()

    async def _read(self) -> None:
        try:
            while True:
                message = await self.stream.receive()
                if isinstance(message, Pong):
                    pong = self._pongs.get(message.nonce)
                    if pong is not None and not pong.done():
                        pong.set_result(message)
                    continue
                session = session_of(message)
                if isinstance(message, Fault) and not session:
                    raise WireError(f"it ended the stream: {message.text}")
                if (inbox := self._inboxes.get(session)) is not None:
                    inbox.put_nowait((self.peer, message))
        except (PeerUnreachable, WireError) as error:
            self._error = error
            for inbox in self._inboxes.values():
                inbox.put_nowait((self.peer, error))
            for pong in self._pongs.values():
                if not pong.done():
                    pong.set_exception(PeerUnreachable(self.peer, "the connection was lost"))


class Links:
    """The links of one client, made when they are first wanted."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._links: dict[PeerId, Link] = {}
        self._locks: dict[PeerId, asyncio.Lock] = {}

    async def get(self, peer: PeerId, addresses: Sequence[str], timeout_seconds: float = HANDSHAKE_SECONDS) -> Link:
        """The open link to a peer.

        Raises:
            PeerError, WireError, NotAuthorized: there is none to be had.
        """
        async with self._locks.setdefault(peer, asyncio.Lock()):
            link = self._links.get(peer)
            if link is None or not link.is_open:
                if link is not None:
                    await link.close()
                    del self._links[peer]
                link = self._links[peer] = Link(await dial(self._transport, peer, addresses, timeout_seconds))
            return link

    @property
    def num_bytes(self) -> int:
        """Sent and received over all links."""
        return sum(link.stream.num_bytes_sent + link.stream.num_bytes_received for link in self._links.values())

    async def close(self) -> None:
        """End every link."""
        with contextlib.suppress(TimeoutError):
            await asyncio.gather(*(link.close() for link in self._links.values()))
