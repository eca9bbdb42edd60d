"""Proposers: what may come next, as a scored tree. Pure.

The n-gram proposer needs no model: where the end of the text has stood before, what followed then may follow again.
That helps where an answer repeats its context (rewriting, quoting, code, lists) and rarely in free prose.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

PENDING = -1
"""The parent of a draft's first nodes: the text's last token."""


@dataclass(frozen=True, slots=True)
class DraftNode:
    """One proposed token.

    Attributes:
        parent: index of its parent in the draft, or ``PENDING``.
        token: what may come there.
        reach: the estimated probability that the target's own text goes through this node.
        source: what the proposer knows it by, for ``learn``.
    """

    parent: int
    token: int
    reach: float
    source: int = 0


Draft = Sequence[DraftNode]
"""Parents before children, likeliest first: any beginning of a draft is a draft."""


class Proposer(Protocol):
    """Drafts what may follow a text, and learns from what did."""

    def extend(self, tokens: Sequence[int]) -> None:
        """The text has grown by these tokens."""

    def propose(self, max_nodes: int, max_depth: int) -> Draft:
        """At most so many nodes to follow the text, on paths of at most ``max_depth``."""

    def learn(self, draft: Draft, tokens: Sequence[int]) -> None:
        """``tokens`` is what followed the text for which ``draft`` was made, sent or not."""


MAX_MATCH = 6
MIN_REACH = 0.05
OCCURRENCES = 4
_PRIOR_WEIGHT = 4.0
_PRIORS = (0.0, 0.15, 0.35, 0.55, 0.7, 0.8, 0.85)
_MEMORY = 64.0


class NGramProposer:
    """Continues earlier occurrences of the text's end, the longest match first.

    A node's chance is what matches of its length have had so far, counted with forgetting; a match that went on grows
    longer with every node. Several continuations share one tree, grown best first.
    """

    def __init__(self) -> None:
        self._text: list[int] = []
        self._places: dict[tuple[int, ...], list[int]] = defaultdict(list)  # n-gram -> where it ended
        self._hits = [prior * _PRIOR_WEIGHT for prior in _PRIORS]
        self._trials = [_PRIOR_WEIGHT] * len(_PRIORS)

    def extend(self, tokens: Sequence[int]) -> None:
        """The text has grown by these tokens."""
        for token in tokens:
            self._text.append(token)
            end = len(self._text)
            for length in range(1, min(MAX_MATCH, end) + 1):
                self._places[tuple(self._text[end - length :])].append(end)

    def propose(self, max_nodes: int, max_depth: int) -> Draft:
        """At most so many nodes to follow the text, on paths of at most ``max_depth``."""
        draft: list[DraftNode] = []
        children: dict[tuple[int, int], int] = {}  # (parent, token) -> index
        depths: list[int] = []
        waiting: list[tuple[float, int, int, int, int]] = []  # -reach, order, parent, place, length of the match
        for order, (place, length) in enumerate(self._matches()):
            heapq.heappush(waiting, (-self._chance(length) * 0.5 ** min(order, 8), order, PENDING, place, length))
        order = len(waiting)
        while waiting and len(draft) < max_nodes:
            negative, _, parent, place, length = heapq.heappop(waiting)
            if -negative < MIN_REACH:
                break
            depth = 1 if parent == PENDING else depths[parent] + 1
            if depth > max_depth:
                continue
            token = self._text[place]
            node = children.get((parent, token))
            if node is None:
                node = children[parent, token] = len(draft)
                draft.append(DraftNode(parent, token, -negative, length))
                depths.append(depth)
            if place + 1 < len(self._text):
                longer = min(length + 1, MAX_MATCH)
                reach = min(-negative, draft[node].reach) * self._chance(longer)
                heapq.heappush(waiting, (-reach, order, node, place + 1, longer))
                order += 1
        return draft

    def learn(self, draft: Draft, tokens: Sequence[int]) -> None:
        """Count how often the first choice was right, along the text that came."""
        at = PENDING
        for token in tokens:
            children = [index for index, node in enumerate(draft) if node.parent == at]
            if not children:
                return
            first = draft[children[0]]
            self._trials[first.source] = self._trials[first.source] * (1 - 1 / _MEMORY) + 1
            self._hits[first.source] = self._hits[first.source] * (1 - 1 / _MEMORY) + (first.token == token)
            right = [index for index in children if draft[index].token == token]
            if not right:
                return
            at = right[0]

    def _matches(self) -> list[tuple[int, int]]:
        """(place, length): where the end of the text stood before, longest first, the latest of each length first."""
        matches: list[tuple[int, int]] = []
        seen: set[int] = set()
        for length in range(min(MAX_MATCH, len(self._text)), 0, -1):
            places = self._places.get(tuple(self._text[len(self._text) - length :]), [])
            for place in places[-1 - OCCURRENCES : -1][::-1]:  # the last one is the end itself
                if place not in seen:
                    seen.add(place)
                    matches.append((place, length))
        return matches[:OCCURRENCES]

    def _chance(self, length: int) -> float:
        return self._hits[length] / self._trials[length]


class NoProposer:
    """Drafts nothing: plain autoregression."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Nothing to remember."""

    def propose(self, max_nodes: int, max_depth: int) -> Draft:  # noqa: ARG002
        """An empty draft."""
        return ()

    def learn(self, draft: Draft, tokens: Sequence[int]) -> None:
        """Nothing to learn."""
