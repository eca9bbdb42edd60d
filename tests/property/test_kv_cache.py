"""The cache, driven as the engine drives it, against a dictionary from node to what was written for it."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from peer import kv_cache
from peer.engine import SpanSession
from peer.kv_cache import KVCache
from routing.domain import SamplingParams
from routing.tree import Node, TokenTree

LAYERS, HEADS, DIM, MAX_TOKENS = 2, 3, 2, 40


class CacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        cache = KVCache(3, LAYERS, HEADS, DIM, MAX_TOKENS, torch.float32, torch.device("cpu"))
        self.session = SpanSession(cache, SamplingParams(), TokenTree())
        self.next_id = 1

    @rule(choices=st.lists(st.integers(0, 1000), min_size=1, max_size=6), commit=st.integers(0, 1000))
    def wave(self, choices: list[int], commit: int) -> None:
        """Commit some node, then hang new ones from what is left."""
        tree, cache = self.session.tree, self.session.cache
        alive = [tree.tip, *(node.id for node in tree.open_nodes)]
        target = alive[commit % len(alive)]
        branch = [node.id for node in tree.branch(target)]
        left = [target]
        left += [node.id for node in tree.open_nodes if target in [above.id for above in tree.branch(node.id)][:-1]]
        if target == tree.tip:
            left = alive
        nodes = []
        for choice in choices:
            nodes.append(Node(self.next_id, left[choice % len(left)], choice % 7))
            left.append(self.next_id)
            self.next_id += 1
        size = tree.num_committed + len(branch) + len(left) - 1
        if size > MAX_TOKENS:
            with pytest.raises(ValueError, match="longer than the 40 tokens"):
                self.session.take(target, 0, nodes, None)
            self.__init__()  # type: ignore[misc]
            return
        step = self.session.take(target, 0, nodes, None)
        cache.keep(step.first, step.kept)
        cache.reserve(len(nodes))
        for layer in range(LAYERS):
            value = torch.tensor([[[node.id + 1000 * layer] * DIM for node in nodes]] * HEADS, dtype=torch.float32)
            cache.write(3 + layer, value, -value)

    @invariant()
    def every_slot_holds_its_node(self) -> None:
        tree, cache = self.session.tree, self.session.cache
        assert cache.num_tokens == tree.num_committed + len(tree.open_nodes)
        for layer in range(LAYERS):
            keys = cast(list[float], cache.keys(3 + layer)[0, :, 0].tolist())
            ids = [int(key) - 1000 * layer for key in keys]
            assert ids == [*tree._path, *(node.id for node in tree.open_nodes)]
            assert torch.equal(cache.values(3 + layer), -cache.keys(3 + layer))


TestCache = CacheMachine.TestCase


def test_growing_keeps_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "FIRST_TOKENS", 2)
    cache = KVCache(0, 1, 1, 1, 100, torch.float32, torch.device("cpu"))
    for value in range(100):
        cache.reserve(1)
        cache.write(0, torch.full((1, 1, 1), value), torch.full((1, 1, 1), value))
    assert cache.keys(0).flatten().tolist() == list(range(100))
    with pytest.raises(ValueError, match="101 tokens are more than the 100"):
        cache.reserve(1)
