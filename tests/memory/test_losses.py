"""Hops that go away or hang, and bytes that are no messages: one fault a test."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from peer.plan import Outcome
from routing.domain import short
from routing.errors import PeerUnreachable
from routing.handshake import dial
from routing.in_memory import MemoryTransport
from routing.messages import (
    Verdict,
)
from routing.wire_types import MAX_MESSAGE_BYTES
from tests.by_hand import (
    PROMPT,
    SESSION,
    Hand,
    Listener,
    Run,
    assert_failed,
    chunk,
    num_sessions,
    prompt_wave,
)
from tests.memory_swarm import generate, inline, memory_swarm


@pytest.mark.parametrize("hop", [0, 1, 2])
async def test_a_hop_that_vanishes_ends_the_answer_with_its_name_and_the_tokens_so_far(
    folder: Path, reference: list[int], hop: int
) -> None:
    async with memory_swarm(folder) as swarm, swarm.client() as client, await client.open(500) as conversation:
        listener = Listener(conversation, PROMPT, 48)
        await listener.five_tokens()
        gone = swarm.peers[hop]
        gone.transport.vanish()
        text = f"the peer {short(gone.identity.peer_id)} with the blocks {gone.record.span} was lost"
        await assert_failed(listener, reference, text, conversation)
        conversation.close()
        await asyncio.sleep(1)
        assert [sessions for index, sessions in enumerate(num_sessions(swarm)) if index != hop] == [0, 0]


async def test_a_line_between_two_hops_that_is_cut_ends_the_answer_with_both_their_names(
    folder: Path, reference: list[int]
) -> None:
    async with memory_swarm(folder) as swarm, swarm.client() as client, await client.open(500) as conversation:
        listener = Listener(conversation, PROMPT, 48)
        await listener.five_tokens()
        here, there = (peer.identity.peer_id for peer in swarm.peers[:2])
        swarm.peers[0].server._links._links[there]._stream._writer.close()
        text = f"the peer {short(here)} with the blocks 0:2 can't go on: peer {short(there)}: "
        await assert_failed(listener, reference, text, conversation)
        conversation.close()
        assert (await generate(swarm, PROMPT, 10))[0] == reference[:10]


@pytest.mark.parametrize("hop", [0, 1, 2])
async def test_a_hop_that_is_stopped_is_named(folder: Path, reference: list[int], hop: int) -> None:
    async with memory_swarm(folder) as swarm, swarm.client() as client, await client.open(500) as conversation:
        listener = Listener(conversation, PROMPT, 48)
        await listener.five_tokens()
        stopped = swarm.peers[hop]
        stopped.transport.fall_silent()
        text = (
            f"the peer {short(stopped.identity.peer_id)} with the blocks {stopped.record.span} does not answer any more"
        )
        await assert_failed(listener, reference, text, conversation)


async def test_a_hop_whose_passes_hang_ends_the_answer_after_a_deadline(folder: Path, reference: list[int]) -> None:
    is_silent = False

    async def compute(run: Run) -> Sequence[Outcome]:
        if is_silent:
            await asyncio.Event().wait()
        return await inline(run)

    async with (
        memory_swarm(folder, compute=compute) as swarm,
        swarm.client() as client,
        await client.open(500) as conversation,
    ):
        listener = Listener(conversation, PROMPT, 48)
        await listener.five_tokens()
        is_silent = True
        await assert_failed(listener, reference, "no answer within 60 s: a hop of 0:2 at ..", conversation)


@pytest.mark.parametrize("is_greeted", [False, True], ids=["before the greeting", "after it"])
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (bytes(range(100, 256)), "over the limit of 65536"),
        (struct.pack(">II", 0, 5) + b"\xc1junk", "not a message of protocol version 2"),
        (struct.pack(">II", 0, 0), "not a message"),
        (struct.pack(">II", 0, 3) + bytes([0x92, 0, 0]), "not a message"),
        (struct.pack(">II", 0, 65537) + bytes(65537), "a chunk of 65537 bytes"),
        (
            (struct.pack(">II", 0, 65536 | 1 << 31) + bytes(65536)) * (MAX_MESSAGE_BYTES // 65536 + 1),
            "messages of over",
        ),
        (b"".join(struct.pack(">II", lane, 1 << 31) for lane in range(1025)), "over 1024 at once"),
        (chunk(Verdict(SESSION, 0, 1, (), 1)), "Verdict"),
    ],
    ids=["noise", "junk", "empty", "no kind", "large chunk", "large message", "many lanes", "out of place"],
)
async def test_bytes_that_are_no_message_get_an_error_and_the_peer_serves_on(
    folder: Path, reference: list[int], is_greeted: bool, data: bytes, text: str
) -> None:
    async with memory_swarm(folder) as swarm:
        hand = Hand(swarm)
        peer = swarm.peers[0]
        connect = dial if is_greeted else MemoryTransport.connect
        hand.streams = [await connect(hand.transport, peer.identity.peer_id, ())]
        await asyncio.sleep(1)
        await hand.raw(data)
        fault = await hand.hear_fault(0)
        assert (fault.code, fault.session) == ("malformed", b"")
        assert text in fault.text
        with pytest.raises(PeerUnreachable, match="goodbye"):
            await hand.hear(0)
        assert peer.hop.num_wire_errors == 1
        assert (await generate(swarm, PROMPT, 10))[0] == reference[:10]


async def test_a_frame_that_is_cut_off_is_counted_and_frees_the_sessions_of_its_stream(
    folder: Path, reference: list[int]
) -> None:
    async with memory_swarm(folder) as swarm:
        hand = Hand(swarm)
        await hand.open()
        await hand.raw(chunk(prompt_wave())[:-3])
        hand.streams[0]._writer.close()
        await asyncio.sleep(1)
        assert num_sessions(swarm) == [0, 0, 0]
        assert swarm.peers[0].hop.num_wire_errors == 1
        assert (await generate(swarm, PROMPT, 10))[0] == reference[:10]


async def test_who_says_nothing_is_sent_away(folder: Path, reference: list[int]) -> None:
    async with memory_swarm(folder) as swarm:
        hand = Hand(swarm)
        hand.streams = [await hand.transport.connect(swarm.peers[0].identity.peer_id, ())]
        assert "no greeting within 10 s" in (await hand.hear_fault(0)).text
        assert (await generate(swarm, PROMPT, 10))[0] == reference[:10]
