"""What a peer does when others do what they should not, or go away: one fault a test."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace
from transformers import PreTrainedModel

from peer.plan import Outcome
from routing.domain import Hop, Route, SamplingParams, Span, short
from routing.domain import SessionId as Id
from routing.errors import GenerationFailed, PeerBusy, PeerRefused, PeerUnreachable
from routing.handshake import dial
from routing.identity import Identity
from routing.in_memory import MemoryTransport
from routing.messages import (
    Busy,
    Cancel,
    Close,
    Done,
    Fault,
    HopEntry,
    Message,
    Open,
    Opened,
    Rows,
    Stale,
    Timing,
    Verdict,
    Wave,
)
from routing.reserved import Fetch, Renew, Replay
from routing.streams import MessageStream
from routing.wire import encode, open_message
from routing.wire_types import MAX_MESSAGE_BYTES
from swarm.conversation import Conversation
from tests.memory_swarm import MemorySwarm, collect, generate, inline, memory_swarm
from tests.tiny_models import assert_greedy, greedy, make_llama, plain

PROMPT = list(b"A swarm answers.")
SESSION = Id(bytes(range(16)))
OTHER = Id(bytes(range(16, 32)))
HIDDEN = 64
Run = Callable[[], Sequence[Outcome]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def oracle(folder: Path) -> PreTrainedModel:
    return plain(folder)


@pytest.fixture(scope="module")
def reference(oracle: PreTrainedModel) -> list[int]:
    return greedy(oracle, PROMPT, 48)


# --- a client by hand


class Hand:
    """Says to the peers of a swarm whatever a test wants."""

    def __init__(self, swarm: MemorySwarm, seed: int = 77) -> None:
        self.swarm = swarm
        identity = Identity(bytes([seed] * 32))
        self.id = identity.peer_id
        self.transport: MemoryTransport = swarm.network.join(identity)
        self.streams: list[MessageStream] = []
        self.model = str(swarm.peers[0].model)
        self.route = Route(tuple(Hop(peer.identity.peer_id, peer.record.span) for peer in swarm.peers))

    async def dial(self) -> None:
        self.streams = [await dial(self.transport, peer.identity.peer_id, ()) for peer in self.swarm.peers]

    def open_message(self, index: int, session: Id = SESSION, num_kv_tokens: int = 500) -> Open:
        return open_message(session, 0, self.model, index, self.route, num_kv_tokens, SamplingParams())

    async def open(self, session: Id = SESSION, num_kv_tokens: int = 500) -> None:
        """A session at every real hop of the route."""
        if not self.streams:
            await self.dial()
        for index, stream in enumerate(self.streams):
            if self.route.hops[index].peer != self.id:
                stream.send(self.open_message(index, session, num_kv_tokens))
                opened = await self.hear(index)
                assert isinstance(opened, Opened), opened
                assert (opened.session, opened.num_kv_tokens) == (session, num_kv_tokens)

    async def hear(self, index: int) -> Message:
        async with asyncio.timeout(100):
            return await self.streams[index].receive()

    async def hear_fault(self, index: int) -> Fault:
        message = await self.hear(index)
        assert isinstance(message, Fault), message
        return message

    async def hear_verdict(self) -> tuple[int, tuple[int, ...], int]:
        message = await self.hear(-1)
        assert isinstance(message, Verdict), message
        return message.wave, message.path, message.next_token

    async def raw(self, data: bytes, index: int = 0) -> None:
        """Bytes as they are."""
        self.streams[index]._writer.write(data)


def nodes(tokens: Sequence[int], first: int = 1) -> tuple[tuple[int, int, int], ...]:
    """A chain."""
    return tuple((first + i, first + i - 1, token) for i, token in enumerate(tokens))


def prompt_wave(session: Id = SESSION) -> Wave:
    return Wave(session, 0, 1, 0, len(PROMPT), nodes(PROMPT))


def next_wave(**changes: object) -> Wave:
    """A good second wave, but for the changes."""
    last = len(PROMPT)
    return replace(Wave(SESSION, 0, 2, last, last + 1, ((last + 1, last, 5),)), **changes)


def chunk(message: Message, lane: int = 0) -> bytes:
    data = encode(message)
    return struct.pack(">II", lane, len(data)) + data


def num_sessions(swarm: MemorySwarm) -> list[int]:
    return [peer.hop.num_sessions for peer in swarm.peers]


def free_kv_tokens(swarm: MemorySwarm) -> list[int]:
    return [peer.hop.num_free_kv_tokens for peer in swarm.peers]


class Listener:
    """Reads an answer in a task of its own."""

    def __init__(self, conversation: Conversation, prompt: Sequence[int], max_tokens: int) -> None:
        self.heard: list[int] = []
        self._enough = asyncio.Event()
        self.task = asyncio.create_task(self._listen(conversation, prompt, max_tokens))

    async def five_tokens(self) -> None:
        await self._enough.wait()

    async def _listen(self, conversation: Conversation, prompt: Sequence[int], max_tokens: int) -> None:
        async for tokens in conversation.ask(prompt, max_tokens):
            self.heard += tokens
            if len(self.heard) >= 5:
                self._enough.set()


# --- opening


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
        (lambda m: with_hops(m, (0, 3), (3, 6)), "wrong-span", "the blocks 0:2, not 0:3"),
        (lambda m: with_hops(m, (0, 2), (2, 4)), "wrong-span", "this peer serves the blocks 0:2"),
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


# --- waves that must not be


WIDE = Rows("float32", 1, HIDDEN, memoryview(bytes(4 * HIDDEN)))
LAST = len(PROMPT)


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
        for message in (Renew(SESSION, 0), Replay(SESSION, 0, 1, 2), Fetch(1, "norm", 0, 5)):
            hand.streams[0].send(message)
            fault = await hand.hear_fault(0)
            assert fault.code == "unsupported"
            assert type(message).__name__ in fault.text
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


# --- what is freed


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


# --- hops that go away


async def assert_failed(listener: Listener, reference: list[int], text: str, conversation: Conversation) -> None:
    with pytest.raises(GenerationFailed) as raised:
        await listener.task
    assert 5 <= len(listener.heard) < 48
    assert listener.heard == list(raised.value.tokens) == reference[: len(listener.heard)]
    assert f"after {len(listener.heard)} tokens" in str(raised.value)
    assert text in str(raised.value)
    with pytest.raises(GenerationFailed, match="lost its route: open a new one"):
        await collect(conversation, PROMPT, 5)


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


# --- bytes that are no messages


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
