"""Both seams to the network at once: a libp2p daemon, our own kept streams over it, and the directory in the DHT."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from routing.addresses import check_announce, check_listen, is_loopback, split_peer
from routing.domain import ModelId, PeerId, PeerRecord
from routing.errors import PeerUnreachable, SwarmError
from routing.identity import Identity
from routing.p2p.daemon import (
    DAEMON_ERRORS,
    DIAL_SECONDS,
    READ_LIMIT_BYTES,
    Daemon,
    check_free,
    hang_up,
    id_bytes,
    introduced,
    reason,
)
from routing.p2p.directory import DHTDirectory
from routing.records import MAX_ADDRESSES
from routing.stream_pool import StreamPool
from routing.streams import MessageStream
from routing.transport import StreamHandler

PROTOCOL = "specswarm/1"


class P2PNode:
    """Both seams, ``routing.transport.Transport`` and ``.Directory``, for one peer or client. See ``create``."""

    def __init__(
        self, daemon: Daemon, directory: DHTDirectory, peer_id: PeerId, announce: Sequence[str], delay_seconds: float
    ) -> None:
        self._daemon = daemon
        self._directory = directory
        self._peer_id = peer_id
        self._addresses = tuple(sorted(announce or daemon.addresses, key=is_loopback))[:MAX_ADDRESSES]
        self._streams = StreamPool(introduced, delay_seconds)
        self._server: asyncio.Server | None = None
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def create(
        cls,
        identity: Identity,
        *,
        listen: Sequence[str] = ("/ip4/127.0.0.1/tcp/0",),
        announce: Sequence[str] = (),
        initial_peers: Sequence[str] = (),
        delay_seconds: float = 0.0,
        client_only: bool = False,
        join_seconds: float = 10.0,
        startup_seconds: float = 60.0,
        records_bad: Callable[[], None] | None = None,
    ) -> P2PNode:
        """Start a node, and join the swarm of ``initial_peers`` if there are any. Call it in the main thread.

        Args:
            identity: whose id the node has.
            listen: multiaddrs to listen at; a client listens nowhere.
            announce: where others can dial us, if that is not where we listen.
            initial_peers: multiaddrs with ``/p2p/ID`` of peers that are there already; one that answers is enough.
            delay_seconds: hold every message on our streams back for so long, as a long line would.
            client_only: open streams, but accept none, and keep no records for others.
            join_seconds: how long to try to join.
            startup_seconds: how long the libp2p daemon may take to start.
            records_bad: called for every record that is refused.

        Raises:
            ConfigError: an address is none.
            SwarmError: the daemon did not start, or nobody answered.
        """
        listen = () if client_only else tuple(map(check_listen, listen))
        announce = tuple(map(check_announce, announce))
        peers = list(map(split_peer, initial_peers))
        for address in listen:
            check_free(address)
        daemon = await Daemon.start(identity, listen, announce, startup_seconds)
        try:
            directory = await DHTDirectory.create(identity, daemon, client_only=client_only, records_bad=records_bad)
        except BaseException:
            await daemon.stop()
            raise
        node = cls(daemon, directory, identity.peer_id, announce, delay_seconds)
        try:
            await directory.join([peer for peer in peers if peer[0] != node.peer_id], join_seconds)
        except BaseException:
            await node.close()
            raise
        return node

    @property
    def peer_id(self) -> PeerId:
        """Our own id."""
        return self._peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs where others can dial us, without the ``/p2p/`` part; a client has none."""
        return self._addresses

    @property
    def join_addresses(self) -> tuple[str, ...]:
        """What others give as ``initial_peers`` to join through us."""
        return tuple(f"{address}/p2p/{self.peer_id}" for address in self._addresses)

    @property
    def daemon_pid(self) -> int:
        """The process id of the libp2p daemon."""
        return self._daemon.pid

    async def wait_lost(self) -> None:
        """Wait until the libp2p daemon has ended, by itself or because this node was closed; nothing works then."""
        await asyncio.wait([self._daemon.ended])

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> MessageStream:
        """Open a stream; the caller closes it.

        Raises:
            PeerUnreachable: nobody answers there, or not as this peer.
        """
        try:
            await self._daemon.dial(peer, addresses)
            opening = p2pd_pb2.StreamOpenRequest(peer=id_bytes(peer), proto=[PROTOCOL], timeout=DIAL_SECONDS)
            request = p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=opening)
            return self._streams.dialled(peer, *await self._daemon.ask(request))
        except DAEMON_ERRORS as error:
            raise PeerUnreachable(peer, f"can't be dialled ({reason(error)})") from error

    async def serve(self, handler: StreamHandler) -> None:
        """From now on give every stream that others open to ``handler``.

        Raises:
            SwarmError: the libp2p daemon has ended.
        """
        self._streams.handler = handler
        if self._server is not None:
            return
        path = self._daemon.folder / "in.sock"
        self._server = await asyncio.start_unix_server(self._streams.accept, path, limit=READ_LIMIT_BYTES)
        address = Multiaddr(f"/unix{path}").to_bytes()
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.STREAM_HANDLER,
            streamHandler=p2pd_pb2.StreamHandlerRequest(addr=address, proto=[PROTOCOL], balanced=False),
        )
        try:
            _, writer = await self._daemon.ask(request)
        except DAEMON_ERRORS as error:
            raise SwarmError(f"can't accept streams: {reason(error)}") from error
        await hang_up(writer)

    async def publish(self, record: PeerRecord) -> None:
        """Sign and store our own record, in the place of the one before; its expiry must be later than that one's.

        Raises:
            SwarmError: nobody took it.
            ConfigError: others would refuse it.
            ValueError: it is another peer's.
        """
        await self._directory.publish(record)

    async def lookup(self, name: str) -> list[PeerRecord]:
        """The records of every peer that serves a model of this name, goodbyes and expired ones left out.

        Raises:
            SwarmError: the libp2p daemon has ended.
        """
        return await self._directory.lookup(name)

    async def models(self) -> set[ModelId]:
        """Every model that a peer of this swarm serves.

        Raises:
            SwarmError: the libp2p daemon has ended.
        """
        return await self._directory.models()

    async def close(self) -> None:
        """End every stream and stop; never raises. A second call waits for the first."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        """Streams first, then the DHT, which still talks to the daemon, then the daemon."""
        if self._server is not None:
            self._server.close()
        await self._streams.close()
        await self._directory.close()
        await self._daemon.stop()
