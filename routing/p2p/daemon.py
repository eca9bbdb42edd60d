"""A libp2p daemon of our own: a child process that hivemind ships, and what we ask it.

What hivemind 1.1.12 does not do well is done by hand here: dialling without leaks, noticing that the daemon has died,
an end that leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hivemind.p2p import P2P, PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError, raise_if_failed, read_pbmsg_safe, write_pbmsg
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from routing.addresses import is_dialled, is_loopback
from routing.domain import PeerId
from routing.errors import ConfigError, SwarmError
from routing.identity import Identity
from routing.records import MAX_ADDRESSES

DIAL_SECONDS = 3
STOP_SECONDS = 5.0
READ_LIMIT_BYTES = 1 << 20
DAEMON_ERRORS = (P2PDaemonError, OSError, EOFError)
"""What a question to the daemon may raise."""

_MAX_SOCKET_FOLDER = 70  # a Unix socket's path has at most 104 bytes on some systems

logger = logging.getLogger(__name__)


class Daemon:
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
    ) -> Daemon:
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
        reader, writer = await asyncio.open_unix_connection(path, limit=READ_LIMIT_BYTES)
        try:
            await write_pbmsg(writer, request)
            answer = p2pd_pb2.Response()
            await read_pbmsg_safe(reader, answer)
            raise_if_failed(answer)
        except BaseException:
            await hang_up(writer)
            raise
        return reader, writer

    async def dial(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Have a connection to a peer. Addresses come from strangers: those that we would not dial are left out.

        Raises:
            P2PDaemonError, OSError, EOFError: nobody answers there, or not as this peer.
        """
        places: list[bytes] = []
        for address in filter(is_dialled, addresses[:MAX_ADDRESSES]):
            with contextlib.suppress(ValueError):  # hivemind has a parser of its own
                places.append(Multiaddr(address).to_bytes())
        where = p2pd_pb2.ConnectRequest(peer=id_bytes(peer), addrs=places, timeout=DIAL_SECONDS)
        _, writer = await self.ask(p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=where))
        await hang_up(writer)

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


def check_free(address: str) -> None:
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


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a connection to the daemon, if it is still there."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def introduced(reader: asyncio.StreamReader) -> PeerId:
    """Who opened a stream: the daemon says it first of all, and has proved it."""
    info = p2pd_pb2.StreamInfo()
    await read_pbmsg_safe(reader, info)
    return PeerId(PeerID(info.peer).to_base58())


def id_bytes(peer: PeerId) -> bytes:
    """A peer's id as the daemon wants it.

    Raises:
        ConnectionError: it is none; it may be what a stranger made up.
    """
    try:
        return bytes(PeerID.from_base58(peer).to_bytes())
    except ValueError:
        raise ConnectionError("its id is malformed") from None


def reason(error: BaseException) -> str:
    """The end of what the daemon says: without the addresses that it tried."""
    return str(error).strip().rsplit(": ", 1)[-1][:100] or type(error).__name__
