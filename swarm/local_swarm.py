"""A swarm on this machine: a bootstrap and peers, each in a process of its own, that end when their maker does.

The processes come from a fork server that has torch, transformers and hivemind loaded already, so each is up in a
moment. A pipe to each tells when it is ready, and when it is to stop; its end means the same, so nothing outlives us,
however we end.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

from routing.domain import Span
from routing.errors import SwarmError

START_SECONDS = 120.0
STOP_SECONDS = 8.0
_PRELOAD = ["transformers.models.llama.modeling_llama", "peer.node", "swarm.local_swarm"]
_LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


@dataclass(frozen=True, slots=True)
class PeerPlan:
    """A serving peer: the model's folder and name in its swarm, the blocks, and what it is called."""

    folder: Path
    model_name: str
    span: Span
    name: str = ""
    delay_seconds: float = 0.0


class LocalProcess:
    """One process of the swarm. ``plan`` is None for a bootstrap."""

    def __init__(self, name: str, plan: PeerPlan | None, initial_peers: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        _start_fork_server()
        context = multiprocessing.get_context("forkserver")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_run_child, args=(theirs, str(log), plan, tuple(initial_peers)), name=name, daemon=True
        )
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid or 0

    async def ready(self) -> tuple[str, ...]:
        """Wait until it serves; the addresses to join through it.

        Raises:
            SwarmError: it did not start; the text has the end of its log.
        """
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pipe.fileno(), readable.set)
        try:
            async with asyncio.timeout(START_SECONDS):
                await readable.wait()
            addresses: tuple[str, ...] = self._pipe.recv()
        except (TimeoutError, EOFError, OSError):
            raise SwarmError(f"{self.name} did not start; the end of its log: {self.last_lines()}") from None
        finally:
            loop.remove_reader(self._pipe.fileno())
        return addresses

    def last_lines(self) -> str:
        """The end of what it has said."""
        with suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        return "(it has none)"

    def stop(self) -> None:
        """Ask it to say goodbye and end."""
        self._pipe.close()

    def kill(self) -> None:
        """End it without a word."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    async def wait_ended(self, seconds: float = STOP_SECONDS) -> None:
        """Wait until it has ended; then end it, if it has not."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._process.is_alive():  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.02)

    def end(self) -> None:
        """Make sure that it is gone. Does not wait for goodbyes."""
        self.stop()
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


class LocalSwarm:
    """A bootstrap and peers, up from ``async with`` to its end.

    Args:
        plans: the peers.
        progress: gets a line where one has to wait.
    """

    def __init__(self, plans: Sequence[PeerPlan], progress: Callable[[str], None]) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # the peers share this machine's cores
        self.peers: list[LocalProcess] = []
        self.initial_peers: tuple[str, ...] = ()
        self._plans = plans
        self._progress = progress
        self._processes: list[LocalProcess] = []
        self._folder = tempfile.TemporaryDirectory(prefix="swarm-logs-")

    async def __aenter__(self) -> Self:
        """Start them all, and wait until each serves.

        Raises:
            SwarmError: one did not start; the others are stopped.
        """
        try:
            self._progress(f"starting a bootstrap and {len(self._plans)} peers")
            bootstrap = self._start("bootstrap", None)
            self.initial_peers = await bootstrap.ready()
            self.peers = [self._start(f"peer {plan.span}", plan) for plan in self._plans]
            for peer in self.peers:
                await peer.ready()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def add(self, plan: PeerPlan) -> LocalProcess:
        """One more peer, serving."""
        peer = self._start(f"peer {plan.span}", plan)
        self.peers.append(peer)
        await peer.ready()
        return peer

    async def close(self) -> None:
        """Let everybody say goodbye; whoever does not end in time is ended."""
        try:
            for process in reversed(self._processes):
                process.stop()
            await asyncio.gather(*(process.wait_ended() for process in self._processes))
        finally:
            for process in self._processes:
                process.end()
            self._folder.cleanup()

    def logs(self) -> str:
        """The end of what each process has said, for a report of what went wrong."""
        return "\n".join(f"--- {process.name}\n{process.last_lines()}" for process in self._processes)

    def _start(self, name: str, plan: PeerPlan | None) -> LocalProcess:
        log = Path(self._folder.name) / f"{len(self._processes)}.log"
        self._processes.append(LocalProcess(name, plan, self.initial_peers, log))
        return self._processes[-1]


def _start_fork_server() -> None:
    """Start it if it does not run; Ctrl-C is not for it, also not while it still loads."""
    forkserver.set_forkserver_preload(_PRELOAD)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)


def stop_fork_server() -> None:
    """End the fork server and its helper at once; by themselves they end a moment after us."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


# --- in the child


def _run_child(pipe: Connection, log: str, plan: PeerPlan | None, initial_peers: tuple[str, ...]) -> None:
    os.setsid()  # Ctrl-C is for the parent; it tells us
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    silence = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, silence), (1, output), (2, output)):
        os.dup2(source, target)
    sys.stdin.close()
    with suppress(asyncio.CancelledError):
        asyncio.run(_until_told(pipe, plan, initial_peers))


async def _until_told(pipe: Connection, plan: PeerPlan | None, initial_peers: tuple[str, ...]) -> None:
    """Serve until the pipe ends or a signal comes."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101

    def stop() -> None:
        loop.remove_reader(pipe.fileno())
        task.cancel()
        last_resort = threading.Timer(STOP_SECONDS, os._exit, (1,))
        last_resort.daemon = True
        last_resort.start()

    loop = asyncio.get_running_loop()
    loop.add_reader(pipe.fileno(), stop)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    await (_serve(pipe, plan, initial_peers) if plan else _bootstrap(pipe))


async def _bootstrap(pipe: Connection) -> None:
    from routing.identity import Identity
    from routing.p2p.node import P2PNode

    node = await P2PNode.create(Identity.generate(), listen=_LOOPBACK)
    try:
        pipe.send(node.join_addresses)
        await node.wait_lost()
    finally:
        await node.close()


async def _serve(pipe: Connection, plan: PeerPlan, initial_peers: tuple[str, ...]) -> None:
    from peer.node import PeerSettings, ServingPeer
    from routing.identity import Identity

    settings = PeerSettings(
        folder=plan.folder,
        model_name=plan.model_name,
        identity=Identity.generate(),
        span=plan.span,
        listen=_LOOPBACK,
        initial_peers=initial_peers,
        name=plan.name,
        delay_seconds=plan.delay_seconds,
    )
    async with await ServingPeer.start(settings, print) as node:
        pipe.send(node.p2p.join_addresses)
        await node.wait()
