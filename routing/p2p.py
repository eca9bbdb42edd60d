"""Transport and directory over libp2p and a DHT: the one door to hivemind.

A node is a libp2p daemon (a child process that hivemind ships), a DHT node on it, and our own kept streams. What
hivemind 1.1.12 does not do well is done by hand here: dialling without leaks, noticing that the daemon has died,
joining with a deadline, an end in the right order. Times in the DHT are seconds of the Unix clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from hivemind.dht.crypto import DHTRecord, RecordValidatorBase
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.p2p import P2P, PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError, raise_if_failed, read_pbmsg_safe, write_pbmsg
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.timed_storage import get_dht_time

from routing.addresses import check_announce, check_listen, is_loopback, split_peer
from routing.domain import ModelId, PeerId, PeerRecord
from routing.errors import ConfigError, PeerUnreachable, SwarmError
from routing.identity import Identity
from routing.record_rules import MODELS_KEY, keys_of, model_key, read, refusal
from routing.records import MAX_ADDRESSES, sign_record
from routing.stream_pool import StreamPool
from routing.streams import MessageStream
from routing.transport import StreamHandler

__all__ = ["P2PNode", "get_dht_time"]

PROTOCOL = "specswarm/1"
DIAL_SECONDS = 3
RPC_SECONDS = 2.0
RETRY_SECONDS = 0.5
GRACE_SECONDS = 1.0
STOP_SECONDS = 5.0
_READ_LIMIT_BYTES = 1 << 20
_MAX_SOCKET_FOLDER = 70  # a Unix socket's path has at most 104 bytes on some systems
_GONE = (P2PDaemonError, OSError, EOFError)

logger = logging.getLogger(__name__)


class P2PNode:
    """Both seams, ``routing.transport.Transport`` and ``.Directory``, for one peer or client. See ``create``."""

    def __init__(
        self, identity: Identity, daemon: _Daemon, dht: DHTNode, announce: Sequence[str], delay_seconds: float
    ) -> None:
        self._identity = identity
        self._daemon = daemon
        self._dht = dht
        self._addresses = tuple(sorted(announce or daemon.addresses, key=is_loopback))[:MAX_ADDRESSES]
        self._streams = StreamPool(_introduced, delay_seconds)
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
            _check_free(address)
        daemon = await _Daemon.start(identity, listen, announce, startup_seconds)
        try:
            dht = await DHTNode.create(
                p2p=daemon.p2p,
                client_mode=client_only,
                record_validator=_Validator(records_bad),
                wait_timeout=RPC_SECONDS,
                cache_locally=False,
                cache_nearest=0,
                cache_on_store=False,
                reuse_get_requests=False,
            )
        except BaseException:
            await daemon.stop()
            raise
        dht.protocol.storage, dht.protocol.cache = _Storage(), _NoStorage()
        node = cls(identity, daemon, dht, announce, delay_seconds)
        try:
            await node._join([peer for peer in peers if peer[0] != node.peer_id], join_seconds)
        except BaseException:
            await node.close()
            raise
        return node

    @property
    def peer_id(self) -> PeerId:
        """Our own id."""
        return self._identity.peer_id

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
            await self._dial(peer, addresses)
            opening = p2pd_pb2.StreamOpenRequest(peer=_id_bytes(peer), proto=[PROTOCOL], timeout=DIAL_SECONDS)
            request = p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=opening)
            return self._streams.dialled(peer, *await self._daemon.ask(request))
        except _GONE as error:
            raise PeerUnreachable(peer, f"can't be dialled ({_reason(error)})") from error

    async def serve(self, handler: StreamHandler) -> None:
        """From now on give every stream that others open to ``handler``.

        Raises:
            SwarmError: the libp2p daemon has ended.
        """
        self._streams.handler = handler
        if self._server is not None:
            return
        path = self._daemon.folder / "in.sock"
        self._server = await asyncio.start_unix_server(self._streams.accept, path, limit=_READ_LIMIT_BYTES)
        address = Multiaddr(f"/unix{path}").to_bytes()
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.STREAM_HANDLER,
            streamHandler=p2pd_pb2.StreamHandlerRequest(addr=address, proto=[PROTOCOL], balanced=False),
        )
        try:
            _, writer = await self._daemon.ask(request)
        except _GONE as error:
            raise SwarmError(f"can't accept streams: {_reason(error)}") from error
        await _end(writer)

    async def publish(self, record: PeerRecord) -> None:
        """Sign and store our own record, in the place of the one before; its expiry must be later than that one's.

        Raises:
            SwarmError: nobody took it.
            ConfigError: others would refuse it.
            ValueError: it is another peer's.
        """
        self._check_alive()
        signed = sign_record(self._identity, record)
        keys = keys_of(record.model)
        stored = await self._dht.store_many(
            list(keys), [signed] * len(keys), [float(record.expiry)] * len(keys), subkeys=[record.peer] * len(keys)
        )
        for key in keys:
            # A node that has it already, from another node, says no: look before complaining.
            if not stored[key, record.peer] and (await self._values(key)).get(record.peer) != signed:
                ahead = record.expiry - get_dht_time()
                raise SwarmError(
                    f"nobody took our record: its expiry must be in the future (it is {ahead:+.1f} s ahead) and later "
                    "than the last one's"
                )

    async def lookup(self, name: str) -> list[PeerRecord]:
        """The records of every peer that serves a model of this name, goodbyes and expired ones left out.

        Raises:
            SwarmError: the libp2p daemon has ended.
        """
        return await self._records(model_key(name))

    async def models(self) -> set[ModelId]:
        """Every model that a peer of this swarm serves.

        Raises:
            SwarmError: the libp2p daemon has ended.
        """
        return {record.model for record in await self._records(MODELS_KEY)}

    async def close(self) -> None:
        """End every stream and stop; never raises. A second call waits for the first."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="close")
        await asyncio.shield(self._closing)

    async def _join(self, peers: Sequence[tuple[PeerId, str]], seconds: float) -> None:
        """Meet at least one of the peers, then our neighbours in the DHT."""
        if not peers:
            return
        try:
            async with asyncio.timeout(seconds):
                while True:
                    if await self._greet(peers):
                        break
                    await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            tried = ", ".join(f"{address}/p2p/{peer}" for peer, address in peers)
            raise SwarmError(
                f"no peer answered within {seconds:.0f} s at {tried}: check that it runs and that the address is right"
            ) from None
        await self._dht.find_nearest_nodes([self._dht.node_id])

    async def _greet(self, peers: Sequence[tuple[PeerId, str]]) -> bool:
        """Greet all at once; when one has answered, the others have a moment more. Did any answer?"""

        async def greet(peer: PeerId, address: str) -> bool:
            try:
                await self._dial(peer, [address])
            except _GONE:
                return False
            return await self._dht.protocol.call_ping(PeerID(_id_bytes(peer))) is not None

        tasks = {asyncio.create_task(greet(peer, address)) for peer, address in peers}
        waiting, num_met = tasks, 0
        try:
            while waiting:
                moment = GRACE_SECONDS if num_met else None
                done, waiting = await asyncio.wait(waiting, timeout=moment, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                num_met += sum(task.result() for task in done)
            return num_met > 0
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _dial(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Have a connection to a peer. Addresses come from strangers: what is none is left out."""
        places: list[bytes] = []
        for address in addresses[:MAX_ADDRESSES]:
            with contextlib.suppress(ValueError):
                places.append(Multiaddr(address).to_bytes())
        where = p2pd_pb2.ConnectRequest(peer=_id_bytes(peer), addrs=places, timeout=DIAL_SECONDS)
        _, writer = await self._daemon.ask(p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=where))
        await _end(writer)

    def _check_alive(self) -> None:
        if self._closing is not None or self._daemon.ended.done():
            raise SwarmError("this node has no libp2p daemon any more: start it again")

    async def _values(self, key: str) -> dict[object, object]:
        self._check_alive()
        found = await self._dht.get(key, latest=True)
        if found is None or not isinstance(found.value, dict):
            return {}
        return {subkey: item.value for subkey, item in found.value.items()}

    async def _records(self, key: str) -> list[PeerRecord]:
        records, num_bad = read(await self._values(key), key, get_dht_time())
        for _ in range(num_bad):
            self._dht.protocol.record_validator.count("it is of no use to a reader")
        return records

    async def _close(self) -> None:
        """Streams first, then the DHT, which still talks to the daemon, then the daemon."""
        if self._server is not None:
            self._server.close()
        await self._streams.close()
        if not self._daemon.ended.done():
            ending = asyncio.create_task(self._dht.shutdown())
            await asyncio.wait([ending, self._daemon.ended], timeout=STOP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
        await self._daemon.stop()


class _Daemon:
    """A libp2p daemon of our own, and what we ask it. Its sockets and key lie in a folder that goes with it."""

    def __init__(self, folder: Path, p2p: P2P) -> None:
        self.folder = folder
        self.p2p = p2p
        self.pid: int = p2p._child.pid
        self.addresses = tuple(map(str, p2p._visible_maddrs))
        self.ended: asyncio.Task[int] = asyncio.create_task(p2p._child.wait(), name="the libp2p daemon")
        self.ended.add_done_callback(self._on_end)
        self._is_stopping = False

    @classmethod
    async def start(
        cls, identity: Identity, listen: Sequence[str], announce: Sequence[str], startup_seconds: float
    ) -> _Daemon:
        """Start one; without an address to listen at it is a client.

        Raises:
            SwarmError: it did not start.
        """
        folder = Path(tempfile.mkdtemp(prefix="swarm-"))
        made: list[P2P] = []

        class Process(_Process):
            _UNIX_SOCKET_PREFIX = f"/unix{folder}/"

            def __init__(self) -> None:
                super().__init__()
                made.append(self)

        try:
            if len(str(folder)) > _MAX_SOCKET_FOLDER:
                raise ConfigError(f"the folder {folder.parent} is too long a path for sockets: set TMPDIR to a shorter")
            identity.save(folder / "key")
            is_public = not all(map(is_loopback, listen))
            starting = asyncio.create_task(
                Process.create(
                    identity_path=str(folder / "key"),
                    host_maddrs=listen,
                    no_listen=not listen,
                    announce_maddrs=announce or None,
                    dht_mode="server" if listen else "client",
                    nat_port_map=is_public,
                    auto_nat=is_public,
                    startup_timeout=startup_seconds,
                )
            )
            try:
                await asyncio.shield(starting)
            except asyncio.CancelledError:
                await asyncio.wait([starting])  # a daemon that is cancelled while it starts would live on
                raise
        except (P2PDaemonError, OSError, EOFError) as error:
            await _stop_process(made, folder)
            raise SwarmError(
                f"the libp2p daemon did not start at {', '.join(listen) or 'no address'}: {error}: is another program "
                "at that address, or is the disk slow?"
            ) from error
        except BaseException:
            await _stop_process(made, folder)
            raise
        return cls(folder, made[0])

    async def ask(self, request: p2pd_pb2.Request) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """One question that the daemon answers with yes; the caller closes the writer.

        Raises:
            P2PDaemonError, OSError, EOFError: it says no, or nothing any more.
        """
        if self.ended.done():
            raise ConnectionError("the libp2p daemon has ended")
        path = self.p2p._daemon_listen_maddr["unix"]
        reader, writer = await asyncio.open_unix_connection(path, limit=_READ_LIMIT_BYTES)
        try:
            await write_pbmsg(writer, request)
            answer = p2pd_pb2.Response()
            await read_pbmsg_safe(reader, answer)
            raise_if_failed(answer)
        except BaseException:
            await _end(writer)
            raise
        return reader, writer

    async def stop(self) -> None:
        """End it, whether it still runs or not."""
        self._is_stopping = True
        self._fail_calls()
        await _stop_process([self.p2p], self.folder)
        self._fail_calls()
        await asyncio.wait([self.ended])

    def _on_end(self, ended: asyncio.Task[int]) -> None:
        if not self._is_stopping and not ended.cancelled():
            logger.error("the libp2p daemon has ended by itself, with status %d", ended.result())
            self._fail_calls()

    def _fail_calls(self) -> None:
        """End the calls that hivemind would leave waiting for ever."""
        for call in self.p2p._client.control._pending_calls.values():
            if not call.done():
                call.set_exception(P2PDaemonError("the libp2p daemon has ended"))


class _Process(P2P):  # type: ignore[misc]
    """hivemind's daemon, that dies with us, and not by the Ctrl-C that is for us."""

    @staticmethod
    def _make_process_args(*args: object, **kwargs: object) -> list[str]:
        plain: list[str] = P2P._make_process_args(*args, **kwargs)
        if not (shutil.which("setsid") and shutil.which("setpriv")):
            return plain
        return ["setsid", "setpriv", "--pdeathsig", "KILL", "--", *plain]


async def _stop_process(made: Sequence[P2P], folder: Path) -> None:
    """End what hivemind started, each part of it, and remove the folder."""
    for p2p in made:
        if p2p._child is not None:
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await p2p.shutdown()
            except (TimeoutError, P2PDaemonError):
                with contextlib.suppress(ProcessLookupError):
                    p2p._child.kill()
                await p2p._child.wait()
            p2p._child._transport.close()
        control = p2p._client.control if p2p._client is not None else None
        tasks = [p2p._listen_task, p2p._reader_task]
        tasks += [control._read_task, control._write_task] if control is not None else []
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)
    shutil.rmtree(folder, ignore_errors=True)


class _Validator(RecordValidatorBase):  # type: ignore[misc]
    """The rules of ``routing.record_rules``, on every node: for what it is given to store and for what it reads."""

    def __init__(self, records_bad: Callable[[], None] | None) -> None:
        self._records_bad = records_bad

    def validate(self, record: DHTRecord) -> bool:
        reason = refusal(record.key, record.subkey, record.value, record.expiration_time)
        if reason is not None:
            self.count(reason)
        return reason is None

    def count(self, reason: str) -> None:
        """One more bad record."""
        logger.debug("record refused: %s", reason)
        if self._records_bad is not None:
            self._records_bad()


class _Storage(DHTLocalStorage):  # type: ignore[misc]
    """Keeps the newer record when an older one is stored again; hivemind then drops the newer one early."""

    def store_subkey(self, key: DHTID, subkey: object, value: bytes, expiration_time: float) -> bool:
        known = self.get(key)
        if known is not None and isinstance(known.value, DictionaryDHTValue):
            newest = known.value.get(subkey)
            if newest is not None and newest.expiration_time >= expiration_time:
                return False
        return bool(super().store_subkey(key, subkey, value, expiration_time))


class _NoStorage(DHTLocalStorage):  # type: ignore[misc]
    """Takes nothing. Strangers may write to a node's cache, and what lies there hides what is stored."""

    def store(self, *_args: object, **_kwargs: object) -> bool:
        return False

    def store_subkey(self, *_args: object, **_kwargs: object) -> bool:
        return False


def _check_free(address: str) -> None:
    """Refuse a TCP port that another program listens at: libp2p would share it, and each get half of the streams.

    Raises:
        ConfigError: somebody listens there, or nobody may.
    """
    place = Multiaddr(address)
    family, name = (socket.AF_INET, "ip4") if "ip4" in place else (socket.AF_INET6, "ip6")
    if "tcp" not in place or place["tcp"] == "0":
        return
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was in use a moment ago is free
        try:
            probe.bind((place[name], int(place["tcp"])))
        except OSError as error:
            raise ConfigError(
                f"can't listen at {address}: {error.strerror}: choose another port, 0 for any free one"
            ) from None


async def _end(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _introduced(reader: asyncio.StreamReader) -> PeerId:
    """Who opened a stream: the daemon says it first of all, and has proved it."""
    info = p2pd_pb2.StreamInfo()
    await read_pbmsg_safe(reader, info)
    return PeerId(PeerID(info.peer).to_base58())


def _id_bytes(peer: PeerId) -> bytes:
    """An id may be what a stranger made up."""
    try:
        return bytes(PeerID.from_base58(peer).to_bytes())
    except ValueError:
        raise ConnectionError("its id is malformed") from None


def _reason(error: BaseException) -> str:
    """The end of what the daemon says: without the addresses that it tried."""
    return str(error).strip().rsplit(": ", 1)[-1][:100] or type(error).__name__
