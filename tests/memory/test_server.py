"""What a peer does for sessions: cancelled, rewound, cut, repeated and unlucky waves."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace
from transformers import PreTrainedModel

from peer.plan import Outcome
from routing.domain import SessionId as Id
from routing.domain import Span
from routing.errors import PeerRefused
from routing.handshake import dial
from routing.messages import (
    Cancel,
    Done,
    Fault,
    Stale,
    Timing,
    Verdict,
    Wave,
)
from routing.reserved import Fetch, Handover, Leaving, Part, Renew, Replay
from tests.by_hand import (
    LAST,
    OTHER,
    PROMPT,
    SESSION,
    Hand,
    Listener,
    Run,
    assert_failed,
    next_wave,
    nodes,
    prompt_wave,
)
from tests.memory_swarm import generate, memory_swarm
from tests.tiny_models import assert_greedy


async def test_a_cancel_of_what_was_answered_changes_nothing(folder: Path, reference: list[int]) -> None:
    async with memory_swarm(folder) as swarm:
        hand = Hand(swarm)
        await hand.open()
        hand.streams[0].send(prompt_wave())
        assert await hand.hear_verdict() == (1, (), reference[0])
        for stream in hand.streams:
            stream.send(Cancel(SESSION, 0, 1, 1))
        hand.streams[0].send(next_wave(nodes=((LAST + 1, LAST, reference[0]),)))
        assert await hand.hear_verdict() == (2, (), reference[1])


async def test_cancelled_waves_are_not_computed_and_each_is_answered(folder: Path, reference: list[int]) -> None:
    num_rows: list[int] = []

    async def slow(run: Run) -> Sequence[Outcome]:
        await asyncio.sleep(0.3)
        outcomes = run()
        num_rows.extend(outcome.rows.num_rows for outcome in outcomes if outcome.rows is not None)
        return outcomes

    async with memory_swarm(folder, compute=slow) as swarm:
        hand = Hand(swarm)
        await hand.open(num_kv_tokens=2000)
        hand.streams[0].send(prompt_wave())
        assert await hand.hear_verdict() == (1, (), reference[0])
        num_rows.clear()
        last = LAST
        for wave in range(2, 6):  # a long second question, in four chunks
            chunk_of = nodes([5] * 100, last + 1)
            hand.streams[0].send(Wave(SESSION, 0, wave, last, last + 100 if wave == 5 else 0, chunk_of))
            last += 100
        await asyncio.sleep(0.5)
        for stream in hand.streams:
            stream.send(Cancel(SESSION, 0, 2, 5))
        answers = [await hand.hear(-1) for _ in range(4)]
        assert [answer.wave for answer in answers if isinstance(answer, Done | Stale)] == [2, 3, 4, 5]
        assert isinstance(answers[-1], Stale)
        assert sum(num_rows) <= 2 * 200
        hand.streams[0].send(Wave(SESSION, 0, 6, LAST, last + 1, ((last + 1, LAST, reference[0]),), rewind=True))
        assert await hand.hear_verdict() == (6, (), reference[1])


async def test_a_rewind_goes_back_and_the_text_goes_on_from_there(folder: Path, reference: list[int]) -> None:
    async with memory_swarm(folder) as swarm:
        hand = Hand(swarm)
        await hand.open()
        hand.streams[0].send(prompt_wave())
        assert await hand.hear_verdict() == (1, (), reference[0])
        wrong = nodes([9, 8, 7], LAST + 1)
        hand.streams[0].send(next_wave(nodes=wrong, start=LAST + 3))
        await hand.hear_verdict()
        hand.streams[0].send(Wave(SESSION, 0, 3, LAST + 3, 0, ((LAST + 4, LAST + 3, 6),)))
        assert isinstance(await hand.hear(-1), Done)
        hand.streams[0].send(Wave(SESSION, 0, 4, LAST + 1, 0, ()))  # behind the tip, without a word: nothing changes
        assert isinstance(await hand.hear(-1), Done)
        hand.streams[0].send(Wave(SESSION, 0, 5, LAST, LAST + 5, ((LAST + 5, LAST, reference[0]),), rewind=True))
        assert await hand.hear_verdict() == (5, (), reference[1])
        hand.streams[0].send(Wave(SESSION, 0, 6, 0, 0, (), rewind=True))  # to the very beginning
        assert isinstance(await hand.hear(-1), Done)
        hand.streams[0].send(Wave(SESSION, 0, 7, 0, LAST + 25, nodes(PROMPT, LAST + 10), rewind=True))
        fault = await hand.hear_fault(0)
        assert "hangs from node" in fault.text


async def test_a_prompt_that_a_hop_cuts_gives_the_same_text(folder: Path, oracle: PreTrainedModel) -> None:
    prompt = [(5 * i * i + i) % 256 for i in range(900)]
    async with memory_swarm(folder) as swarm, swarm.client() as client, await client.open(2000) as first:
        for peer in swarm.peers:
            peer.hop._passes._scheduler.cost.observe(256, 9.0)
        busy = Listener(first, PROMPT, 48)
        await busy.five_tokens()
        tokens, _ = await generate(swarm, prompt, 8)
        await busy.task
    assert_greedy(oracle, prompt, tokens)


async def test_sessions_share_a_link_with_the_least_credit(folder: Path, reference: list[int]) -> None:
    spans = [Span(0, 3), Span(3, 6)]
    async with memory_swarm(folder, spans=spans, num_kv_tokens=50_000, window=80_000) as swarm:
        answers = await asyncio.gather(*(generate(swarm, PROMPT * (1 + 9 * (i % 2)), 10) for i in range(20)))
    assert [tokens for tokens, _ in answers[::2]] == [reference[:10]] * 10
    assert len({tuple(tokens) for tokens, _ in answers[1::2]}) == 1


async def test_more_than_was_granted_is_refused(folder: Path) -> None:
    async with memory_swarm(folder, window=3000) as swarm:
        hand = Hand(swarm)
        await hand.open()
        hand.streams[0].send(Wave(SESSION, 0, 1, 0, 0, nodes([1] * 150)))
        fault = await hand.hear_fault(0)
        assert fault.code == "no-credit"
        assert "3000 bytes" in fault.text


async def test_a_pass_that_breaks_ends_its_sessions_and_the_peer_serves_on(folder: Path, reference: list[int]) -> None:
    is_broken = False

    async def compute(run: Run) -> Sequence[Outcome]:
        if is_broken:
            raise MemoryError("no room")
        return run()

    async with memory_swarm(folder, compute=compute) as swarm, swarm.client() as client:
        async with await client.open(500) as conversation:
            listener = Listener(conversation, PROMPT, 48)
            await listener.five_tokens()
            is_broken = True
            await assert_failed(listener, reference, "the forward pass failed: no room", conversation)
        is_broken = False
        assert (await generate(swarm, PROMPT, 10))[0] == reference[:10]


async def test_streams_of_one_identity_are_bounded_and_others_get_in(folder: Path, reference: list[int]) -> None:
    async with memory_swarm(folder) as swarm:
        hand = Hand(swarm)
        peer = swarm.peers[0].identity.peer_id
        hand.streams = [await dial(hand.transport, peer, ()) for _ in range(16)]
        with pytest.raises(PeerRefused, match="too many streams: 16 of yours"):
            await dial(hand.transport, peer, ())
        assert (await generate(swarm, PROMPT, 10))[0] == reference[:10]


async def test_a_kind_that_is_not_known_is_refused_by_name_and_the_stream_lives(folder: Path) -> None:
    async with memory_swarm(folder) as swarm:
        hand = Hand(swarm)
        await hand.dial()
        data = bytes([0x92, 99, 0xC4, 16]) + SESSION
        await hand.raw(struct.pack(">II", 0, len(data)) + data)
        fault = await hand.hear_fault(0)
        assert (fault.code, fault.session) == ("unsupported", SESSION)
        assert "kind 99" in fault.text
        reserved = (
            Renew(SESSION, 0),
            Replay(SESSION, 0, 1, 2),
            Leaving(5.0),
            Handover(SESSION, 0, "peer"),
            Fetch(1, "norm", 0, 5),
            Part(1, memoryview(b"x")),
        )
        for message in reserved:
            hand.streams[0].send(message)
            fault = await hand.hear_fault(0)
            assert fault.code == "unsupported"
            assert type(message).__name__ in fault.text
        hand.streams[0].send(Fault("unsupported", "messages of kind 9 are not in this version"))
        await hand.open()


async def test_a_repeated_wave_gets_the_same_verdict_and_is_not_computed_twice(
    folder: Path, reference: list[int]
) -> None:
    num_passes = 0

    async def counted(run: Run) -> Sequence[Outcome]:
        nonlocal num_passes
        num_passes += 1
        return run()

    async with memory_swarm(folder, compute=counted) as swarm:
        hand = Hand(swarm)
        await hand.open()
        for _ in range(3):
            hand.streams[0].send(prompt_wave())
            assert await hand.hear_verdict() == (1, (), reference[0])
        assert num_passes == 3
        hand.streams[0].send(next_wave(nodes=((LAST + 1, LAST, reference[0]),)))
        assert await hand.hear_verdict() == (2, (), reference[1])


async def test_a_wave_repeated_before_its_answer_does_not_overtake_itself(folder: Path, reference: list[int]) -> None:
    async def slow(run: Run) -> Sequence[Outcome]:
        await asyncio.sleep(0.2)
        return run()

    async with memory_swarm(folder, compute=slow) as swarm:
        hand = Hand(swarm)
        await hand.open()
        hand.streams[0].send(prompt_wave())
        hand.streams[0].send(prompt_wave())
        assert await hand.hear_verdict() == (1, (), reference[0])
        hand.streams[0].send(next_wave(nodes=((LAST + 1, LAST, reference[0]),)))
        assert await hand.hear_verdict() == (2, (), reference[1])


async def test_who_waits_behind_a_bad_wave_is_served(folder: Path, reference: list[int]) -> None:
    async def slow(run: Run) -> Sequence[Outcome]:
        await asyncio.sleep(0.2)
        return run()

    async with memory_swarm(folder, (0, 6), compute=slow) as swarm:
        hand = Hand(swarm)
        third = Id(bytes(range(32, 48)))
        for session in (OTHER, SESSION, third):
            await hand.open(session)
        hand.streams[0].send(prompt_wave(third))  # keeps the peer at work until the next two are there
        await asyncio.sleep(0.1)
        hand.streams[0].send(Wave(OTHER, 0, 1, 99, 1, nodes([1] * 100)))
        hand.streams[0].send(prompt_wave())
        answers = [await hand.hear(0) for _ in range(3)]
        assert [type(answer).__name__ for answer in answers] == ["Verdict", "Fault", "Verdict"]
        assert isinstance(answers[2], Verdict)
        assert (answers[2].session, answers[2].next_token) == (SESSION, reference[0])


async def test_timings_that_fill_a_wave_do_not_end_the_stream_to_the_next_hop(
    folder: Path, reference: list[int]
) -> None:
    async with memory_swarm(folder) as swarm:
        hand = Hand(swarm)
        await hand.open()
        hand.streams[0].send(replace(prompt_wave(), timings=(Timing(1, 0.0, 0.0),) * 64))
        assert await hand.hear_verdict() == (1, (), reference[0])


async def test_rows_too_large_for_a_message_end_their_session_and_no_other(
    folder: Path, reference: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_swarm(folder) as swarm:
        hand = Hand(swarm)
        await hand.open()
        monkeypatch.setattr("routing.wire.MAX_MESSAGE_BYTES", 20_000)
        hand.streams[0].send(Wave(SESSION, 0, 1, 0, 0, nodes([1] * 400)))
        fault = await hand.hear_fault(0)
        assert (fault.code, fault.session) == ("bad-wave", SESSION)
        assert "over the limit of 20000" in fault.text
        assert (await generate(swarm, PROMPT, 10))[0] == reference[:10]
