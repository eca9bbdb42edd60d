"""An engine without a model: the text is known, the cost is known, and a plan that does not fit is found. Pure.

It keeps for every slot which node lies there, so it builds each node's text from the slots alone, as attention does,
and compares that with what the plan says of parents, positions and masks.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from peer.plan import Outcome, PassPart, PassPlan
from peer.verification import walk
from routing.domain import Span
from routing.messages import Rows

Target = Callable[[tuple[int, ...]], int]
"""text -> the token that comes next."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """A node in the cache. ``checksum`` is over its whole text."""

    id: int
    parent: int
    token: int
    position: int
    checksum: int


@dataclass(slots=True)
class _Cache:
    span: Span
    slots: list[_Slot] = field(default_factory=list)


class StandInEngine:
    """Fulfils ``peer.plan.Engine``.

    Its rows are checksums of each node's text up to the last block that was run, so the next hop knows whether the
    rows that it gets are of its own texts and of the block before its own.

    Args:
        num_blocks: of the whole model; the walk is done after the last one.
        target: the draws of the walk; the keyed noise is left out.
        width: numbers in a row.
        fixed_seconds: what a pass costs without any rows.
        row_seconds: what each row adds.
    """

    def __init__(
        self,
        num_blocks: int,
        target: Target,
        *,
        width: int = 4,
        fixed_seconds: float = 0.0,
        row_seconds: float = 0.0,
    ) -> None:
        self.num_blocks = num_blocks
        self.width = width
        self._target = target
        self._fixed_seconds = fixed_seconds
        self._row_seconds = row_seconds
        self._caches: dict[int, _Cache] = {}

    def seconds(self, plan: PassPlan) -> float:
        """What the pass would take."""
        return self._fixed_seconds + self._row_seconds * plan.num_rows

    def run(self, plan: PassPlan) -> list[Outcome]:
        """One pass; an outcome for each part, in order. A part whose rows are not those of its texts fails.

        Raises:
            ValueError: the plan does not fit itself, or what the caches hold: whoever made it is wrong.
        """
        if len({part.cache for part in plan.parts}) != len(plan.parts):
            raise ValueError("a session can have only one part in a pass")
        return [self._run_part(plan.span, part) for part in plan.parts]

    def forget(self, caches: Sequence[int]) -> None:
        """Free these caches; a number that is not known is ignored."""
        for cache in caches:
            self._caches.pop(cache, None)

    def tokens(self, cache: int) -> tuple[int, ...]:
        """The token in each slot of a cache."""
        return tuple(slot.token for slot in self._caches[cache].slots)

    def _run_part(self, span: Span, part: PassPart) -> Outcome:
        cache = self._caches.setdefault(part.cache, _Cache(span))
        if cache.span != span:
            raise ValueError(f"cache {part.cache} is of the blocks {cache.span}, the pass is for {span}")
        slots = [*cache.slots[: part.first], *_moved(cache.slots, part)]
        if len(slots) + len(part) > part.max_tokens:
            raise ValueError(f"more than the {part.max_tokens} tokens that cache {part.cache} may hold")
        _append(slots, part)
        _check(slots, part)
        cache.slots = slots
        new = slots[len(slots) - len(part) :]
        if span.start > 0 and len(part) and not self._fits(part.rows, span.start, new):
            return Outcome(failure="the rows are not those of the texts here")
        if not len(part):
            return Outcome()
        if span.end < self.num_blocks:
            return Outcome(rows=self._rows(span.end, new))
        if part.verify_from is None:
            return Outcome()
        begin = part.verify_from
        return Outcome(
            walk=walk(
                part.ids[begin:],
                part.parents[begin:],
                part.tokens[begin:],
                lambda row: self._target(_text(slots, part.num_committed, new[begin + row])),
            )
        )

    def _rows(self, block: int, slots: Sequence[_Slot]) -> Rows:
        """[slots, width]: what the block before ``block`` gives for these nodes; whole numbers below 2**24."""
        values = [
            [zlib.crc32(bytes([block % 256, column % 256]), slot.checksum) >> 8 for column in range(self.width)]
            for slot in slots
        ]
        data = np.array(values, np.float32).tobytes()
        return Rows("float32", len(slots), self.width, memoryview(data))

    def _fits(self, rows: Rows | None, block: int, slots: Sequence[_Slot]) -> bool:
        if rows is None or (rows.dtype, rows.num_rows, rows.width) != ("float32", len(slots), self.width):
            return False
        return rows.data == self._rows(block, slots).data


def _moved(slots: Sequence[_Slot], part: PassPart) -> list[_Slot]:
    """The slots that move up to ``first``.

    Raises:
        ValueError: they are not there, or are named twice.
    """
    moves = part.moves.tolist()
    if part.first > len(slots) or any(not part.first <= slot < len(slots) for slot in moves):
        raise ValueError(f"the cache has {len(slots)} slots; {part.first} and {moves} are to stay")
    if len(set(moves)) != len(moves):
        raise ValueError(f"a slot of {moves} is named twice")
    return [slots[slot] for slot in moves]


def _append(slots: list[_Slot], part: PassPart) -> None:
    """Put the rows' nodes into the next slots.

    Raises:
        ValueError: a node's parent is not in the cache, or its position is not behind the parent's.
    """
    above = {slot.id: slot for slot in slots}
    for node, parent, token, position in zip(
        part.ids.tolist(), part.parents.tolist(), part.tokens.tolist(), part.positions.tolist(), strict=True
    ):
        if node in above or node <= 0 or (parent and parent not in above):
            raise ValueError(f"node {node} with parent {parent} does not fit the nodes {[*above]}")
        expected = above[parent].position + 1 if parent else 0
        if position != expected:
            raise ValueError(f"node {node} stands at position {position}, and its text says {expected}")
        checksum = zlib.crc32(token.to_bytes(8, "little"), above[parent].checksum if parent else 0)
        slot = _Slot(node, parent, token, position, checksum)
        above[node] = slot
        slots.append(slot)


def _check(slots: Sequence[_Slot], part: PassPart) -> None:
    """Do the slots hold the committed path and the open nodes that the plan says?

    Raises:
        ValueError: they do not.
    """
    committed, open_slots = slots[: part.num_committed], slots[part.num_committed :]
    tip = 0
    for slot in committed:
        if slot.parent != tip:
            raise ValueError(
                f"node {slot.id} lies in the committed path behind node {tip}, its parent is {slot.parent}"
            )
        tip = slot.id
    if [slot.position for slot in open_slots] != part.open_positions.tolist():
        raise ValueError(f"the open nodes stand at {[slot.position for slot in open_slots]}, not {part.open_positions}")
    sees = np.zeros((len(open_slots), len(open_slots)), np.bool_)
    row_of = {slot.id: row for row, slot in enumerate(open_slots)}
    for row, slot in enumerate(open_slots):
        if slot.parent in row_of:
            sees[row] = sees[row_of[slot.parent]]
        elif slot.parent != tip:
            raise ValueError(f"node {slot.id} hangs from node {slot.parent}, which is not open and not the tip {tip}")
        sees[row, row] = True
    said = np.tri(len(part), len(open_slots), len(open_slots) - len(part), dtype=np.bool_)
    if part.sees is not None:
        said = part.sees
    if not np.array_equal(said, sees[len(open_slots) - len(part) :]):
        raise ValueError("the rows of the plan do not see their own texts")
    if part.verify_from is not None and not 0 <= part.verify_from < len(part):
        raise ValueError(f"the walk is to begin at row {part.verify_from} of {len(part)}")


def _text(slots: Sequence[_Slot], num_committed: int, node: _Slot) -> tuple[int, ...]:
    """The whole text that ends with an open node."""
    above = {slot.id: slot for slot in slots[num_committed:]}
    branch: list[int] = []
    walked: _Slot | None = node
    while walked is not None:
        branch.append(walked.token)
        walked = above.get(walked.parent)
    return (*(slot.token for slot in slots[:num_committed]), *reversed(branch))
