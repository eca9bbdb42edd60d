"""How sessions are opened and refused, and what frees them."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from routing.domain import short
from routing.errors import GenerationFailed, PeerBusy, PeerRefused
from routing.in_memory import MemoryTransport
from routing.messages import (
    Busy,
    Close,
    HopEntry,
    Open,
)
from tests.by_hand import (
    OTHER,
    PROMPT,
    SESSION,
    Hand,
    Listener,
    chunk,
    free_kv_tokens,
    num_sessions,
    prompt_wave,
)
from tests.memory_swarm import collect, memory_swarm


def with_hops(message: Open, *spans: tuple[int, int]) -> Open:
    hops = zip(message.route, spans, strict=False)
    return replace(message, route=tuple(HopEntry(hop.peer, start, end) for hop, (start, end) in hops))


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        (lambda m: replace(m, model="tiny@0-0"), "wrong-model", "not tiny@0-0"),
        (lambda m: replace(m, index=1), "wrong-peer", "another peer"),
        (lambda m: replace(m, index=3), "malformed", "hop 3 of a route of 3"),
        (lambda m: with_hops(m, (0, 3), (2, 6)), "malformed", "go on at block 3, not at 2"),
        (lambda m: with_hops(m, (0, 3), (3, 6)), "wrong-span", "the blocks 0:2 of 6, not 0:3 of 6"),
        (lambda m: with_hops(m, (0, 2), (2, 4)), "wrong-span", "the blocks 0:2 of 6, not 0:2 of 4"),
        (lambda m: with_hops(m, (0, 0)), "malformed", "has no blocks"),
        (lambda m: replace(m, num_kv_tokens=0), "too-long", "0 tokens"),
        (lambda m: replace(m, num_kv_tokens=10_001), "too-long", "more than all the 10000"),
        (lambda m: replace(m, sampling={"temperature": math.nan}), "malformed", "temperature nan"),
        (lambda m: replace(m, sampling={"relax": 0.5}), "malformed", "can't draw with 'relax'"),
    ],
    ids=[
        "wrong model",
        "a route that names another peer here",
        "an index outside the route",
        "a route that does not chain",
        "wrong span",
        "a route of another length",
        "an empty span",
        "no tokens",
        "more tokens than there are",
        "not a number",
        "adaptive verification",
    ],
)
async def test_an_open_that_can_not_be_met_is_refused(
    folder: Path, change: Callable[[Open], Open], code: str, text: str
) -> None:
    async with memory_swarm(folder) as swarm:
        hand = Hand(swarm)
        await hand.dial()
        hand.streams[0].send(change(hand.open_message(0)))
        fault = await hand.hear_fault(0)
        assert (fault.code, fault.session) == (code, SESSION)
        assert text in fault.text
        assert num_sessions(swarm) == [0, 0, 0]
        await hand.open()
        hand.streams[0].send(prompt_wave())
        assert (await hand.hear_verdict())[0] == 1


async def test_a_session_that_is_open_is_not_opened_again(folder: Path) -> None:
    async with memory_swarm(folder) as swarm:
        hand = Hand(swarm)
        await hand.open()
        hand.streams[0].send(hand.open_message(0))
        assert (await hand.hear_fault(0)).code == "unsupported"
        hand.streams[0].send(prompt_wave())
        assert (await hand.hear_verdict())[0] == 1


async def test_more_tokens_than_are_free_is_busy_until_they_are(folder: Path) -> None:
    async with memory_swarm(folder, num_kv_tokens=1000) as swarm:
        hand = Hand(swarm)
        await hand.open(num_kv_tokens=600)
        hand.streams[0].send(hand.open_message(0, OTHER, 401))
        busy = await hand.hear(0)
        assert isinstance(busy, Busy)
        assert busy.session == OTHER
        for stream in hand.streams:
            stream.send(Close(SESSION))
        await hand.open(OTHER, 1000)


async def test_a_close_right_behind_an_open_leaves_nothing_open(folder: Path) -> None:
    async with memory_swarm(folder) as swarm:
        hand = Hand(swarm)
        await hand.dial()
        await hand.raw(chunk(hand.open_message(0)) + chunk(Close(SESSION)))
        await asyncio.sleep(1)
        assert num_sessions(swarm) == [0, 0, 0]


async def test_a_next_hop_that_is_not_there_is_a_fault_of_the_hop_before(folder: Path) -> None:
    async with memory_swarm(folder) as swarm:
        hand = Hand(swarm)
        await hand.dial()
        swarm.peers[1].transport.vanish()
        hand.streams[0].send(hand.open_message(0))
        fault = await hand.hear_fault(0)
        assert fault.code == "hop-lost"
        assert short(swarm.peers[1].identity.peer_id) in fault.text
        assert num_sessions(swarm)[0] == 0


async def test_a_next_hop_that_is_lost_between_two_waves_is_told_to_the_client(folder: Path) -> None:
    async with memory_swarm(folder) as swarm:
        hand = Hand(swarm)
        await hand.open()
        swarm.peers[1].transport.vanish()
        fault = await hand.hear_fault(0)
        assert (fault.code, fault.session) == ("hop-lost", SESSION)
        assert short(swarm.peers[1].identity.peer_id) in fault.text
        assert num_sessions(swarm)[0] == 0


async def test_busy_reaches_who_opens_and_nothing_stays_open_elsewhere(folder: Path, reference: list[int]) -> None:
    async with memory_swarm(folder) as swarm, swarm.client() as client, swarm.client() as second:
        swarm.peers[2].hop.served = dataclasses.replace(swarm.peers[2].hop.served, num_kv_tokens=1000)
        async with await client.open(500) as conversation:
            with pytest.raises(PeerBusy, match="is full; try again in 10 s") as raised:
                await second.open(500)
            assert raised.value.peer == swarm.peers[2].identity.peer_id
            await asyncio.sleep(1)
            assert num_sessions(swarm) == [1, 1, 1]
            assert await collect(conversation, PROMPT, 10) == reference[:10]
        async with await second.open(500) as conversation:
            assert await collect(conversation, PROMPT, 10) == reference[:10]


async def test_more_than_a_peer_has_room_for_is_refused_to_who_opens(folder: Path) -> None:
    async with memory_swarm(folder, num_kv_tokens=1000) as swarm, swarm.client() as client:
        with pytest.raises(PeerRefused, match="1128 tokens are more than all the 1000"):
            await client.open(1000)
        assert num_sessions(swarm) == [0, 0, 0]


async def test_close_frees_a_session_at_every_hop(folder: Path) -> None:
    async with memory_swarm(folder) as swarm, swarm.client() as client:
        async with await client.open(500) as conversation:
            await collect(conversation, PROMPT, 5)
            assert free_kv_tokens(swarm) == [10_000 - 500 - 128] * 3
        await asyncio.sleep(1)
        assert num_sessions(swarm) == [0, 0, 0]
        assert free_kv_tokens(swarm) == [10_000] * 3


async def test_a_close_goes_down_the_route_from_hop_to_hop(folder: Path) -> None:
    async with memory_swarm(folder) as swarm:
        hand = Hand(swarm)
        await hand.open()
        hand.streams[0].send(Close(SESSION))
        await asyncio.sleep(1)
        assert num_sessions(swarm) == [0, 0, 0]


async def test_a_client_that_vanishes_in_an_answer_frees_its_session_at_every_hop(folder: Path) -> None:
    async with memory_swarm(folder) as swarm, swarm.client() as client, await client.open(500) as conversation:
        listener = Listener(conversation, PROMPT, 48)
        await listener.five_tokens()
        assert num_sessions(swarm) == [1, 1, 1]
        transport = client._transport
        assert isinstance(transport, MemoryTransport)
        transport.vanish()
        with pytest.raises(GenerationFailed):
            await listener.task
        await asyncio.sleep(1)
        assert num_sessions(swarm) == [0, 0, 0]


async def test_an_idle_session_is_freed_and_its_client_told(folder: Path) -> None:
    async with memory_swarm(folder) as swarm, swarm.client() as client, await client.open(500) as conversation:
        await collect(conversation, PROMPT, 5)
        await asyncio.sleep(590)
        assert num_sessions(swarm) == [1, 1, 1]
        await collect(conversation, PROMPT, 5)
        await asyncio.sleep(590)
        assert num_sessions(swarm) == [1, 1, 1]
        await asyncio.sleep(100)
        assert num_sessions(swarm) == [0, 0, 0]
        with pytest.raises(GenerationFailed, match="said nothing for 600 s"):
            await collect(conversation, PROMPT, 5)
