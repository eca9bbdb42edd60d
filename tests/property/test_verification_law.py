"""Every outcome of the walk, with its probability: the text has exactly the target's distribution."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest

from peer.plan import Walk
from peer.verification import walk
from routing.tree import Node, TokenTree

VOCABULARY = range(4)
LENGTH = 3
Text = tuple[int, ...]


@cache
def target(text: Text) -> tuple[float, ...]:
    """Some distribution over the vocabulary that differs from text to text."""
    weights = [
        1 + (7 * sum((i + 2) * (t + 1) for i, t in enumerate(text)) + 5 * token * token) % 11 for token in VOCABULARY
    ]
    return tuple(weight / sum(weights) for weight in weights)


def trees(num_nodes: int) -> Iterator[tuple[Node, ...]]:
    """Every tree of so many drafted nodes below node 1, siblings with different tokens; one of each up to renaming."""
    for parents in itertools.product(*(range(1, node) for node in range(2, num_nodes + 2))):
        for tokens in itertools.product(VOCABULARY, repeat=num_nodes):
            nodes = tuple(Node(i + 2, parents[i], tokens[i]) for i in range(num_nodes))
            keys = [(node.parent, node.token) for node in nodes]
            if sorted(set(keys)) == keys:  # siblings differ; one order of each set of siblings
                yield nodes


def walk_of_rows(tree: TokenTree, start: int, draw: Callable[[int, int], int]) -> Walk:
    """The walk over a plan's arrays, whose rows are the tree's nodes."""
    nodes = tree.open_nodes
    ids, parents, tokens = np.array([(node.id, node.parent, node.token) for node in nodes], np.int64).T
    assert ids[0] == start
    return walk(ids, parents, tokens, lambda row: draw(nodes[row].id, tree.depth(nodes[row].id)))


def outcomes(nodes: tuple[Node, ...]) -> dict[Text, float]:
    """The probability of each text of LENGTH tokens: one verified round, then the target alone."""
    tree = TokenTree()
    tree.add(Node(1, 0, 0))
    for node in nodes:
        tree.add(node)
    law: dict[Text, float] = defaultdict(float)
    pending: list[tuple[Text, float]] = [((), 1.0)]
    while pending:
        script, probability = pending.pop()
        drawn: list[int] = []

        def draw(node: int, position: int, script: Text = script, drawn: list[int] = drawn) -> int:
            text = tuple(tree.tokens(node))[1:]
            assert position == len(text) + 1
            assert text == tuple(drawn)
            if len(drawn) == len(script):
                raise _Undecided
            drawn.append(script[len(drawn)])
            return drawn[-1]

        try:
            result = walk_of_rows(tree, 1, draw)
        except _Undecided:
            pending += [((*script, t), probability * target(script)[t]) for t in VOCABULARY]
            continue
        text = (*(tree.tokens(result.path[-1])[1:] if result.path else ()), result.next_token)
        assert text == script
        finish(text, probability, law)
    return law


class _Undecided(Exception):
    pass


def finish(text: Text, probability: float, law: dict[Text, float]) -> None:
    if len(text) >= LENGTH:
        law[text[:LENGTH]] += probability
        return
    for token in VOCABULARY:
        finish((*text, token), probability * target(text)[token], law)


def check(num_nodes: int) -> int:
    expected: dict[Text, float] = defaultdict(float)
    finish((), 1.0, expected)
    num_trees = 0
    for nodes in trees(num_nodes):
        assert outcomes(nodes) == pytest.approx(expected, abs=1e-12, rel=0)
        num_trees += 1
    return num_trees


@pytest.mark.parametrize(("num_nodes", "num_trees"), [(0, 1), (1, 4), (2, 22), (3, 140), (4, 969)])
def test_every_text_has_the_probability_that_the_target_gives_it(num_nodes: int, num_trees: int) -> None:
    assert check(num_nodes) == num_trees
