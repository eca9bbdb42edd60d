"""Exact verification: walk the tree along the tokens that the target itself samples.

At a node the target draws the next token. If a child has it, the walk goes down; if not, the token is emitted and the
walk ends. Every emitted token is a draw of the target, so the text has the target's distribution for any tree and any
proposer, without a single draft probability.

Source: SpecExec, arXiv 2406.02532, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from routing.tree import TokenTree

Draw = Callable[[int, int], int]
"""(node, position) -> token: the target's draw for ``position``, from its logits after ``node``."""


@dataclass(frozen=True, slots=True)
class Walk:
    """Where a walk went.

    Attributes:
        path: ids of the accepted nodes below the start, in order.
        next_token: the draw that no child had: the recovered token, or the bonus one after a leaf.
    """

    path: tuple[int, ...]
    next_token: int


def walk(tree: TokenTree, start: int, draw: Draw) -> Walk:
    """Verify what hangs from ``start``.

    Args:
        tree: the session's tree.
        start: a node of it whose own token is certain.
        draw: called once for every node of the path, from ``start`` on, in order.

    Raises:
        ValueError: ``start`` is not in the tree.
    """
    path: list[int] = []
    node, position = start, tree.depth(start)
    while True:
        token = draw(node, position)
        child = next((child for child in tree.children(node) if child.token == token), None)
        if child is None:
            return Walk(tuple(path), token)
        path.append(child.id)
        node, position = child.id, position + 1
