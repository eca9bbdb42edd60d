"""The engine on torch: three spans together are plain transformers, for chains, trees and several sessions at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from peer.engines.measure import measure
from peer.engines.torch_engine import TorchEngine
from peer.plan import Outcome, PassPart, PassPlan, Walk
from peer.spans import SpanModel
from routing.domain import SamplingParams, Span
from routing.errors import ConfigError
from routing.messages import Rows
from routing.tree import Node
from tests.plans import PlannedSession, chain_of, cut
from tests.tiny_models import greedy, make_llama, plain, set_config

CUTS = ([0, 6], [0, 2, 6], [0, 1, 4, 6])
PROMPT = list(b"A swarm answers.")
NONE = np.zeros(0, np.int64)


class Chain:
    """Engines one after the other, each pass driven by hand."""

    def __init__(self, folder: Path, cuts: Sequence[int]) -> None:
        self.spans = [Span(start, end) for start, end in itertools.pairwise(cuts)]
        self.engines = [TorchEngine(SpanModel(folder, span)) for span in self.spans]

    def run(self, *parts: PassPart) -> list[Outcome]:
        """One pass of each engine; the last one's outcomes."""
        outcomes: list[Outcome] = []
        for engine, span in zip(self.engines, self.spans, strict=True):
            outcomes = engine.run(PassPlan(span, parts))
            assert [outcome.failure for outcome in outcomes] == [None] * len(parts)
            parts = tuple(replace(part, rows=outcome.rows) for part, outcome in zip(parts, outcomes, strict=True))
        return outcomes

    def walk(self, part: PassPart) -> Walk:
        """The walk of a pass of one part."""
        [outcome] = self.run(part)
        assert outcome.walk is not None
        return outcome.walk


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


def answer(chain: Chain, session: PlannedSession, tip: int, walk: Walk, num_tokens: int) -> list[int]:
    """Go on token by token from a tip that was verified."""
    tokens = [walk.next_token]
    while len(tokens) < num_tokens:
        node = Node(session.tree.last + 1, tip, tokens[-1])
        tokens.append(chain.walk(session.part(tip, node.id, [node])).next_token)
        tip = node.id
    return tokens


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_one_token_at_a_time_is_plain_transformers(folder: Path, cuts: list[int]) -> None:
    chain, session = Chain(folder, cuts), PlannedSession()
    walk = chain.walk(session.part(0, len(PROMPT), chain_of(PROMPT, 1, 0)))
    assert walk.path == ()
    assert answer(chain, session, len(PROMPT), walk, 12) == greedy(plain(folder), PROMPT, 12)


def test_rows_and_keys_may_have_formats_of_their_own(folder: Path) -> None:
    """Half the bytes on the wire and in the caches; what is computed stays near what it was."""
    prompts = [PROMPT, PROMPT[::-1], list(b"Other words")]
    exact = Chain(folder, [0, 2, 6])
    exact_walks = [exact.walk(PlannedSession(c).part(0, len(p), chain_of(p, 1, 0))) for c, p in enumerate(prompts)]
    chain = Chain(folder, [0, 2, 6])
    models = [SpanModel(folder, span, "float32", rows="bfloat16", kv="bfloat16") for span in chain.spans]
    chain.engines = [TorchEngine(model) for model in models]
    parts = [PlannedSession(c).part(0, len(p), chain_of(p, 1, 0)) for c, p in enumerate(prompts)]
    [first, *_] = chain.engines[0].run(PassPlan(chain.spans[0], tuple(parts)))
    assert first.rows is not None
    assert first.rows.dtype == "bfloat16"
    assert models[1].new_cache(8).keys(0).dtype == torch.bfloat16
    chain.engines[0].forget(range(3))
    assert [outcome.walk for outcome in chain.run(*parts)] == exact_walks


@pytest.mark.parametrize("span", [Span(0, 2), Span(2, 4), Span(4, 6), Span(0, 6)], ids=str)
@pytest.mark.parametrize("rows_format", ["float32", "bfloat16"])
def test_a_pass_can_be_measured(folder: Path, span: Span, rows_format: str) -> None:
    model = SpanModel(folder, span, "float32", rows_format)
    ticks = itertools.count()
    measured = measure(TorchEngine(model), span, model.hidden_size, rows_format, lambda: float(next(ticks)))
    assert measured == ((1, 1.0), (8, 1.0), (32, 1.0))


def test_a_format_that_is_none_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="'int3' is no format of numbers: give one of float32, bfloat16"):
        SpanModel(folder, Span(0, 2), "int3")


@pytest.mark.parametrize("at", [[1], [7], [3, 4, 15], range(1, 16)], ids=str)
def test_a_prompt_computed_in_pieces_is_the_prompt(folder: Path, at: Sequence[int]) -> None:
    chain, session = Chain(folder, [0, 2, 6]), PlannedSession()
    *pieces, last = cut(session.part(0, len(PROMPT), chain_of(PROMPT, 1, 0)), at)
    for piece in pieces:
        assert chain.run(piece) == [Outcome()]
    assert answer(chain, session, len(PROMPT), chain.walk(last), 8) == greedy(plain(folder), PROMPT, 8)


def drafted(tip: int, first: int, certain: int, ahead: Sequence[int]) -> list[Node]:
    """The token that is certain, and below it the right path, with wrong branches at every node of it."""
    nodes = [Node(first, tip, certain)]
    right = first
    for depth, token in enumerate(ahead):
        wrong = (token + 1 + depth) % 256
        nodes.append(Node(nodes[-1].id + 1, right, wrong))
        nodes.append(Node(nodes[-1].id + 1, nodes[-1].id, (wrong + 5) % 256))
        nodes.append(Node(nodes[-1].id + 1, right, token))
        right = nodes[-1].id
    return nodes


@pytest.mark.parametrize("at", [[], [4], [5, 9]], ids=str)
@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_a_tree_with_the_right_path_is_accepted_and_wrong_siblings_leave_no_trace(
    folder: Path, cuts: list[int], at: list[int]
) -> None:
    """``at``: the tree is computed in pieces first, as a wave without a walk, and verified from a node below it."""
    chain, session = Chain(folder, cuts), PlannedSession()
    expected = greedy(plain(folder), PROMPT, 28)
    prompt = chain_of(PROMPT, 1, 0)
    chain.run(session.part(0, 0, prompt[:10]))
    walk = chain.walk(session.part(10, len(PROMPT), prompt[10:]))
    answer, tip = [walk.next_token], len(PROMPT)
    for _ in range(4):
        nodes = drafted(tip, session.tree.last + 1, answer[-1], expected[len(answer) : len(answer) + 4])
        if at:
            for piece in cut(session.part(tip, 0, nodes), at):
                assert chain.run(piece) == [Outcome()]
            answer += [node.token for node in nodes[3::3]]
            tip = nodes[-1].id
            nodes = [Node(tip + 1, tip, expected[len(answer)])]
            answer.append(nodes[0].token)
            walk = chain.walk(session.part(tip, nodes[0].id, nodes))
            assert walk.path == ()
            tip = nodes[0].id
        else:
            walk = chain.walk(session.part(tip, nodes[0].id, nodes))
            assert walk.path == tuple(node.id for node in nodes[3::3])
            answer += [node.token for node in nodes[3::3]]
            tip = walk.path[-1]
        answer.append(walk.next_token)
    assert answer == expected[: len(answer)]
    assert len(answer) > 20


def test_after_a_tree_and_a_commit_the_text_can_go_back(folder: Path) -> None:
    chain, session = Chain(folder, [0, 2, 6]), PlannedSession()
    expected = greedy(plain(folder), PROMPT, 8)
    walk = chain.walk(session.part(0, len(PROMPT), chain_of(PROMPT, 1, 0)))
    nodes = drafted(len(PROMPT), 20, walk.next_token, expected[1:5])
    walk = chain.walk(session.part(len(PROMPT), 20, nodes))
    assert len(walk.path) == 4
    chain.run(session.part(walk.path[-1], 0, [Node(100, walk.path[-1], walk.next_token)]))
    for kept in (18, 9, 0):  # into the answer, into the prompt, to nothing at all
        text = [*PROMPT, *expected][:kept]
        new = list(b"Other words")
        ids = np.arange(200, 200 + len(new))
        part = PassPart(
            cache=1,
            max_tokens=1000,
            params=SamplingParams(),
            first=kept,
            moves=NONE,
            num_committed=kept,
            ids=ids,
            parents=ids - 1,
            tokens=np.array(new),
            open_positions=np.arange(kept, kept + len(new)),
            verify_from=len(new) - 1,
        )
        assert [chain.walk(part).next_token] == greedy(plain(folder), [*text, *new], 1)


def test_a_part_without_rows_changes_the_cache_alone(folder: Path) -> None:
    chain, session = Chain(folder, [0, 6]), PlannedSession()
    chain.run(session.part(0, 0, chain_of(PROMPT, 1, 0)))
    assert chain.run(session.part(10, 0, [])) == [Outcome()]
    rest = PROMPT[10:]
    session.tree.prune()
    part = session.part(10, 17 + len(rest) - 1, chain_of(rest, 17, 10))
    walk = chain.walk(replace(part, first=10, moves=NONE))
    assert [walk.next_token] == greedy(plain(folder), PROMPT, 1)


def generate(chain: Chain, sessions: Sequence[tuple[PlannedSession, list[int]]], num_tokens: int) -> list[list[int]]:
    """The answers of several sessions whose rows share every pass."""
    texts = [list(prompt) for _, prompt in sessions]
    done = [0] * len(texts)
    for _ in range(num_tokens):
        parts = [
            session.part(before, len(text), chain_of(text[before:], before + 1, before))
            for (session, _), text, before in zip(sessions, texts, done, strict=True)
        ]
        done = [len(text) for text in texts]
        for text, outcome in zip(texts, chain.run(*parts), strict=True):
            assert outcome.walk is not None
            text.append(outcome.walk.next_token)
    return [text[-num_tokens:] for text in texts]


def sampled(cache: int) -> PlannedSession:
    return PlannedSession(cache, SamplingParams(temperature=0.8, top_p=0.9, seed=cache))


def test_sessions_in_one_pass_equal_each_of_them_alone(folder: Path) -> None:
    chain = Chain(folder, [0, 2, 6])
    prompts = [PROMPT, PROMPT[::-1][:7], [5]]
    together = generate(chain, [(sampled(cache), prompt) for cache, prompt in enumerate(prompts)], 10)
    for engine in chain.engines:
        engine.forget(range(3))
    assert together == [generate(chain, [(sampled(cache), prompts[cache])], 10)[0] for cache in range(3)]


def not_finite(rows: Rows) -> Rows:
    values = np.frombuffer(rows.data, np.float32).copy()
    values[::7] = np.nan
    return replace_data(rows, memoryview(values.tobytes()))


def replace_data(rows: Rows, data: memoryview) -> Rows:
    return Rows(rows.dtype, rows.num_rows, rows.width, data)


def test_a_part_that_fails_leaves_the_others_as_they_are(folder: Path) -> None:
    chain = Chain(folder, [0, 2, 6])
    first, second = chain.engines

    def parts(**changes: object) -> list[PassPart]:
        sessions = [PlannedSession(cache) for cache in range(6)]
        return [replace(session.part(0, 16, chain_of(PROMPT, 1, 0)), **changes) for session in sessions]  # type: ignore[arg-type]

    fine = parts()
    [good] = first.run(PassPlan(Span(0, 2), tuple(fine[:1])))
    assert good.rows is not None
    rows = good.rows
    short = Rows(rows.dtype, 15, rows.width, rows.data)
    wrong = Rows("int4", 16, rows.width, rows.data)
    cut_off = replace_data(rows, rows.data[:-1])
    given = [rows, short, None, not_finite(rows), cut_off, wrong]
    outcomes = second.run(
        PassPlan(Span(2, 6), tuple(replace(part, rows=own) for part, own in zip(fine, given, strict=True)))
    )
    assert outcomes[0].failure is None
    assert outcomes[0].walk == Walk((), greedy(plain(folder), PROMPT, 1)[0])
    for outcome, text in zip(
        outcomes[1:], ["15 x 64 float32", "it has none", "not finite", "are not 4095 bytes", "int4"], strict=True
    ):
        assert outcome.failure is not None
        assert text in outcome.failure
        assert outcome.walk is None


def test_what_a_part_may_not_do_fails_it_before_the_pass(folder: Path) -> None:
    [engine] = Chain(folder, [0, 6]).engines
    sessions = [PlannedSession(cache, max_tokens=16) for cache in range(4)]
    parts = [session.part(0, 16, chain_of(PROMPT, 1, 0)) for session in sessions]
    parts[1] = replace(parts[1], max_tokens=15)
    parts[2] = replace(parts[2], first=3)
    parts[3] = replace(parts[3], tokens=parts[3].tokens + 250)
    outcomes = engine.run(PassPlan(Span(0, 6), tuple(parts)))
    assert outcomes[0].walk is not None
    assert [outcome.walk for outcome in outcomes[1:]] == [None] * 3
    texts = ["16 tokens are more than the 15", "cache has 0 tokens", "not in the model's vocabulary of 256"]
    for outcome, text in zip(outcomes[1:], texts, strict=True):
        assert text in (outcome.failure or "")


def test_two_parts_of_one_session_are_refused(folder: Path) -> None:
    [engine] = Chain(folder, [0, 6]).engines
    part = PlannedSession().part(0, 16, chain_of(PROMPT, 1, 0))
    with pytest.raises(ValueError, match="only one part"):
        engine.run(PassPlan(Span(0, 6), (part, part)))


def test_a_number_that_was_forgotten_is_a_new_cache(folder: Path) -> None:
    chain = Chain(folder, [0, 6])
    for _ in range(2):
        walk = chain.walk(PlannedSession().part(0, 16, chain_of(PROMPT, 1, 0)))
        assert [walk.next_token] == greedy(plain(folder), PROMPT, 1)
        chain.engines[0].forget([1, 99])


def test_parts_of_a_span_run_as_spans_of_their_own(folder: Path) -> None:
    chain, session = Chain(folder, [0, 6]), PlannedSession()
    whole = SpanModel(folder, Span(0, 6))
    chain.spans = [Span(0, 2), Span(2, 5), Span(5, 6)]
    chain.engines = [TorchEngine(whole) for _ in chain.spans]
    walk = chain.walk(session.part(0, 16, chain_of(PROMPT, 1, 0)))
    assert [walk.next_token] == greedy(plain(folder), PROMPT, 1)
    with pytest.raises(ConfigError, match="not all in 0:2"):
        TorchEngine(whole.part(Span(0, 2))).run(PassPlan(Span(1, 3), ()))


def test_a_span_outside_the_model_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"blocks 0:6; 4:9 is not among them"):
        SpanModel(folder, Span(4, 9))


def test_a_family_that_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", num_blocks=2)
    set_config(folder, model_type="bloom", n_layer=2, n_head=4)
    with pytest.raises(ConfigError, match="bloom"):
        SpanModel(folder, Span(0, 1))


def test_bfloat16_spans_run_too(folder: Path) -> None:
    engine = TorchEngine(SpanModel(folder, Span(0, 6), "bfloat16"))
    [outcome] = engine.run(PassPlan(Span(0, 6), (PlannedSession().part(0, 16, chain_of(PROMPT, 1, 0)),)))
    assert outcome.walk is not None
