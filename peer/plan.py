"""What a forward pass has to do, as a frozen value: a hop makes it, an engine runs it. Pure.

    hop   -> PassPlan          which rows of which sessions, where their keys and values go, what is verified
    engine.run(plan) -> [Outcome]    rows for the next hop, or where the walk went

The engine never sees a token tree, and a hop never a tensor. Rows stay as they came over the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from routing.domain import SamplingParams, Span
from routing.messages import Rows

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PassPart:
    """One session's part of a pass. Cache slots: the committed path in the order of the text, then the open nodes.

    Attributes:
        cache: number of the session's cache in the engine; a number that is new there gets an empty one.
        max_tokens: slots that the cache may ever have in use.
        params: how the session's tokens are drawn.
        first: slots below this one stay as they are.
        moves: [kept], slots from ``first`` on that stay, in their new order; all others from there on are dropped.
        num_committed: slots of the committed path, once the moves are done.
        ids: [rows], the nodes to compute; their slots are the next ones, in this order.
        parents: [rows], id of the node above each.
        tokens: [rows], each node's token id.
        open_positions: [open], where the token of each open node stands in its text; the last ones are the rows'.
        sees: bool [rows, open], which open nodes each row sees (itself too); None if every row sees all that lie
            before it and itself. All of the committed path is seen by every row.
        verify_from: index of the row where the walk begins; None for no walk. The rows from there on get logits.
        rows: the output of the hop before, one for each node; None where the span has the embedding.
    """

    cache: int
    max_tokens: int
    params: SamplingParams
    first: int
    moves: Ints
    num_committed: int
    ids: Ints
    parents: Ints
    tokens: Ints
    open_positions: Ints
    sees: NDArray[np.bool_] | None = None
    verify_from: int | None = None
    rows: Rows | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def positions(self) -> Ints:
        """[rows], where each row's token stands in its text."""
        return self.open_positions[len(self.open_positions) - len(self.ids) :]

    @property
    def first_slot(self) -> int:
        """The slot of the first row."""
        return self.first + len(self.moves)


@dataclass(frozen=True, slots=True, eq=False)
class PassPlan:
    """One forward pass: the blocks to run, and each session's part; at most one of a session."""

    span: Span
    parts: tuple[PassPart, ...]

    @property
    def num_rows(self) -> int:
        """Rows of all parts."""
        return sum(map(len, self.parts))


@dataclass(frozen=True, slots=True)
class Walk:
    """Where a walk went.

    Attributes:
        path: ids of the accepted nodes below the start, in order.
        next_token: the draw that no child had: the recovered token, or the bonus one after a leaf.
    """

    path: tuple[int, ...]
    next_token: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass gave one part.

    Attributes:
        rows: output for the next hop, one for each node; None after the last block.
        walk: where the walk went, if the last block was run and a walk was asked for.
        failure: why the part gave nothing; its session can't go on. The other parts are not touched.
    """

    rows: Rows | None = field(default=None, repr=False)
    walk: Walk | None = None
    failure: str | None = None


class Engine(Protocol):
    """Runs passes, one at a time, and keeps the caches of their sessions."""

    def run(self, plan: PassPlan) -> Sequence[Outcome]:
        """One forward pass; an outcome for each part, in order.

        Raises:
            Exception: whatever goes wrong with the pass as a whole. Its sessions are at their end then.
        """

    def forget(self, caches: Sequence[int]) -> None:
        """Free these caches; a number that is not known is ignored."""
