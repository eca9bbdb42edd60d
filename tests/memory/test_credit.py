"""Many sessions on one link between two hops: nobody is cut off because somebody is slow, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np

from peer.admission import Served
from peer.engines.stand_in import StandInEngine
from peer.hop import Hop
from peer.plan import Outcome, PassPlan
from peer.scheduler import CostModel, Scheduler
from peer.server import Server
from routing.domain import Hop as RouteHop
from routing.domain import Route, SamplingParams, Span
from routing.identity import Identity
from routing.in_memory import MemoryNetwork
from routing.links import Links
from routing.messages import Rows
from swarm.chain import Chain
from swarm.client import SwarmClient
from swarm.conversation import Conversation
from swarm.drafting import NoProposer
from swarm.models import ModelName
from swarm.session import Session
from swarm.speculation import Speculation
from tests.by_hand import PROMPT
from tests.memory_swarm import collect, inline, memory_swarm
from tests.peer_records import MODEL, record_of

WIDTH = 4096
NARROW = 4
NUM_SESSIONS = 33


def target(text: Sequence[int]) -> int:
    return (sum(text[-3:]) * 7 + len(text)) % 50


class WideEngine:
    """The engine without a model, whose rows are as wide as those of an 8B."""

    def __init__(self) -> None:
        self._engine = StandInEngine(6, target, width=NARROW)

    def run(self, plan: PassPlan) -> Sequence[Outcome]:
        for part in plan.parts:
            if part.rows is not None:
                wide = np.frombuffer(part.rows.data, np.float32).reshape(-1, WIDTH)
                narrow = np.ascontiguousarray(wide[:, :NARROW]).tobytes()
                object.__setattr__(part, "rows", Rows("float32", len(wide), NARROW, memoryview(narrow)))
        return [
            Outcome(_widened(outcome.rows) if outcome.rows is not None else None, outcome.walk, outcome.failure)
            for outcome in self._engine.run(plan)
        ]

    def forget(self, caches: Sequence[int]) -> None:
        self._engine.forget(caches)


def _widened(rows: Rows) -> Rows:
    wide = np.zeros((rows.num_rows, WIDTH), np.float32)
    wide[:, :NARROW] = np.frombuffer(rows.data, np.float32).reshape(-1, NARROW)
    return Rows("float32", rows.num_rows, WIDTH, memoryview(wide.tobytes()))


async def test_33_sessions_with_long_prompts_share_one_link_of_wide_rows() -> None:
    network = MemoryNetwork(delay_seconds=0.05)
    servers: list[Server] = []
    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
        for seed, span in enumerate((Span(0, 3), Span(3, 6)), 1):
            identity = Identity(bytes([seed] * 32))
            served = Served(identity.peer_id, MODEL, 6, span, WIDTH, 50, "float32", 100_000)
            hop = Hop(served, Scheduler(CostModel()))
            servers.append(Server(hop, WideEngine(), network.join(identity), inline))
            record = record_of(identity.peer_id, num_blocks=6, span=span, addresses=("/memory/0",))
            await network.directory(identity).publish(record)
        running = [tasks.create_task(server.run()) for server in servers]
        await asyncio.sleep(0)
        identity = Identity(bytes([9] * 32))
        client = SwarmClient(
            ModelName(MODEL.name, MODEL.config, 6, 50), network.join(identity), network.directory(identity)
        )
        await stack.enter_async_context(client)
        prompts = [[(seed + i * i) % 50 for i in range(300)] for seed in range(NUM_SESSIONS)]
        talks = [await client.open(400, proposer=NoProposer()) for _ in prompts]
        answers = await asyncio.gather(*(collect(talk, prompt, 3) for talk, prompt in zip(talks, prompts, strict=True)))
        for prompt, answer in zip(prompts, answers, strict=True):
            text = list(prompt)
            for token in answer:
                assert token == target(text)
                text.append(token)
        assert len(servers[0]._links._links) == 1
        assert [server.hop.num_sessions for server in servers] == [NUM_SESSIONS] * 2
        await client.close()
        for task in running:
            task.cancel()


async def test_opposing_routes_with_the_least_credit_do_not_wait_for_each_other(
    folder: Path, reference: list[int]
) -> None:
    async with memory_swarm(folder, spans=[Span(0, 6), Span(0, 6)], num_kv_tokens=50_000, window=80_000) as swarm:
        one, other = (peer.identity.peer_id for peer in swarm.peers)
        identity = Identity(bytes([99] * 32))
        links = Links(swarm.network.join(identity))

        async def ask(first: str, second: str, prompt: Sequence[int]) -> list[int]:
            route = Route((RouteHop(first, Span(0, 3)), RouteHop(second, Span(3, 6))))  # type: ignore[arg-type]
            model = str(swarm.peers[0].model)
            chain = await Chain.open(links, model, route, 800, SamplingParams(), lambda _: None)
            with_drafts = Speculation(0)
            async with Conversation(chain, Session(700), with_drafts, NoProposer(), links) as conversation:
                return await collect(conversation, prompt, 10)

        ways = [(one, other), (other, one)] * 4
        answers = await asyncio.gather(*(ask(*way, PROMPT) for way in ways), *(ask(*way, PROMPT * 30) for way in ways))
        await links.close()
    assert answers[:8] == [reference[:10]] * 8
    assert len({tuple(answer) for answer in answers[8:]}) == 1
