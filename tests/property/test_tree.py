"""The token tree against a naive model: every node with its whole text, kept or dropped by comparing texts."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from routing.tree import Node, TokenTree


class TreeMachine(RuleBasedStateMachine):
    """Paths (tuples of ids) are the naive model."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = TokenTree()
        self.paths: dict[int, tuple[int, ...]] = {0: ()}
        self.token: dict[int, int] = {}
        self.committed: tuple[int, ...] = ()
        self.last = 0

    def alive(self) -> list[int]:
        """The tip and what hangs from it, in order of ids."""
        return sorted(n for n, path in self.paths.items() if path[: len(self.committed)] == self.committed)

    @rule(choice=st.integers(0, 1000), token=st.integers(0, 5), skip=st.integers(1, 3))
    def add(self, choice: int, token: int, skip: int) -> None:
        alive = self.alive()
        parent = alive[choice % len(alive)]
        self.last += skip
        self.tree.add(Node(self.last, parent, token))
        self.paths[self.last] = (*self.paths[parent], self.last)
        self.token[self.last] = token

    @rule(choice=st.integers(0, 1000))
    def commit(self, choice: int) -> None:
        alive = self.alive()
        node = alive[choice % len(alive)]
        newly = self.tree.commit(node)
        assert tuple(newly) == self.paths[node][len(self.committed) :]
        self.committed = self.paths[node]
        self.paths = {n: path for n, path in self.paths.items() if n in self.alive()}

    @rule()
    def prune(self) -> None:
        self.tree.prune()
        tip = self.tree.tip
        self.paths = {tip: self.paths[tip]}

    @rule(node=st.integers(0, 60))
    def what_is_unknown_is_refused(self, node: int) -> None:
        if node not in self.alive():
            for wrong in (self.tree.depth, self.tree.commit, self.tree.tokens):
                with pytest.raises(ValueError, match=f"node {node} is not in the tree"):
                    wrong(node)
            with pytest.raises(ValueError, match="not in the tree"):
                self.tree.add(Node(self.last + 1, node, 0))
        with pytest.raises(ValueError, match="must come after"):
            self.tree.add(Node(min(node, self.last), self.tree.tip, 0))

    @invariant()
    def agrees(self) -> None:
        alive = self.alive()
        tip = self.committed[-1] if self.committed else 0
        assert self.tree.tip == tip
        assert [node.id for node in self.tree.open_nodes] == [node for node in alive if node != tip]
        assert list(self.tree.committed_tokens) == [self.token[node] for node in self.committed]
        for node in alive:
            assert self.tree.tokens(node) == [self.token[above] for above in self.paths[node]]
            assert self.tree.depth(node) == len(self.paths[node])
            children = {n for n, path in self.paths.items() if len(path) > 1 and path[-2] == node}
            if node != 0:
                assert {child.id for child in self.tree.children(node)} == children
        opened = [node for node in alive if node != tip]
        expected = [[column in self.paths[row] for column in opened] for row in opened]
        for num_last in range(len(opened) + 1):
            last = expected[len(opened) - num_last :]
            sees = self.tree.sees(num_last)
            all_before = [
                [column <= len(opened) - num_last + row for column in range(len(opened))] for row in range(num_last)
            ]
            assert sees is None if last == all_before else sees is not None and sees.tolist() == last


TestTree = TreeMachine.TestCase
