"""The engine without a model, driven as a hop drives one: what it says is what the texts say."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.engines.stand_in import StandInEngine
from peer.plan import Outcome, PassPart, PassPlan, Walk
from routing.domain import Span
from routing.tree import Node
from tests.plans import PlannedSession, chain_of, cut

CUTS = (0, 2, 5, 6)
SPANS = [Span(start, end) for start, end in itertools.pairwise(CUTS)]


def target(text: tuple[int, ...]) -> int:
    """One of three tokens, so that drafts are often right."""
    return zlib.crc32(bytes(text)) % 3


class Chain:
    """Three of them, one after the other."""

    def __init__(self) -> None:
        self.engines = [StandInEngine(6, target) for _ in SPANS]

    def run(self, *parts: PassPart) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for engine, span in zip(self.engines, SPANS, strict=True):
            outcomes = engine.run(PassPlan(span, parts))
            assert [outcome.failure for outcome in outcomes] == [None] * len(parts)
            parts = tuple(replace(part, rows=outcome.rows) for part, outcome in zip(parts, outcomes, strict=True))
        return outcomes


choices = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 2)), min_size=1, max_size=12)


@given(st.lists(st.tuples(choices, st.integers(0, 99), st.booleans(), st.integers(0, 12)), max_size=8))
@settings(max_examples=60)
def test_a_walk_goes_where_the_target_goes(waves: list[tuple[list[tuple[int, int]], int, bool, int]]) -> None:
    chain, session = Chain(), PlannedSession()
    tree = session.tree
    for shape, commit, is_verified, at in waves:
        alive = [tree.tip, *(node.id for node in tree.open_nodes)]
        target_id = alive[commit % len(alive)]
        below = [target_id] if target_id != tree.tip else alive
        nodes: list[Node] = []
        for parent, token in shape:
            nodes.append(Node(tree.last + 1 + len(nodes), below[parent % len(below)], token))
            below.append(nodes[-1].id)
        part = session.part(target_id, nodes[0].id if is_verified else 0, nodes)
        pieces = [part] if is_verified else cut(part, [at] if 0 < at < len(nodes) else [])
        for piece in pieces:
            [outcome] = chain.run(piece)
        if not is_verified:
            assert outcome == Outcome()
            continue
        assert outcome.walk is not None
        text = tree.tokens(nodes[0].id)
        expected: list[int] = []
        node = nodes[0].id
        while child := next((c for c in tree.children(node) if c.token == target(tuple(text))), None):
            node = child.id
            expected.append(node)
            text.append(child.token)
        assert outcome.walk == Walk(tuple(expected), target(tuple(text)))


def prompt(cache: int = 1, tokens: bytes = b"A prompt") -> PassPart:
    return PlannedSession(cache).part(0, len(tokens), chain_of(tokens, 1, 0))


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": np.frombuffer(b"A promqt", np.uint8).astype(np.int64)},
        {"rows": None},
    ],
    ids=["another text", "no rows"],
)
def test_rows_of_another_text_fail_their_part_alone(changes: dict[str, object]) -> None:
    first, second, _ = Chain().engines
    rows = [outcome.rows for outcome in first.run(PassPlan(SPANS[0], (prompt(1), prompt(2))))]
    parts = [replace(part, rows=own) for part, own in zip((prompt(1), prompt(2)), rows, strict=True)]
    bad = replace(parts[0], **changes)  # type: ignore[arg-type]
    outcomes = second.run(PassPlan(SPANS[1], (bad, parts[1])))
    assert outcomes[0] == Outcome(failure="the rows are not those of the texts here")
    assert outcomes[1].rows is not None


def test_rows_of_another_block_are_not_taken() -> None:
    first, _, last = Chain().engines
    [outcome] = first.run(PassPlan(SPANS[0], (prompt(),)))
    [outcome] = last.run(PassPlan(SPANS[2], (replace(prompt(), rows=outcome.rows),)))
    assert outcome.failure is not None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"parents": np.array([0, 1, 2, 3, 4, 5, 6, 9])}, "node 8 with parent 9"),
        ({"open_positions": np.array([0, 1, 2, 3, 4, 5, 6, 8])}, "position 8, and its text says 7"),
        ({"sees": np.ones((8, 8), np.bool_)}, "do not see their own texts"),
        ({"parents": np.array([0, 1, 2, 3, 4, 5, 6, 6]), "open_positions": np.array([0, 1, 2, 3, 4, 5, 6, 6])}, "see"),
        ({"num_committed": 2}, "open nodes stand at"),
        ({"first": 1}, "the cache has 0 slots"),
        ({"moves": np.array([0])}, "the cache has 0 slots"),
        ({"max_tokens": 7}, "more than the 7 tokens"),
        ({"verify_from": 8}, "row 8 of 8"),
    ],
    ids=str,
)
def test_a_plan_that_does_not_fit_is_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Chain().engines[0].run(PassPlan(SPANS[0], (replace(prompt(), **changes),)))  # type: ignore[arg-type]


def test_a_cache_that_was_forgotten_is_empty() -> None:
    engine = Chain().engines[0]
    engine.run(PassPlan(SPANS[0], (prompt(),)))
    assert engine.tokens(1) == tuple(b"A prompt")
    engine.forget([1, 2])
    engine.run(PassPlan(SPANS[0], (prompt(),)))


def test_a_pass_costs_what_was_said() -> None:
    engine = StandInEngine(6, target, fixed_seconds=0.01, row_seconds=0.001)
    assert engine.seconds(PassPlan(SPANS[0], (prompt(1), prompt(2)))) == pytest.approx(0.026)
