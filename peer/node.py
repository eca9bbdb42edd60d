"""The life of a serving peer: join, choose blocks, load, announce, serve, say goodbye.

async with await ServingPeer.start(settings, progress) as node:
    await node.wait()
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from peer.capacity import (
    check_fits,
    format_bytes,
    free_bytes,
    kv_tokens_that_fit,
    num_blocks_that_fit,
)
from peer.checkpoint import Checkpoint
from peer.engines.measure import measure
from peer.engines.torch_engine import TorchEngine
from peer.formats import ELEMENT_BYTES
from peer.hop import Hop
from peer.plan import Outcome
from peer.scheduler import CostModel, Scheduler
from peer.server import Server
from peer.spans import SpanModel
from routing.domain import ModelId, PeerRecord, PeerState, Span
from routing.errors import ConfigError, PeerError, SwarmError
from routing.handshake import dial
from routing.identity import Identity
from routing.messages import PROTOCOL_VERSION
from routing.p2p.directory import get_dht_time
from routing.p2p.node import P2PNode
from routing.placement import worst_covered
from routing.version import __version__

log = logging.getLogger(__name__)

RECORD_SECONDS = 300.0
RENEW_SECONDS = 60.0
GREETING_SECONDS = 3.0
MAX_GREETED = 64
"""Peers that one who joins greets, to know which blocks are really served."""


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """What a serving peer is told.

    Attributes:
        folder: the model's config.json, tokenizer.json and safetensors.
        model_name: what its swarm calls the model.
        span: the blocks to serve; None for as many of the worst-covered ones as fit.
        max_memory_bytes: for weights and KV cache; None for half of what is free.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: as torch names it.
        listen: multiaddrs to listen at.
        announce: multiaddrs where others reach us, if those are not the ones that we listen at.
        initial_peers: multiaddrs with ``/p2p/ID`` of the swarm to join; none starts a new one.
        identity: the peer's key.
        name: shown to others.
        delay_seconds: hold back everything that is sent for so long; to try out long lines.
        renew_seconds: how often the peer's record is stored anew.
    """

    folder: Path
    model_name: str
    identity: Identity
    span: Span | None = None
    max_memory_bytes: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    announce: tuple[str, ...] = ()
    initial_peers: tuple[str, ...] = ()
    name: str = ""
    delay_seconds: float = 0.0
    renew_seconds: float = RENEW_SECONDS


class ServingPeer:
    """A peer that serves. Made by ``start``; the context says goodbye at its end."""

    def __init__(
        self, p2p: P2PNode, server: Server, record: PeerRecord, executor: ThreadPoolExecutor, renew_seconds: float
    ) -> None:
        self.p2p = p2p
        self.server = server
        self._record = record
        self._executor = executor
        self._renew_seconds = renew_seconds
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(cls, settings: PeerSettings, progress: Callable[[str], None]) -> Self:
        """Join the swarm, load the blocks and announce them; ``progress`` hears of every longer wait.

        Raises:
            ConfigError: the settings can't be served; the text says what would do.
            SwarmError: the swarm can't be reached.
        """
        checkpoint = Checkpoint.open(settings.folder)
        device = _device(settings.device)
        model = ModelId(settings.model_name, checkpoint.config_hash(), checkpoint.weights_hash())
        max_bytes = (
            settings.max_memory_bytes if settings.max_memory_bytes is not None else free_bytes(settings.device) // 2
        )
        element_bytes = ELEMENT_BYTES[settings.dtype]
        whole = Span(0, checkpoint.config.num_blocks)
        check_fits(checkpoint, settings.span, max_bytes, element_bytes)
        p2p = await P2PNode.create(
            settings.identity,
            listen=settings.listen,
            announce=settings.announce,
            initial_peers=settings.initial_peers,
            delay_seconds=settings.delay_seconds,
        )
        executor = ThreadPoolExecutor(1, "compute", initializer=_use_threads)
        try:
            span = settings.span
            if span is None:
                served = await _served_now(p2p, [r for r in await p2p.lookup(model.name) if r.model == model])
                span = worst_covered(served, whole.end, num_blocks_that_fit(checkpoint, max_bytes, element_bytes))
                progress(f"serving the blocks {span} of {whole.end}: those that the swarm needs most")
            num_kv_tokens = kv_tokens_that_fit(checkpoint, span, max_bytes, element_bytes)
            progress(f"loading the blocks {span} of {model.name}; up to {format_bytes(max_bytes)} may be used")
            loop = asyncio.get_running_loop()
            load = functools.partial(SpanModel, settings.folder, span, settings.dtype, device=device)
            span_model = await loop.run_in_executor(executor, load)
            engine = TorchEngine(span_model)
            step_seconds = await loop.run_in_executor(
                executor, measure, engine, span, span_model.hidden_size, settings.dtype, loop.time
            )

            async def compute(run: Callable[[], Sequence[Outcome]]) -> Sequence[Outcome]:
                return await loop.run_in_executor(executor, run)

            offer = span_model.served(p2p.peer_id, model, settings.dtype, num_kv_tokens)
            hop = Hop(offer, Scheduler(CostModel(step_seconds)))
            server = Server(hop, engine, p2p, compute)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            await p2p.close()
            raise
        record = PeerRecord(
            model=model,
            num_blocks=whole.end,
            span=span,
            peer=p2p.peer_id,
            addresses=p2p.addresses,
            state=PeerState.JOINING,
            weights_class=settings.dtype,
            software=__version__,
            protocol=PROTOCOL_VERSION,
            name=settings.name,
            num_free_kv_tokens=num_kv_tokens,
            queue=0,
            step_seconds=step_seconds,
            features=("verify",),
            sequence=0,
            expiry=0.0,
        )
        node = cls(p2p, server, record, executor, settings.renew_seconds)
        try:
            await node._announce()
        except BaseException:
            await node.close()
            raise
        return node

    @property
    def span(self) -> Span:
        """The blocks that it serves."""
        return self._record.span

    @property
    def model(self) -> ModelId:
        """The model that they are of."""
        return self._record.model

    async def wait(self) -> None:
        """Serve until something is broken for good.

        Raises:
            SwarmError: the libp2p daemon has died; start the peer again.
        """
        lost = asyncio.create_task(self.p2p.wait_lost())
        done, _ = await asyncio.wait([lost, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        if lost in done:
            raise SwarmError("the libp2p daemon has ended: start the peer again")
        lost.cancel()
        for task in done:
            task.result()

    async def close(self) -> None:
        """Say goodbye: from now on readers of the DHT do not see us; then end every session."""
        for task in self._tasks[1:]:
            task.cancel()
        if self._record.sequence:
            with contextlib.suppress(SwarmError):
                await self._publish(PeerState.GONE)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.p2p.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _announce(self) -> None:
        self._tasks.append(asyncio.create_task(self.server.run(), name="server"))
        await self.server.is_serving.wait()
        await self._publish(PeerState.ONLINE)
        self._tasks.append(asyncio.create_task(self._renew(), name="renew"))

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._renew_seconds)
            try:
                await self._publish(PeerState.ONLINE)
            except SwarmError as error:
                log.warning("the record could not be renewed: %s", error)

    async def _publish(self, state: PeerState) -> None:
        """Store our record anew; each has a later expiry than the one before, or the DHT would refuse it."""
        self._record = dataclasses.replace(
            self._record,
            state=state,
            num_free_kv_tokens=self.server.hop.num_free_kv_tokens,
            queue=self.server.hop.queue,
            sequence=self._record.sequence + 1,
            expiry=max(get_dht_time() + RECORD_SECONDS, self._record.expiry + 0.001),
        )
        await self.p2p.publish(self._record)


async def _served_now(p2p: P2PNode, records: Sequence[PeerRecord]) -> list[Span]:
    """The spans of those peers that are there: a record outlives a peer that was killed by minutes."""

    async def span_of(record: PeerRecord) -> Span | None:
        try:
            stream = await dial(p2p, record.peer, record.addresses, GREETING_SECONDS)
        except PeerError:
            return None
        await stream.close()
        return record.span

    spans = await asyncio.gather(*map(span_of, records[:MAX_GREETED]))
    return [span for span in spans if span is not None] + [record.span for record in records[MAX_GREETED:]]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device that is not there
        raise ConfigError(f"there is no device {name!r} here: {str(error).splitlines()[0]}") from None
    return device


def _use_threads() -> None:
    """The number of compute threads is a setting of each thread."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
