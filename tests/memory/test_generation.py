"""The text of a swarm is plain transformers' own, token for token, however it is cut, drafted and verified."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from peer.plan import Outcome
from routing.domain import SamplingParams, Span
from routing.errors import ConfigError, GenerationFailed, PeerBusy, PeerRefused
from routing.messages import Verdict
from tests.memory_swarm import collect, generate, memory_swarm
from tests.proposers import Knowing
from tests.tiny_models import assert_greedy, greedy, make_llama, plain

CUTS = ((0, 6), (0, 2, 6), (0, 1, 4, 6))
PROMPTS = [list(text) for text in (b"A swarm answers.", b"x", b"one two one two one two one", bytes(range(200, 256)))]
NUM_TOKENS = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def oracle(folder: Path) -> PreTrainedModel:
    return plain(folder)


@pytest.fixture(scope="module")
def references(oracle: PreTrainedModel) -> list[list[int]]:
    return [greedy(oracle, prompt, NUM_TOKENS) for prompt in PROMPTS]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("speculation", [0, 4, None], ids=["off", "n-gram chain", "n-gram auto"])
async def test_greedy_text_is_plain_transformers_own(
    folder: Path, oracle: PreTrainedModel, cuts: tuple[int, ...], speculation: int | None
) -> None:
    async with memory_swarm(folder, cuts) as swarm:
        for prompt in PROMPTS:
            tokens, stats = await generate(swarm, prompt, NUM_TOKENS, speculation=speculation)
            assert len(tokens) == NUM_TOKENS == stats.num_tokens
            assert_greedy(oracle, prompt, tokens)


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize(
    ("siblings", "wrong_from", "accepted"),
    [(0, None, 4), (1, None, 4), (2, 2, 2), (0, 0, 0)],
    ids=["right chain", "wrong siblings", "a tree that is wrong from depth 2 on", "all wrong"],
)
async def test_drafts_change_the_rounds_and_not_the_text(
    folder: Path,
    references: list[list[int]],
    cuts: tuple[int, ...],
    siblings: int,
    wrong_from: int | None,
    accepted: int,
) -> None:
    async with memory_swarm(folder, cuts) as swarm:
        for prompt, reference in zip(PROMPTS, references, strict=True):
            proposer = Knowing([*prompt, *reference], siblings=siblings, wrong_from=wrong_from)
            tokens, stats = await generate(swarm, prompt, NUM_TOKENS, speculation=32, proposer=proposer)
            assert tokens == reference
            rounds = -(-(NUM_TOKENS - 1) // (accepted + 1))
            assert stats.num_round_trips == 1 + rounds
            assert stats.num_accepted >= accepted * (rounds - 1)
            if accepted >= 2:
                assert stats.mean_acceptance_length >= 1 + 0.9 * accepted - 0.5


@pytest.mark.parametrize("speculation", [0, 6, None], ids=["off", "n-gram", "auto"])
async def test_the_same_seed_gives_the_same_text(folder: Path, speculation: int | None) -> None:
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=7)
    async with memory_swarm(folder) as swarm:
        expected, _ = await generate(swarm, PROMPTS[2], NUM_TOKENS, params=params)
        again, _ = await generate(swarm, PROMPTS[2], NUM_TOKENS, params=params, speculation=speculation)
        knowing = Knowing([*PROMPTS[2], *expected], siblings=1)
        drafted, stats = await generate(swarm, PROMPTS[2], NUM_TOKENS, params=params, speculation=32, proposer=knowing)
        other, _ = await generate(swarm, PROMPTS[2], NUM_TOKENS, params=SamplingParams(0.8, 0, 0.9, 8))
    assert again == expected == drafted
    assert stats.mean_acceptance_length > 3
    assert other != expected


async def test_a_long_prompt_goes_in_chunks(folder: Path, oracle: PreTrainedModel) -> None:
    prompt = [(7 * i * i + i) % 256 for i in range(700)]
    async with memory_swarm(folder) as swarm:
        tokens, stats = await generate(swarm, prompt, 8)
    assert_greedy(oracle, prompt, tokens)
    assert stats.num_round_trips == 8


async def test_a_second_question_goes_on_from_the_first_answer(folder: Path, oracle: PreTrainedModel) -> None:
    async with memory_swarm(folder) as swarm, swarm.client() as client, await client.open(500) as conversation:
        first = await collect(conversation, PROMPTS[0], 10)
        second = await collect(conversation, PROMPTS[2], 10)
        assert conversation.stats.num_prompt_tokens == len(PROMPTS[2])
        assert conversation.num_tokens == len(PROMPTS[0]) + len(PROMPTS[2]) + 20
    assert_greedy(oracle, PROMPTS[0], first)
    assert_greedy(oracle, [*PROMPTS[0], *first, *PROMPTS[2]], second)


async def test_a_stop_token_inside_an_accepted_draft_ends_the_answer_there(
    folder: Path, references: list[list[int]], oracle: PreTrainedModel
) -> None:
    prompt, reference = PROMPTS[0], references[0]
    stop = reference[7]
    expected = reference[: reference.index(stop) + 1]
    async with memory_swarm(folder) as swarm, swarm.client() as client:
        proposer = Knowing([*prompt, *reference], depth=20)
        async with await client.open(500, proposer=proposer) as conversation:
            tokens = [t async for part in conversation.ask(prompt, 48, frozenset({stop})) for t in part]
            assert tokens == expected
            second = await collect(conversation, PROMPTS[1], 10)
    assert_greedy(oracle, [*prompt, *tokens, *PROMPTS[1]], second)


async def test_several_sessions_on_one_chain_do_not_disturb_each_other(
    folder: Path, references: list[list[int]]
) -> None:
    async with memory_swarm(folder) as swarm:
        answers = await asyncio.gather(
            *(generate(swarm, prompt, NUM_TOKENS, speculation=index) for index, prompt in enumerate(PROMPTS))
        )
        assert [tokens for tokens, _ in answers] == references
        await asyncio.sleep(1)
        assert [peer.hop.num_sessions for peer in swarm.peers] == [0, 0, 0]


async def test_peers_whose_spans_overlap_form_a_route(folder: Path, references: list[list[int]]) -> None:
    async with memory_swarm(folder, spans=[Span(0, 4), Span(2, 6)]) as swarm:
        tokens, _ = await generate(swarm, PROMPTS[0], NUM_TOKENS)
    assert tokens == references[0]


async def test_an_answer_that_the_reader_leaves_can_be_followed_by_another(
    folder: Path, references: list[list[int]], oracle: PreTrainedModel
) -> None:
    prompt = PROMPTS[0]
    async with memory_swarm(folder) as swarm, swarm.client() as client, await client.open(500) as conversation:
        answer = conversation.ask(prompt, 48)
        heard: list[int] = []
        async for tokens in answer:
            heard += tokens
            if len(heard) >= 5:
                break
        await answer.aclose()
        second = await collect(conversation, PROMPTS[1], 10)
    assert heard == references[0][: len(heard)]
    assert_greedy(oracle, [*prompt, *heard, *PROMPTS[1]], second)


async def test_an_answer_whose_reader_is_cancelled_can_be_followed_by_another(
    folder: Path, references: list[list[int]], oracle: PreTrainedModel
) -> None:
    prompt = PROMPTS[0]
    async with memory_swarm(folder) as swarm, swarm.client() as client, await client.open(500) as conversation:
        heard: list[int] = []

        async def listen() -> None:
            async for tokens in conversation.ask(prompt, 48):
                heard.extend(tokens)

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(listen(), 1.5)
        second = await collect(conversation, PROMPTS[1], 10)
    assert 0 < len(heard) < 48
    assert heard == references[0][: len(heard)]
    assert_greedy(oracle, [*prompt, *heard, *PROMPTS[1]], second)


async def test_a_second_question_waits_for_the_first_answer(folder: Path, references: list[list[int]]) -> None:
    async with memory_swarm(folder) as swarm, swarm.client() as client, await client.open(500) as conversation:
        heard: list[int] = []
        async for tokens in conversation.ask(PROMPTS[0], 8):
            heard += tokens
            with pytest.raises(ConfigError, match="one question at a time"):
                await collect(conversation, PROMPTS[1], 10)
    assert heard == references[0][:8]


async def test_stop_ends_the_answer_and_what_was_emitted_stays(folder: Path, oracle: PreTrainedModel) -> None:
    prompt = PROMPTS[0]
    async with memory_swarm(folder) as swarm, swarm.client() as client, await client.open(500) as conversation:
        heard: list[int] = []
        enough = asyncio.Event()

        async def listen() -> None:
            async for tokens in conversation.ask(prompt, 48):
                heard.extend(tokens)
                if len(heard) >= 5:
                    enough.set()

        listener = asyncio.create_task(listen())
        await enough.wait()
        conversation.stop()
        await listener
        assert 5 <= len(heard) < 12
        assert conversation.stats.finish_reason is not None
        assert conversation.stats.finish_reason.value == "cancelled"
        second = await collect(conversation, PROMPTS[1], 10)
    assert_greedy(oracle, [*prompt, *heard, *PROMPTS[1]], second)


@pytest.mark.parametrize("kept", [0, 5, 16, 21, 26])
async def test_a_question_can_go_back_in_the_text(folder: Path, oracle: PreTrainedModel, kept: int) -> None:
    async with memory_swarm(folder) as swarm, swarm.client() as client, await client.open(500) as conversation:
        first = await collect(conversation, PROMPTS[0], 10)
        text = [*PROMPTS[0], *first][:kept]
        second = [t async for part in conversation.ask(PROMPTS[2], 10, keep=kept) for t in part]
        assert conversation.num_tokens == kept + len(PROMPTS[2]) + 10
        third = await collect(conversation, PROMPTS[1], 10)
    assert_greedy(oracle, [*text, *PROMPTS[2]], second)
    assert_greedy(oracle, [*text, *PROMPTS[2], *second, *PROMPTS[1]], third)


async def test_an_answer_can_be_had_again_with_another_draw_of_the_same_text(folder: Path) -> None:
    async with memory_swarm(folder) as swarm, swarm.client() as client, await client.open(500) as conversation:
        first = await collect(conversation, PROMPTS[0], 10)
        again = [t async for part in conversation.ask(PROMPTS[0][-1:], 10, keep=len(PROMPTS[0]) - 1) for t in part]
    assert again == first


async def test_who_leaves_in_a_long_prefill_can_ask_again_soon(folder: Path, oracle: PreTrainedModel) -> None:
    prompt = [(7 * i * i + i) % 256 for i in range(2000)]
    num_passes = 0

    async def slow(run: Callable[[], Sequence[Outcome]]) -> Sequence[Outcome]:
        nonlocal num_passes
        num_passes += 1
        await asyncio.sleep(5)
        return run()

    clock = asyncio.get_running_loop().time
    async with (
        memory_swarm(folder, compute=slow) as swarm,
        swarm.client() as client,
        await client.open(3000) as conversation,
    ):
        answer = conversation.ask(prompt, 8)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(answer), 12)
        began, before = clock(), num_passes
        tokens = [t async for part in conversation.ask(PROMPTS[1], 2, keep=0) for t in part]
        assert clock() - began < 60
        assert num_passes - before < 16  # what was in a pass, and what is asked now: not the rest of the prompt
    assert_greedy(oracle, PROMPTS[1], tokens)


async def test_a_client_that_stood_still_waits_anew(folder: Path, references: list[list[int]]) -> None:
    async def slow(run: Callable[[], Sequence[Outcome]]) -> Sequence[Outcome]:
        await asyncio.sleep(20)
        return run()

    async with (
        memory_swarm(folder, compute=slow) as swarm,
        swarm.client() as client,
        await client.open(500) as conversation,
    ):
        asking = asyncio.create_task(collect(conversation, PROMPTS[0], 2))
        await asyncio.sleep(12)
        selector = asyncio.get_running_loop()._virtual  # type: ignore[attr-defined]
        selector.now += 500.0
        assert await asking == references[0][:2]


async def test_what_nobody_asked_for_does_not_pile_up_in_an_idle_conversation(folder: Path) -> None:
    async with memory_swarm(folder) as swarm, swarm.client() as client, await client.open(500) as conversation:
        await collect(conversation, PROMPTS[0], 2)
        chain = conversation._chain
        peer = chain.route.hops[0].peer
        for _ in range(100_000):
            chain.inbox.hear(peer, Verdict(bytes(16), 0, 1, (), 5))
        assert chain.inbox._queue.qsize() <= 65
        with pytest.raises(GenerationFailed, match=r"lost its route.*talks on and on"):
            await collect(conversation, PROMPTS[1], 2)


async def test_a_conversation_can_be_shorter_where_the_peers_have_little_room(folder: Path) -> None:
    async with memory_swarm(folder, num_kv_tokens=500) as swarm, swarm.client() as client:
        with pytest.raises(PeerRefused, match="1128 tokens are more than all the 500"):
            await client.open(1000)
        async with await client.open(1000, min_tokens=16) as conversation:
            assert conversation.max_tokens == 500 - 128
            assert len(await collect(conversation, PROMPTS[0], 100)) == 100
            with pytest.raises(PeerBusy, match="is full"):
                await client.open(1000, min_tokens=16)


async def test_peers_that_have_room_are_preferred(folder: Path) -> None:
    async with (
        memory_swarm(folder, spans=[Span(0, 6), Span(0, 6)]) as swarm,
        swarm.client() as client,
        await client.open(9000) as first,
        await client.open(9000) as second,
    ):
        assert {first.route.hops[0].peer, second.route.hops[0].peer} == {peer.record.peer for peer in swarm.peers}
        with pytest.raises(PeerBusy):
            await client.open(9000)


async def test_more_than_the_conversation_was_opened_for_is_refused(folder: Path) -> None:
    async with memory_swarm(folder) as swarm, swarm.client() as client, await client.open(100) as conversation:
        with pytest.raises(ConfigError, match=r"116 tokens .* more than the 100"):
            await collect(conversation, PROMPTS[0], 100)
        assert len(await collect(conversation, PROMPTS[0], 84)) == 84
