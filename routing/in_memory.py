"""Transport and directory inside one process: the same streams and bytes, no sockets.

Tests and simulations run whole swarms on it. Streams can be cut, and peers can fall silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from routing.domain import ModelId, PeerId, PeerRecord, PeerState
from routing.errors import PeerUnreachable
from routing.identity import Identity
from routing.records import open_record, sign_record
from routing.streams import MessageStream
from routing.transport import StreamHandler


class MemoryNetwork:
    """All the peers that can reach each other, and the records that they share.

    Args:
        delay_seconds: one way, on every link.
    """

    def __init__(self, delay_seconds: float = 0.0) -> None:
        self.delay_seconds = delay_seconds
        self.transports: dict[PeerId, MemoryTransport] = {}
        self.records: dict[tuple[str, PeerId], bytes] = {}

    def join(self, identity: Identity) -> MemoryTransport:
        """A transport for one more peer."""
        transport = MemoryTransport(self, identity.peer_id)
        self.transports[identity.peer_id] = transport
        return transport

    def directory(self, identity: Identity) -> MemoryDirectory:
        """The shared directory, as one peer sees it."""
        return MemoryDirectory(self, identity)


class MemoryTransport:
    """See ``routing.transport.Transport``."""

    def __init__(self, network: MemoryNetwork, peer_id: PeerId) -> None:
        self._network = network
        self._peer_id = peer_id
        self._handler: StreamHandler | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._pipes: list[_Pipe] = []

    @property
    def peer_id(self) -> PeerId:
        """Our own id."""
        return self._peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        """There is only one place: this process."""
        return ("/memory/0",)

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> MessageStream:
        """Open a stream; the caller closes it.

        Raises:
            PeerUnreachable: no such peer is here.
        """
        del addresses
        remote = self._network.transports.get(peer)
        if remote is None or remote._handler is None:
            raise PeerUnreachable(peer, "nobody is there")
        there, back = _Pipe(), _Pipe()
        for transport in (self, remote):
            transport._pipes += [there, back]
        delay = self._network.delay_seconds
        stream = MessageStream(peer, back.reader, there, delay_seconds=delay)
        remote._accept(MessageStream(self._peer_id, there.reader, back, delay_seconds=delay))
        return stream

    async def serve(self, handler: StreamHandler) -> None:
        """From now on give every stream that others open to ``handler``."""
        self._handler = handler

    async def close(self) -> None:
        """End every stream and stop."""
        self.vanish()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def vanish(self) -> None:
        """Be gone, as a killed process is: every stream ends, without a word."""
        self._network.transports.pop(self._peer_id, None)
        for pipe in self._pipes:
            pipe.close()

    def fall_silent(self) -> None:
        """Be as a stopped process is: streams stay open, and nothing comes out of them any more."""
        for pipe in self._pipes:
            pipe.is_silent = True

    def _accept(self, stream: MessageStream) -> None:
        task = asyncio.create_task(self._serve(stream), name=f"stream from {stream.remote[-6:]}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, stream: MessageStream) -> None:
        assert self._handler is not None  # noqa: S101
        try:
            await self._handler(stream)
        finally:
            await stream.close()


class _Pipe:
    """One direction of a stream: what is written can be read."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader()
        self.is_silent = False
        self._is_closed = False

    def write(self, data: bytes) -> None:
        if self._is_closed:
            raise ConnectionResetError("the pipe is closed")
        if not self.is_silent:
            self.reader.feed_data(data)

    async def drain(self) -> None:
        await asyncio.sleep(0)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.reader.feed_eof()

    async def wait_closed(self) -> None:
        await asyncio.sleep(0)


class MemoryDirectory:
    """See ``routing.transport.Directory``."""

    def __init__(self, network: MemoryNetwork, identity: Identity) -> None:
        self._network = network
        self._identity = identity

    async def publish(self, record: PeerRecord) -> None:
        """Sign and store our own record."""
        self._network.records[record.model.name, record.peer] = sign_record(self._identity, record)

    async def lookup(self, name: str) -> list[PeerRecord]:
        """The records of every peer that serves a model of this name; this directory's records never expire."""
        records = [open_record(data) for (model, _), data in self._network.records.items() if model == name]
        return [record for record in records if record.state is not PeerState.GONE]

    async def models(self) -> set[ModelId]:
        """Every model that a peer of this swarm serves."""
        records = map(open_record, self._network.records.values())
        return {record.model for record in records if record.state is not PeerState.GONE}
