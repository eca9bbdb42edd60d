"""Plans of passes, made from a token tree as a hop makes them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from peer.plan import PassPart
from routing.domain import SamplingParams
from routing.messages import Rows
from routing.tree import Node, TokenTree

GREEDY = SamplingParams()


class PlannedSession:
    """One session: its tree, and the parts of passes that its waves become. All hops have the same ones."""

    def __init__(self, cache: int = 1, params: SamplingParams = GREEDY, max_tokens: int = 1000) -> None:
        self.cache = cache
        self.params = params
        self.max_tokens = max_tokens
        self.tree = TokenTree()

    def part(self, commit: int, start: int, nodes: Sequence[Node], rows: Rows | None = None) -> PassPart:
        """Let a wave change the tree; ``start`` is where the walk begins, 0 for no walk."""
        first = self.tree.num_committed
        slot_of = {node.id: first + index for index, node in enumerate(self.tree.open_nodes)}
        kept = [slot_of[node] for node in self.tree.commit(commit)]
        kept += [slot_of[node.id] for node in self.tree.open_nodes]
        for node in nodes:
            self.tree.add(node)
        ids = [node.id for node in nodes]
        return PassPart(
            cache=self.cache,
            max_tokens=self.max_tokens,
            params=self.params,
            first=first,
            moves=np.array(kept, np.int64),
            num_committed=self.tree.num_committed,
            ids=np.array(ids, np.int64),
            parents=np.array([node.parent for node in nodes], np.int64),
            tokens=np.array([node.token for node in nodes], np.int64),
            open_positions=np.array([self.tree.position(node.id) for node in self.tree.open_nodes], np.int64),
            sees=self.tree.sees(len(nodes)),
            verify_from=ids.index(start) if start else None,
            rows=rows,
        )


def cut(part: PassPart, at: Sequence[int]) -> list[PassPart]:
    """The same rows in several passes: cut before each of the rows ``at``; only the last piece walks."""
    edges = [0, *at, len(part)]
    num_before = len(part.open_positions) - len(part)  # open nodes that were computed already
    pieces = []
    for begin, end in itertools.pairwise(edges):
        piece = replace(
            part,
            first=part.first if begin == 0 else part.first_slot + begin,
            moves=part.moves if begin == 0 else part.moves[:0],
            ids=part.ids[begin:end],
            parents=part.parents[begin:end],
            tokens=part.tokens[begin:end],
            open_positions=part.open_positions[: num_before + end],
            sees=None if part.sees is None else part.sees[begin:end, : num_before + end],
            verify_from=None,
        )
        if end == len(part) and part.verify_from is not None:
            piece = replace(piece, verify_from=part.verify_from - begin)
        pieces.append(piece)
    return pieces


def chain_of(tokens: Sequence[int], first: int, parent: int) -> list[Node]:
    """Nodes one below the other; their ids count from ``first``."""
    nodes = []
    for offset, token in enumerate(tokens):
        nodes.append(Node(first + offset, parent, token))
        parent = first + offset
    return nodes
