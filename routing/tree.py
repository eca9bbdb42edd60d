"""The token tree: the one thing that a session is.

A wave adds nodes, a commit moves the root. The client, every hop and the verifier each hold one and do the same to it,
so nothing about masks or positions goes over the wire. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

ROOT = 0
"""The empty root: above the first token, always committed."""


@dataclass(frozen=True, slots=True)
class Node:
    """One token at one place.

    Attributes:
        id: given by the client, growing from 1.
        parent: the id of the node before it; ``ROOT`` for the first token.
        token: the token's id in the vocabulary.
    """

    id: int
    parent: int
    token: int


class TokenTree:
    """A committed path and the open nodes that hang from its tip.

    Ids grow, parents come before children, so the order of ids is a topological order. The committed path is kept as
    a list, so that a long text costs nothing per round; only the open nodes have links.
    """

    def __init__(self) -> None:
        self._path: list[int] = []  # committed ids, from the first token on
        self._tokens: list[int] = []  # their tokens
        self._open: dict[int, Node] = {}  # by id, in topological order
        self._depth: dict[int, int] = {}  # of open nodes; the root has 0
        self._last = ROOT

    @property
    def tip(self) -> int:
        """The last committed node, or ``ROOT``."""
        return self._path[-1] if self._path else ROOT

    @property
    def last(self) -> int:
        """The highest id ever added."""
        return self._last

    @property
    def num_committed(self) -> int:
        """Tokens on the committed path."""
        return len(self._path)

    @property
    def committed_tokens(self) -> Sequence[int]:
        """The tokens of the committed path. Do not change it."""
        return self._tokens

    @property
    def open_nodes(self) -> tuple[Node, ...]:
        """The nodes that are not committed, parents before children."""
        return tuple(self._open.values())

    @property
    def num_open(self) -> int:
        """Nodes that are not committed."""
        return len(self._open)

    def is_committed(self, node: int) -> bool:
        """Is the node on the committed path, or the root?"""
        return node == ROOT or self._index(node) is not None

    def __len__(self) -> int:
        return len(self._path) + len(self._open)

    def __contains__(self, node: int) -> bool:
        return node in self._open or node == self.tip

    def get(self, node: int) -> Node | None:
        """The open node of this id, or None."""
        return self._open.get(node)

    def add(self, node: Node) -> None:
        """Hang a node from the tip or from an open node.

        Raises:
            ValueError: its id is not above every earlier one, its parent is unknown, or its token is negative.
        """
        if node.id <= self._last:
            raise ValueError(f"node {node.id} must come after node {self._last}")
        if node.parent not in self:
            raise ValueError(f"node {node.id} hangs from node {node.parent}, which is not in the tree")
        if node.token < 0:
            raise ValueError(f"node {node.id} has token {node.token}")
        self._depth[node.id] = self.depth(node.parent) + 1
        self._open[node.id] = node
        self._last = node.id

    def depth(self, node: int) -> int:
        """Tokens from the root to the node, both ends of the path counted but the root.

        Raises:
            ValueError: the node is not in the tree.
        """
        if node == self.tip:
            return len(self._path)
        if node not in self._depth:
            raise ValueError(f"node {node} is not in the tree")
        return self._depth[node]

    def position(self, node: int) -> int:
        """Where the node's token stands in its text, from 0."""
        return self.depth(node) - 1

    def branch(self, node: int) -> list[Node]:
        """The open nodes from the tip (left out) down to the node (with it).

        Raises:
            ValueError: the node is not in the tree.
        """
        nodes: list[Node] = []
        while node != self.tip:
            if node not in self._open:
                raise ValueError(f"node {node} is not in the tree")
            nodes.append(self._open[node])
            node = nodes[-1].parent
        return nodes[::-1]

    def tokens(self, node: int) -> list[int]:
        """The whole text that ends with the node.

        Raises:
            ValueError: the node is not in the tree.
        """
        return [*self._tokens, *(open_node.token for open_node in self.branch(node))]

    def children(self, node: int) -> Iterator[Node]:
        """The open nodes right below a node."""
        return (child for child in self._open.values() if child.parent == node)

    def commit(self, node: int) -> list[int]:
        """Make the node the tip: keep the path to it and what hangs below it, drop the rest.

        Returns:
            The ids that became committed, in order.

        Raises:
            ValueError: the node is not in the tree; nothing changes then.
        """
        newly = self.branch(node)
        if not newly:
            return []
        kept = {node}
        below: dict[int, Node] = {}
        for candidate in self._open.values():
            if candidate.parent in kept:
                kept.add(candidate.id)
                below[candidate.id] = candidate
        self._path += [committed.id for committed in newly]
        self._tokens += [committed.token for committed in newly]
        self._open = below
        self._depth = {kept_id: self._depth[kept_id] for kept_id in below}
        return [committed.id for committed in newly]

    def rewind(self, node: int) -> None:
        """Make the node the tip, whether it lies before today's or hangs from it, and drop all other nodes after it.

        Raises:
            ValueError: the node is not in the tree; nothing changes then.
        """
        index = -1 if node == ROOT else self._index(node)
        if index is None:
            self.commit(node)
        else:
            del self._path[index + 1 :]
            del self._tokens[index + 1 :]
        self.prune()

    def committed_at(self, num_tokens: int) -> int:
        """The committed node at which the text has so many tokens.

        Raises:
            ValueError: the committed text is shorter.
        """
        if not 0 <= num_tokens <= len(self._path):
            raise ValueError(f"the committed text has {len(self._path)} tokens, not {num_tokens}")
        return self._path[num_tokens - 1] if num_tokens else ROOT

    def open_positions(self) -> NDArray[np.int64]:
        """Where the token of each open node stands in its text: int64 [open], in order."""
        return np.fromiter(self._depth.values(), np.int64, len(self._depth)) - 1

    def sees(self, num_last: int) -> NDArray[np.bool_] | None:
        """Which open nodes the last ones see, themselves too: bool [num_last, open].

        None if each of them sees all that come before it, as in a chain.
        """
        size = len(self._open)
        last = list(islice(reversed(self._open.values()), num_last))[::-1]
        committed = len(self._path)
        if all(self._depth[node.id] - committed == size - num_last + row + 1 for row, node in enumerate(last)):
            return None
        mask = np.zeros((num_last, size), dtype=np.bool_)
        row_of: dict[int, int] = {}
        column_of = {node: column for column, node in enumerate(self._open)}
        for row, node in enumerate(last):
            if node.parent in row_of:
                mask[row] = mask[row_of[node.parent]]
            else:
                mask[row, [column_of[above.id] for above in self.branch(node.parent)]] = True
            mask[row, column_of[node.id]] = True
            row_of[node.id] = row
        return mask

    def _index(self, node: int) -> int | None:
        """The place of a node on the committed path, whose ids grow."""
        index = bisect_left(self._path, node)
        return index if index < len(self._path) and self._path[index] == node else None

    def prune(self) -> None:
        """Drop every open node: the text ends at the tip."""
        self._open.clear()
        self._depth.clear()
