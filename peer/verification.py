"""Exact verification: walk the tree along the tokens that the target itself samples.

At a node the target draws the next token. If a child has it, the walk goes down; if not, the token is emitted and the
walk ends. Every emitted token is a draw of the target, so the text has the target's distribution for any tree and any
proposer, without a single draft probability.

Source: SpecExec, arXiv 2406.02532, section 4.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from peer.plan import Ints, Walk


def walk(ids: Ints, parents: Ints, tokens: Ints, draw: Callable[[int], int]) -> Walk:
    """Verify what hangs from the first of these nodes, whose own token is certain.

    Args:
        ids: [n], at least one node; parents before children.
        parents: [n], id of the node above each.
        tokens: [n], each node's token id.
        draw: row -> the token that the target draws after that node; called once for every node of the path, from
            row 0 on, in order.
    """
    path: list[int] = []
    row = 0
    while True:
        token = draw(row)
        # Only rows further down are looked at, so the walk ends even if the order were broken.
        children = row + 1 + np.flatnonzero((parents[row + 1 :] == ids[row]) & (tokens[row + 1 :] == token))
        if not len(children):
            return Walk(tuple(path), token)
        row = int(children[0])
        path.append(int(ids[row]))
