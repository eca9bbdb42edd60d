"""Waves and rows that can not be: each ends its session and no other."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest
from msgspec.structs import replace

from routing.domain import Hop, Route, Span
from routing.messages import (
    Close,
    Done,
    Rows,
    Wave,
)
from tests.by_hand import (
    HIDDEN,
    LAST,
    OTHER,
    PROMPT,
    SESSION,
    WIDE,
    Hand,
    Listener,
    next_wave,
    nodes,
    num_sessions,
    prompt_wave,
)
from tests.memory_swarm import memory_swarm


@pytest.mark.parametrize(
    ("wave", "code", "text"),
    [
        (next_wave(wave=3), "out-of-order", "wave 3 after 1"),
        (next_wave(epoch=1), "unsupported", "epoch 1 of a session in epoch 0"),
        (next_wave(if_tip=(1, 1)), "unsupported", "waves in flight"),
        (next_wave(last_hop=1), "unsupported", "replays"),
        (next_wave(commit=99), "bad-wave", "node 99 is not in the tree"),
        (next_wave(nodes=((LAST + 1, 99, 5),)), "bad-wave", "hangs from node 99"),
        (next_wave(nodes=((LAST, LAST, 5),), start=LAST), "bad-wave", "must come after"),
        (next_wave(nodes=((LAST + 1, LAST + 1, 5),)), "bad-wave", "hangs from node 17"),
        (next_wave(start=LAST), "bad-wave", "start at node 16, which is not in the wave"),
        (next_wave(nodes=((LAST + 1, LAST, 256),)), "bad-wave", "token 256 is not in the model's vocabulary of 256"),
        (next_wave(nodes=nodes([5] * 600, LAST + 1), start=LAST + 600), "bad-wave", "longer than the 500 tokens"),
        (next_wave(nodes=nodes([5] * 200, LAST + 1)), "bad-wave", "more than 160 nodes are to be verified"),
        (next_wave(nodes=()), "bad-wave", "start at node 17, which is not in the wave"),
        (next_wave(first_row=3), "out-of-order", "not from node 3 on"),
        (next_wave(weights=b"x"), "unsupported", "draft weights"),
        (next_wave(digest=b"x"), "unsupported", "digests of rows"),
    ],
    ids=[
        "out of order",
        "another epoch",
        "in flight",
        "replay",
        "unknown commit",
        "unknown parent",
        "an id twice",
        "its own parent",
        "a start outside the wave",
        "a token outside the vocabulary",
        "more tokens than granted",
        "too much to verify",
        "a walk and no nodes",
        "a part that does not follow",
        "draft weights",
        "a digest",
    ],
)
async def test_a_wave_that_can_not_be_ends_its_session_and_no_other(
    folder: Path, reference: list[int], wave: Wave, code: str, text: str
) -> None:
    async with memory_swarm(folder) as swarm, swarm.client() as client, await client.open(500) as conversation:
        listener = Listener(conversation, PROMPT, 48)
        hand = Hand(swarm)
        await hand.open()
        hand.streams[0].send(prompt_wave())
        assert await hand.hear_verdict() == (1, (), reference[0])
        await listener.five_tokens()
        hand.streams[0].send(wave)
        fault = await hand.hear_fault(0)
        assert (fault.code, fault.session, fault.wave) == (code, SESSION, wave.wave)
        assert text in fault.text
        await listener.task
        assert listener.heard == reference
        assert num_sessions(swarm) == [1, 1, 1]


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (None, "it has none"),
        (Rows("float32", 1, HIDDEN // 2, memoryview(bytes(2 * HIDDEN))), "it has 1 x 32 float32"),
        (Rows("float32", 2, HIDDEN, memoryview(bytes(8 * HIDDEN))), "it has 2 x 64 float32"),
        (Rows("float32", 1, HIDDEN, memoryview(bytes(4 * HIDDEN - 1))), "are not 255 bytes"),
        (Rows("int8", 1, HIDDEN, memoryview(bytes(HIDDEN))), "it has 1 x 64 int8"),
        (Rows("float32", 1, HIDDEN, memoryview(struct.pack("<f", math.nan) * HIDDEN)), "logits are not finite"),
        (Rows("float32", 1, HIDDEN, memoryview(struct.pack("<f", math.inf) * HIDDEN)), "logits are not finite"),
        (Rows("bfloat16", 1, HIDDEN, memoryview(b"\xff" * 2 * HIDDEN)), "logits are not finite"),
    ],
    ids=["none", "wrong width", "wrong number", "too few bytes", "wrong dtype", "not a number", "infinite", "bfloat16"],
)
@pytest.mark.parametrize("hop", [1, 2], ids=["middle", "last"])
async def test_rows_that_can_not_be_end_their_session_and_no_other(
    folder: Path, reference: list[int], hop: int, rows: Rows | None, text: str
) -> None:
    async with memory_swarm(folder) as swarm, swarm.client() as client, await client.open(500) as conversation:
        listener = Listener(conversation, PROMPT, 48)
        hand = Hand(swarm)
        own = Hop(hand.id, Span(0, 2 * hop))  # the test itself is the hop before
        hand.route = Route((own, *hand.route.hops[hop:]))
        await hand.dial()
        del hand.streams[1:hop]
        await hand.open()
        await listener.five_tokens()
        hand.streams[1].send(Wave(SESSION, 0, 1, 0, 1, ((1, 0, 5),), rows))
        fault = await hand.hear_fault(-1 if "finite" in text else 1)
        assert fault.session == SESSION
        assert text in fault.text
        await listener.task
        assert listener.heard == reference


async def test_good_rows_by_hand_are_taken(folder: Path) -> None:
    async with memory_swarm(folder) as swarm:
        hand = Hand(swarm)
        hand.route = Route((Hop(hand.id, Span(0, 2)), *hand.route.hops[1:]))
        await hand.open()
        hand.streams[1].send(Wave(SESSION, 0, 1, 0, 1, ((1, 0, 5),), WIDE))
        assert (await hand.hear_verdict())[:2] == (1, ())
        hand.streams[1].send(Wave(SESSION, 0, 2, 1, 0, ((2, 1, 5),), WIDE))
        assert isinstance(await hand.hear(-1), Done)


async def test_a_wave_that_is_not_from_the_hop_before_is_refused_and_counted(
    folder: Path, reference: list[int]
) -> None:
    async with memory_swarm(folder) as swarm:
        hand, stranger = Hand(swarm), Hand(swarm, 78)
        await hand.open()
        await stranger.dial()
        for index in range(3):
            stranger.streams[index].send(replace(prompt_wave(), rows=WIDE))
            fault = await stranger.hear_fault(index)
            assert (fault.code, fault.session) == ("unauthorized", SESSION)
            stranger.streams[index].send(Close(SESSION))
        hand.streams[2].send(replace(prompt_wave(), rows=WIDE))  # its own client is not the hop before
        assert (await hand.hear_fault(2)).code == "unauthorized"
        assert [peer.hop.num_wire_errors for peer in swarm.peers] == [1, 1, 2]
        hand.streams[0].send(prompt_wave())
        assert await hand.hear_verdict() == (1, (), reference[0])


async def test_a_wave_of_an_unknown_session_is_a_fault_of_it_alone(folder: Path, reference: list[int]) -> None:
    async with memory_swarm(folder) as swarm:
        hand = Hand(swarm)
        await hand.open()
        hand.streams[0].send(prompt_wave(OTHER))
        fault = await hand.hear_fault(0)
        assert (fault.code, fault.session, fault.wave) == ("unknown-session", OTHER, 1)
        hand.streams[0].send(prompt_wave())
        assert await hand.hear_verdict() == (1, (), reference[0])
