"""What a client sees of a swarm, and what it makes of strangers, stopped peers and full ones."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from routing.domain import ModelId, PeerRecord, PeerState, Span
from routing.errors import ConfigError, GenerationFailed, NoRoute
from routing.identity import Identity
from tests.memory_swarm import MemorySwarm, collect, memory_swarm
from tests.tiny_models import greedy, make_llama, plain

PROMPT = list(b"A swarm answers.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def reference(folder: Path) -> list[int]:
    return greedy(plain(folder), PROMPT, 10)


def clock() -> float:
    return asyncio.get_running_loop().time()


async def publish(swarm: MemorySwarm, seed: int, like: PeerRecord, **changes: object) -> PeerRecord:
    """A record of somebody who is not there, signed as it should be."""
    identity = Identity(seed.to_bytes(32, "big"))
    record = replace(like, peer=identity.peer_id, **changes)  # type: ignore[arg-type]
    await swarm.network.directory(identity).publish(record)
    return record


async def assert_answers(swarm: MemorySwarm, reference: list[int]) -> None:
    async with swarm.client() as client, await client.open(500) as conversation:
        assert await collect(conversation, PROMPT, 10) == reference


@pytest.mark.parametrize(
    "changes",
    [
        {"num_blocks": 100_000, "span": Span(0, 100_000)},
        {"num_blocks": 1, "span": Span(0, 1)},
        {"model": ModelId("tiny", "0" * 8, "1" * 8)},
        {"protocol": 99},
    ],
    ids=["too many blocks", "one block", "another config", "another protocol"],
)
async def test_a_record_that_disagrees_with_our_own_config_leads_nobody_astray(
    folder: Path, reference: list[int], changes: dict[str, object]
) -> None:
    async with memory_swarm(folder) as swarm:
        await publish(swarm, 1000, swarm.peers[0].record, **changes)
        await assert_answers(swarm, reference)


async def test_an_invented_variant_does_not_capture_a_client(folder: Path, reference: list[int]) -> None:
    async with memory_swarm(folder) as swarm:
        real = swarm.peers[0].record
        for seed, weights in enumerate(("00000000", "ffffffff")):
            model = ModelId(real.model.name, real.model.config, weights)
            await publish(swarm, 1000 + seed, real, model=model, span=Span(0, 6))
        await assert_answers(swarm, reference)


@pytest.mark.parametrize("num_sybils", [1000])
async def test_a_thousand_peers_that_are_not_there_do_not_hide_those_that_are(
    folder: Path, reference: list[int], num_sybils: int
) -> None:
    async with memory_swarm(folder) as swarm:
        for seed in range(num_sybils):
            await publish(swarm, 1000 + seed, swarm.peers[seed % 3].record, addresses=("/ip4/203.0.113.9/tcp/1",))
        began = clock()
        await assert_answers(swarm, reference)
        assert clock() - began < 60


async def test_a_stopped_replica_that_nobody_needs_delays_nobody(folder: Path, reference: list[int]) -> None:
    async with memory_swarm(folder, spans=[Span(0, 6), Span(0, 6)]) as swarm:
        swarm.peers[0].transport.fall_silent()
        swarm.peers[0].transport._handler = silent
        began = clock()
        async with swarm.client() as client:
            for _ in range(3):
                async with await client.open(500) as conversation:
                    assert await collect(conversation, PROMPT, 10) == reference
        assert clock() - began < 3 * 3


async def silent(_stream: object) -> None:
    await asyncio.sleep(10_000)


async def test_a_peer_that_failed_at_work_is_not_the_first_choice_of_the_next_conversation(
    folder: Path, reference: list[int]
) -> None:
    async with memory_swarm(folder, spans=[Span(0, 6), Span(0, 6)]) as swarm, swarm.client() as client:
        conversation = await client.open(500)
        gone = next(peer for peer in swarm.peers if peer.identity.peer_id == conversation.route.hops[0].peer)
        gone.transport.vanish()
        with pytest.raises(GenerationFailed):
            await collect(conversation, PROMPT, 10)
        began = clock()
        async with await client.open(500) as second:
            assert second.route.hops[0].peer != gone.identity.peer_id
            assert await collect(second, PROMPT, 10) == reference
        assert clock() - began < 3


async def test_the_directory_is_not_read_for_every_conversation(folder: Path) -> None:
    num_reads = 0
    async with memory_swarm(folder) as swarm, swarm.client() as client:
        lookup = client.view._directory.lookup

        async def counted(name: str) -> list[PeerRecord]:
            nonlocal num_reads
            num_reads += 1
            return await lookup(name)

        client.view._directory.lookup = counted  # type: ignore[method-assign]
        for _ in range(5):
            (await client.open(500)).close()
        assert num_reads == 1
        await asyncio.sleep(100)
        assert num_reads >= 3  # in the background


async def test_a_newcomer_is_found_when_it_is_needed(folder: Path, reference: list[int]) -> None:
    async with memory_swarm(folder) as swarm, swarm.client() as client:
        last = swarm.peers[2]
        directory = swarm.network.directory(last.identity)
        await directory.publish(replace(last.record, state=PeerState.GONE))
        with pytest.raises(NoRoute, match="blocks 4:6"):
            await client.open(500)
        await directory.publish(last.record)
        async with await client.open(500) as conversation:
            assert await collect(conversation, PROMPT, 10) == reference


async def test_another_config_and_another_protocol_are_told(folder: Path) -> None:
    async with memory_swarm(folder, spans=[Span(0, 6)]) as swarm:
        peer = swarm.peers[0]
        directory = swarm.network.directory(peer.identity)
        await directory.publish(replace(peer.record, protocol=1))
        async with swarm.client() as client:
            with pytest.raises(ConfigError, match="speak protocol version 1, this software 2: update"):
                await client.open(500)
        await directory.publish(replace(peer.record, model=ModelId("tiny", "0" * 8, "1" * 8)))
        async with swarm.client() as client:
            with pytest.raises(ConfigError, match="use the model folder that its peers use"):
                await client.open(500)
        swarm.network.records.clear()
        async with swarm.client() as client:
            with pytest.raises(ConfigError, match="no peer of this swarm serves tiny: start one"):
                await client.open(500)
