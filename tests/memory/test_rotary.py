"""Rotary embeddings that change with the longest text of a pass: no session may feel another one's length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from peer.engines.torch_engine import TorchEngine
from peer.plan import Outcome, PassPart, PassPlan, Walk
from peer.spans import SpanModel
from routing.domain import Span
from tests.memory.test_families import COMMON
from tests.plans import PlannedSession, chain_of
from tests.tiny_models import greedy, plain

LIMIT = 24
KINDS: dict[str, dict[str, object]] = {
    "phi3": {
        "max_position_embeddings": 96,
        "original_max_position_embeddings": LIMIT,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0 + 0.1 * i for i in range(8)],
            "long_factor": [3.0 + i for i in range(8)],
        },
    },
    "llama": {
        "max_position_embeddings": LIMIT,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    },
}
LONG = list(range(100, 100 + LIMIT))
SHORT = list(b"A short one")


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    config = AutoConfig.for_model(request.param, **{**COMMON, **KINDS[request.param]})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def prompt(cache: int, tokens: list[int]) -> PassPart:
    return PlannedSession(cache).part(0, len(tokens), chain_of(tokens, 1, 0))


class Chain:
    """The first four blocks and the last two."""

    def __init__(self, folder: Path) -> None:
        self.spans = [Span(0, 4), Span(4, 6)]
        self.engines = [TorchEngine(SpanModel(folder, span)) for span in self.spans]

    def run(self, *parts: PassPart) -> list[Outcome]:
        first, last = self.engines
        rows = [outcome.rows for outcome in first.run(PassPlan(self.spans[0], parts))]
        given = tuple(replace(part, rows=own) for part, own in zip(parts, rows, strict=True))
        return last.run(PassPlan(self.spans[1], given))


def test_the_limit_is_where_plain_transformers_changes_its_frequencies(folder: Path) -> None:
    assert SpanModel(folder, Span(0, 2)).max_text == LIMIT
    model = plain(folder)
    rotary = cast(Any, model).model.rotary_emb
    before = rotary.inv_freq.clone()
    for length, is_same in ((LIMIT, True), (LIMIT + 1, False)):
        model(torch.tensor([[1] * length]))
        assert torch.equal(rotary.inv_freq, before) == is_same


def test_sessions_in_one_pass_equal_each_alone_and_plain_transformers(folder: Path) -> None:
    together = Chain(folder).run(prompt(1, LONG), prompt(2, SHORT))
    alone = [Chain(folder).run(prompt(1, tokens))[0] for tokens in (LONG, SHORT)]
    assert together == alone
    assert together == [Outcome(walk=Walk((), greedy(plain(folder), tokens, 1)[0])) for tokens in (LONG, SHORT)]


def test_a_longer_text_is_refused_before_it_changes_another(folder: Path) -> None:
    chain = Chain(folder)
    for _ in range(2):  # what it left behind would show in the next pass
        long, short = chain.run(prompt(1, [*LONG, 7]), prompt(2, SHORT))
        assert long.failure is not None
        assert "at most 24 tokens" in long.failure
        assert short.walk == Walk((), greedy(plain(folder), SHORT, 1)[0])
        for engine in chain.engines:
            engine.forget([1, 2])


def test_other_models_have_no_such_limit(tmp_path: Path) -> None:
    for rope in ({"rope_type": "default"}, {"rope_type": "linear", "factor": 4.0}):
        config = AutoConfig.for_model("llama", **{**COMMON, "rope_parameters": {**rope, "rope_theta": 10000.0}})
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
        assert SpanModel(tmp_path, Span(0, 2)).max_text is None
