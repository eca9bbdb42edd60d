"""Proposers that know what the target will say, and how wrong to be."""

from __future__ import annotations

from collections.abc import Sequence

from swarm.drafting import PENDING, Draft, DraftNode


class Knowing:
    """Follows a reference.

    Args:
        reference: prompt and answer.
        siblings: wrong tokens beside each right one, listed before it.
        wrong_from: depth from which on everything is wrong; None for never.
        depth: how far it looks ahead.
    """

    def __init__(
        self, reference: Sequence[int], *, siblings: int = 0, wrong_from: int | None = None, depth: int = 4
    ) -> None:
        self._reference = list(reference)
        self._siblings = siblings
        self._wrong_from = wrong_from
        self._depth = depth
        self._length = 0

    def extend(self, tokens: Sequence[int]) -> None:
        self._length += len(tokens)

    def propose(self, max_nodes: int, max_depth: int) -> Draft:
        draft: list[DraftNode] = []
        parent = PENDING
        ahead = self._reference[self._length : self._length + min(self._depth, max_depth)]
        for depth, token in enumerate(ahead):
            if self._wrong_from is not None and depth >= self._wrong_from:
                token = (token + 1) % 256
            for sibling in range(self._siblings):
                draft.append(DraftNode(parent, (token + 7 + sibling) % 256, 0.5))
                draft.append(DraftNode(len(draft) - 1, token, 0.5))
            draft.append(DraftNode(parent, token, 0.5))
            parent = len(draft) - 1
        return draft[:max_nodes]

    def learn(self, draft: Draft, tokens: Sequence[int]) -> None:
        pass
