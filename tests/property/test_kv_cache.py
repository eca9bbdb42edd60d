"""The cache, driven by the plans that a seat makes, against a dictionary from node to what was written for it."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from peer.hop_events import StreamId
from peer.kv_cache import KVCache
from peer.seat import Seat
from routing.domain import PeerId, SamplingParams, SessionId, Span
from routing.messages import Wave

LAYERS, HEADS, DIM, MAX_TOKENS = 2, 3, 2, 40
SESSION = SessionId(bytes(16))


def new_seat(num_granted: int = MAX_TOKENS) -> Seat:
    client = PeerId("client")
    return Seat(
        SESSION, 0, StreamId(1), client, client, Span(0, 2), 1, SamplingParams(), num_granted, 1 << 20, last_active=0.0
    )


def new_cache(max_tokens: int, chunk_tokens: int) -> KVCache:
    return KVCache(3, LAYERS, HEADS, DIM, max_tokens, chunk_tokens, torch.float32, torch.device("cpu"))


def write(cache: KVCache, ids: list[int]) -> None:
    for layer in range(LAYERS):
        value = torch.tensor([[[node + 1000 * layer] * DIM for node in ids]] * HEADS, dtype=torch.float32)
        cache.write(3 + layer, value.reshape(HEADS, len(ids), DIM), -value.reshape(HEADS, len(ids), DIM))


def contents(cache: KVCache) -> list[int]:
    """Which node lies in each slot; all layers and heads agree."""
    for layer in range(LAYERS):
        keys = cast(list[float], cache.keys(3 + layer)[:, :, 0].tolist())
        ids = [[int(key) - 1000 * layer for key in head] for head in cast(list[list[float]], keys)]
        assert ids[1:] == ids[:-1]
        assert torch.equal(cache.values(3 + layer), -cache.keys(3 + layer))
    return ids[0]


class CacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cache = new_cache(MAX_TOKENS, 7)
        self.seat = new_seat()
        self.next_id = self.next_wave = 1

    @rule(
        choices=st.lists(st.integers(0, 1000), max_size=6),
        commit=st.integers(0, 1000),
        back=st.none() | st.integers(0, 1000),
    )
    def wave(self, choices: list[int], commit: int, back: int | None) -> None:
        """Commit some node, or go back to some committed one, then hang new ones from what is left."""
        tree = self.seat.tree
        alive = [tree.tip, *(node.id for node in tree.open_nodes)]
        target = alive[commit % len(alive)]
        branch = [node.id for node in tree.branch(target)]
        left = [target]
        left += [node.id for node in tree.open_nodes if target in [above.id for above in tree.branch(node.id)][:-1]]
        if target == tree.tip:
            left = alive
        num_committed = tree.num_committed + len(branch)
        if back is not None:
            num_committed = back % (tree.num_committed + 1)
            target = tree.committed_at(num_committed)
            left = [target]
        nodes = []
        for choice in choices:
            nodes.append((self.next_id, left[choice % len(left)], choice % 7))
            left.append(self.next_id)
            self.next_id += 1
        self.seat.take(Wave(SESSION, 0, self.next_wave, target, 0, tuple(nodes), rewind=back is not None), now=0.0)
        self.next_wave += 1
        if num_committed + len(left) - 1 > MAX_TOKENS:
            with pytest.raises(ValueError, match="longer than the 40 tokens"):
                self.seat.next_pass_part(len(nodes))
            self.__init__()  # type: ignore[misc]
            return
        part = self.seat.next_pass_part(len(nodes))
        self.seat.waiting.clear()
        self.cache.keep(part.first, part.moves)
        assert self.cache.num_tokens == part.first_slot
        self.cache.reserve(len(nodes))
        write(self.cache, [node[0] for node in nodes])

    @invariant()
    def every_slot_holds_its_node(self) -> None:
        tree = self.seat.tree
        assert contents(self.cache) == [*tree._path, *(node.id for node in tree.open_nodes)]


TestCache = CacheMachine.TestCase


@pytest.mark.parametrize("chunk_tokens", [1, 7, 100])
def test_growing_keeps_what_was_written(chunk_tokens: int) -> None:
    cache = new_cache(100, chunk_tokens)
    for value in range(100):
        cache.reserve(1)
        write(cache, [value])
    assert contents(cache) == list(range(100))
    with pytest.raises(ValueError, match="101 tokens are more than the 100"):
        cache.reserve(1)


@pytest.mark.parametrize(("first", "slots"), [(6, []), (2, [1]), (0, [0, 5]), (5, [5])], ids=str)
def test_what_is_not_in_the_cache_cannot_stay(first: int, slots: list[int]) -> None:
    cache = new_cache(10, 10)
    cache.reserve(5)
    write(cache, [1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="cache has 5 tokens"):
        cache.keep(first, np.array(slots, np.int64))
    assert contents(cache) == [1, 2, 3, 4, 5]
