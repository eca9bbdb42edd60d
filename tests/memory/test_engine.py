"""Spans that compute: three of them together are plain transformers, for chains, trees and several sessions at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from peer.engine import Engine, Outcome, SpanSession
from peer.spans import SpanModel
from routing.domain import SamplingParams, Span
from routing.errors import ConfigError
from routing.tree import Node
from tests.tiny_models import greedy, make_llama, plain, set_config

CUTS = ([0, 6], [0, 2, 6], [0, 1, 4, 6])
GREEDY = SamplingParams()


class Chain:
    """Engines one after the other, each pass driven by hand."""

    def __init__(self, folder: Path, cuts: Sequence[int]) -> None:
        self.engines = [Engine(SpanModel(folder, Span(start, end))) for start, end in itertools.pairwise(cuts)]

    def open(self, params: SamplingParams = GREEDY, max_tokens: int = 1000) -> list[SpanSession]:
        return [engine.new_session(params, max_tokens) for engine in self.engines]

    def run(self, waves: Sequence[tuple[list[SpanSession], int, int, list[Node]]]) -> list[Outcome]:
        """Waves (sessions, commit, start, nodes) in one pass of each engine."""
        rows: list[Tensor | None] = [None] * len(waves)
        outcomes: list[Outcome] = []
        for hop, engine in enumerate(self.engines):
            steps = [w[0][hop].take(w[1], w[2], w[3], rows[i]) for i, w in enumerate(waves)]
            outcomes = engine.run(steps)
            rows = [outcome.rows for outcome in outcomes]
        return outcomes


def chain_of(tokens: Sequence[int], first: int, parent: int) -> list[Node]:
    nodes = []
    for offset, token in enumerate(tokens):
        nodes.append(Node(first + offset, parent, token))
        parent = first + offset
    return nodes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


PROMPT = [int(token) for token in np.frombuffer(b"A swarm answers.", np.uint8)]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_one_token_at_a_time_is_plain_transformers(folder: Path, cuts: list[int]) -> None:
    chain = Chain(folder, cuts)
    sessions = chain.open()
    last = len(PROMPT)
    [outcome] = chain.run([(sessions, 0, last, chain_of(PROMPT, 1, 0))])
    answer: list[int] = []
    for _ in range(12):
        assert outcome.walk is not None
        assert outcome.walk.path == ()
        answer.append(outcome.walk.next_token)
        [outcome] = chain.run([(sessions, last, last + 1, [Node(last + 1, last, answer[-1])])])
        last += 1
    assert answer == greedy(plain(folder), PROMPT, 12)


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_a_tree_with_the_right_path_is_accepted_and_wrong_siblings_leave_no_trace(
    folder: Path, cuts: list[int]
) -> None:
    chain = Chain(folder, cuts)
    sessions = chain.open()
    expected = greedy(plain(folder), PROMPT, 20)
    prompt = chain_of(PROMPT, 1, 0)
    chain.run([(sessions, 0, 0, prompt[:10])])
    [outcome] = chain.run([(sessions, 10, len(PROMPT), prompt[10:])])
    answer, tip, next_id = [], len(PROMPT), len(PROMPT) + 1
    for _ in range(4):
        assert outcome.walk is not None
        answer += [outcome.walk.next_token]
        ahead = expected[len(answer) : len(answer) + 4]
        nodes = [Node(next_id, tip, answer[-1])]
        right = next_id
        for depth, token in enumerate(ahead):
            wrong = (token + 1 + depth) % 256
            nodes.append(Node(nodes[-1].id + 1, right, wrong))
            nodes.append(Node(nodes[-1].id + 1, nodes[-1].id, (wrong + 5) % 256))
            nodes.append(Node(nodes[-1].id + 1, right, token))
            right = nodes[-1].id
        [outcome] = chain.run([(sessions, tip, next_id, nodes)])
        assert outcome.walk is not None
        assert len(outcome.walk.path) == 4
        token_of = {node.id: node.token for node in nodes}
        answer += [token_of[node] for node in outcome.walk.path]
        tip, next_id = outcome.walk.path[-1], nodes[-1].id + 1
    assert answer == expected


def test_two_sessions_in_one_pass_equal_each_of_them_alone(folder: Path) -> None:
    chain = Chain(folder, [0, 2, 6])
    prompts = [PROMPT, PROMPT[::-1][:7]]
    sampled = [SamplingParams(temperature=0.8, top_p=0.9, seed=seed) for seed in (1, 2)]

    def wave(
        session: list[SpanSession], tokens: list[int], done: int
    ) -> tuple[list[SpanSession], int, int, list[Node]]:
        new = tokens[done:]
        return (session, done, len(tokens), chain_of(new, done + 1, done))

    def generate(which: Sequence[int]) -> list[list[int]]:
        sessions = {i: chain.open(sampled[i]) for i in which}
        texts = {i: list(prompts[i]) for i in which}
        done = dict.fromkeys(which, 0)
        for _ in range(10):
            outcomes = chain.run([wave(sessions[i], texts[i], done[i]) for i in which])
            for i, outcome in zip(which, outcomes, strict=True):
                assert outcome.walk is not None
                done[i] = len(texts[i])
                texts[i].append(outcome.walk.next_token)
        return [texts[i] for i in which]

    assert generate([0, 1]) == [*generate([0]), *generate([1])]


def test_parts_of_a_span_run_as_spans_of_their_own(folder: Path) -> None:
    chain = Chain(folder, [0, 6])
    whole = chain.engines[0].model
    chain.engines = [Engine(whole.part(Span(0, 2))), Engine(whole.part(Span(2, 5))), Engine(whole.part(Span(5, 6)))]
    sessions = chain.open()
    [outcome] = chain.run([(sessions, 0, len(PROMPT), chain_of(PROMPT, 1, 0))])
    assert outcome.walk is not None
    assert [outcome.walk.next_token] == greedy(plain(folder), PROMPT, 1)
    with pytest.raises(ConfigError, match=r"not all in 0:2"):
        whole.part(Span(0, 2)).part(Span(1, 3))


def test_a_session_longer_than_granted_is_refused(folder: Path) -> None:
    session = Chain(folder, [0, 6]).open(max_tokens=8)[0]
    with pytest.raises(ValueError, match="longer than the 8 tokens"):
        session.take(0, 9, chain_of(PROMPT[:9], 1, 0), None)


def test_a_walk_must_start_in_its_wave(folder: Path) -> None:
    session = Chain(folder, [0, 6]).open()[0]
    with pytest.raises(ValueError, match="start at node 99"):
        session.take(0, 99, chain_of(PROMPT, 1, 0), None)


def test_a_span_outside_the_model_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"blocks 0:6; 4:9 is not among them"):
        SpanModel(folder, Span(4, 9))


def test_a_family_that_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", num_blocks=2)
    set_config(folder, model_type="bloom", n_layer=2, n_head=4)
    with pytest.raises(ConfigError, match="bloom"):
        SpanModel(folder, Span(0, 1))


def test_bfloat16_spans_run_too(folder: Path) -> None:
    engine = Engine(SpanModel(folder, Span(0, 6), torch.bfloat16))
    session = engine.new_session(GREEDY, 100)
    [outcome] = engine.run([session.take(0, len(PROMPT), chain_of(PROMPT, 1, 0), None)])
    assert outcome.walk is not None
