"""A whole swarm in one process: real servers, spans, streams and client; only the network is in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

from peer.checkpoint import Checkpoint
from peer.engines.torch_engine import TorchEngine
from peer.hop import Hop
from peer.plan import Outcome
from peer.scheduler import CostModel, Scheduler
from peer.server import Compute, Server
from peer.spans import SpanModel
from routing.domain import ModelId, SamplingParams, Span
from routing.identity import Identity
from routing.in_memory import MemoryNetwork, MemoryTransport
from swarm.client import ModelName, SwarmClient
from swarm.conversation import Conversation, Stats
from swarm.drafting import Proposer
from swarm.speculation import Speculation
from tests.peer_records import record_of


async def inline(run: Callable[[], Sequence[Outcome]]) -> Sequence[Outcome]:
    """Compute on the loop: a virtual clock does not wait for threads."""
    return run()


class MemoryPeer:
    """One serving peer."""

    def __init__(
        self,
        network: MemoryNetwork,
        folder: Path,
        span: Span,
        seed: int,
        num_kv_tokens: int,
        compute: Compute,
        window: int | None,
    ) -> None:
        self.identity = Identity(bytes([seed] * 32))
        self.transport: MemoryTransport = network.join(self.identity)
        checkpoint = Checkpoint.open(folder)
        self.model = ModelId("tiny", checkpoint.config_hash(), checkpoint.weights_hash())
        span_model = SpanModel(folder, span)
        served = span_model.served(self.identity.peer_id, self.model, "float32", num_kv_tokens)
        self.hop = Hop(served, Scheduler(CostModel()), window)
        self.server = Server(self.hop, TorchEngine(span_model), self.transport, compute)
        self.record = record_of(
            self.identity.peer_id,
            model=self.model,
            num_blocks=checkpoint.config.num_blocks,
            span=span,
            addresses=self.transport.addresses,
            num_free_kv_tokens=num_kv_tokens,
        )


class MemorySwarm:
    """Peers that serve the spans between ``cuts``, and the means to talk to them."""

    def __init__(
        self,
        folder: Path,
        spans: Sequence[Span],
        delay_seconds: float,
        num_kv_tokens: int,
        compute: Compute,
        window: int | None,
    ) -> None:
        self.folder = folder
        self.network = MemoryNetwork(delay_seconds)
        self.peers = [
            MemoryPeer(self.network, folder, span, seed, num_kv_tokens, compute, window)
            for seed, span in enumerate(spans, 10)
        ]
        self.name = ModelName("tiny", self.peers[0].model.config)
        self._num_clients = 0

    @asynccontextmanager
    async def client(self) -> AsyncIterator[SwarmClient]:
        """A client that joins and leaves."""
        self._num_clients += 1
        identity = Identity(bytes([100 + self._num_clients] * 32))
        transport = self.network.join(identity)
        async with SwarmClient(self.name, transport, self.network.directory(identity)) as client:
            yield client


@asynccontextmanager
async def memory_swarm(
    folder: Path,
    cuts: Sequence[int] = (0, 2, 4, 6),
    *,
    spans: Sequence[Span] | None = None,
    delay_seconds: float = 0.05,
    num_kv_tokens: int = 10_000,
    compute: Compute = inline,
    window: int | None = None,
) -> AsyncIterator[MemorySwarm]:
    """A swarm that serves until the end of the context."""
    spans = spans or [Span(start, end) for start, end in pairwise(cuts)]
    swarm = MemorySwarm(folder, spans, delay_seconds, num_kv_tokens, compute, window)
    tasks = [asyncio.create_task(peer.server.run(), name="server") for peer in swarm.peers]
    for peer in swarm.peers:
        await swarm.network.directory(peer.identity).publish(peer.record)
    await asyncio.sleep(0)
    try:
        yield swarm
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for peer in swarm.peers:
            await peer.transport.close()
        for task in tasks:
            if not task.cancelled():
                task.result()


async def collect(conversation: Conversation, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """The whole answer."""
    return [token async for tokens in conversation.ask(prompt, max_tokens) for token in tokens]


async def generate(
    swarm: MemorySwarm,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    params: SamplingParams | None = None,
    speculation: int | None = 0,
    proposer: Proposer | None = None,
) -> tuple[list[int], Stats]:
    """One answer in a conversation of its own."""
    async with (
        swarm.client() as client,
        await client.open(1000, params, speculation=Speculation(speculation), proposer=proposer) as conversation,
    ):
        tokens = await collect(conversation, prompt, max_tokens)
        return tokens, conversation.stats
