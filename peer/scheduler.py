"""Which rows form the next forward pass: bounded by measured time, and fair between clients. Pure.

A pass serves many sessions. Rows that are verified are what somebody waits for; they go together, and a prompt is cut
to what fits beside them. Between clients rows are shared by deficit round robin (Shreedhar and Varghese, 1995), turned
around: what a client was given beyond its quantum is a debt that passes wear off, and who owes least comes first. So
large waves never starve small ones, and nobody waits for ever.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from routing.domain import PeerId, Span

QUANTUM_ROWS = 16
"""Rows that a client has in every pass without owing anything."""
MAX_PASS_ROWS = 256
MAX_PART_ROWS = 128
"""Rows of one session's prompt in a pass: more would not be faster, and must be kept until the next hop takes them."""
MIN_PART_ROWS = 8
"""Of a prompt, whatever else a pass has to do."""
DECODING_SECONDS = 2.0
"""A session that had something verified so lately will be back with its next wave."""
STRETCH = 1.5
"""Times a pass of the decoding rows alone that a pass may take because of prompts."""
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_FORGET = 0.8
DEFAULT_SECONDS = 0.05


class CostModel:
    """Seconds of a pass by its rows, from the passes that were run.

    Args:
        measured: (rows, seconds) to begin with.
    """

    def __init__(self, measured: Sequence[tuple[int, float]] = ()) -> None:
        self._seconds: dict[int, float] = {}
        for num_rows, seconds in measured:
            self._seconds[self._size(num_rows)] = seconds

    def observe(self, num_rows: int, seconds: float) -> None:
        """A pass of so many rows took so long."""
        if num_rows > 0:
            size = self._size(num_rows)
            before = self._seconds.get(size)
            self._seconds[size] = seconds if before is None else _FORGET * before + (1 - _FORGET) * seconds

    def predict(self, num_rows: int) -> float:
        """Seconds of a pass of so many rows; beyond the largest size that was seen, in proportion."""
        sizes = sorted(self._seconds)
        if not sizes:
            return DEFAULT_SECONDS
        place = bisect_left(sizes, num_rows)
        if place == len(sizes):
            return self._seconds[sizes[-1]] * num_rows / sizes[-1]
        high = sizes[place]
        if place == 0 or high == num_rows:
            return self._seconds[high]
        low = sizes[place - 1]
        share = (num_rows - low) / (high - low)
        return self._seconds[low] * (1 - share) + self._seconds[high] * share

    @staticmethod
    def _size(num_rows: int) -> int:
        return _SIZES[min(bisect_left(_SIZES, num_rows), len(_SIZES) - 1)]


@dataclass(frozen=True, slots=True)
class Waiting:
    """The first wave of a session's queue.

    Attributes:
        session: a number of its own.
        client: whose session it is.
        span: the blocks that it needs.
        num_rows: that are left of it.
        num_verified: of them, the last ones, which must be computed together.
        max_part: rows of it that may be computed at once where it can be cut.
        arrived: when it came.
    """

    session: int
    client: PeerId
    span: Span
    num_rows: int
    num_verified: int
    max_part: int
    arrived: float


class Scheduler:
    """Chooses passes, and remembers who owes what."""

    def __init__(self, cost: CostModel) -> None:
        self.cost = cost
        self._debts: dict[PeerId, int] = {}  # rows; only what is above 0
        self._decoded: dict[int, float] = {}  # when a session last had something verified

    def next_pass(self, waiting: Sequence[Waiting], now: float) -> list[tuple[int, int]]:
        """Which of the waiting waves, and how many rows of each.

        Args:
            waiting: at most one of a session.
            now: seconds on the clock of ``arrived``.

        Returns:
            (index, rows), at least one pair if anything waits; all for the same blocks.
        """
        order = sorted(
            range(len(waiting)), key=lambda index: (self._debts.get(waiting[index].client, 0), waiting[index].arrived)
        )
        order = [index for index in order if waiting[index].span == waiting[order[0]].span]
        taken: dict[int, int] = {}
        for index in order:
            if self._is_whole(waiting[index]) and self._fits(waiting[index], taken):
                taken[index] = waiting[index].num_rows
        num_decoding = sum(taken.values())
        limit = self._limit(waiting, order, num_decoding, now)
        for index in order:
            if not self._is_whole(waiting[index]) and (rows := self._part(waiting[index], taken, num_decoding, limit)):
                taken[index] = rows
        self._charge(waiting, taken, now)
        return sorted(taken.items())

    @staticmethod
    def _is_whole(wave: Waiting) -> bool:
        """Can it not be cut?"""
        return wave.num_rows <= wave.num_verified or wave.num_rows == 0

    def _fits(self, wave: Waiting, taken: dict[int, int]) -> bool:
        """Small waves always join; a large one is the first, or short enough to be no burden to the others."""
        num_rows = sum(taken.values())
        if not taken:
            return True
        if num_rows + wave.num_rows > MAX_PASS_ROWS:
            return False
        together = self.cost.predict(num_rows + wave.num_rows)
        return wave.num_rows <= QUANTUM_ROWS or together <= STRETCH * self.cost.predict(max(num_rows, QUANTUM_ROWS))

    def _limit(self, waiting: Sequence[Waiting], order: Sequence[int], num_decoding: int, now: float) -> float | None:
        """Seconds that the pass may take with prompts in it; None if nobody is there to be held up."""
        prompts = {waiting[index].session for index in order if not self._is_whole(waiting[index])}
        self._decoded = {session: at for session, at in self._decoded.items() if now - at < DECODING_SECONDS}
        if not num_decoding and not self._decoded.keys() - prompts:
            return None
        return STRETCH * self.cost.predict(max(1, num_decoding))

    def _part(self, wave: Waiting, taken: dict[int, int], num_decoding: int, limit: float | None) -> int:
        """Rows of a prompt for this pass; 0 if it has to wait."""
        num_rows = sum(taken.values())
        room = min(MAX_PASS_ROWS - num_rows, MAX_PART_ROWS, wave.max_part)
        if limit is not None:
            fitting = [
                rows for rows in range(MIN_PART_ROWS, room + 1, 8) if self.cost.predict(num_rows + rows) <= limit
            ]
            room = max(fitting, default=MIN_PART_ROWS if num_rows == num_decoding else 0)
        room = min(room, wave.max_part)
        return wave.num_rows if wave.num_rows <= room else max(0, min(room, wave.num_rows - wave.num_verified))

    def _charge(self, waiting: Sequence[Waiting], taken: dict[int, int], now: float) -> None:
        for index, num_rows in taken.items():
            client = waiting[index].client
            self._debts[client] = self._debts.get(client, 0) + num_rows
            if waiting[index].num_verified and num_rows == waiting[index].num_rows:
                self._decoded[waiting[index].session] = now
        self._debts = {client: debt - QUANTUM_ROWS for client, debt in self._debts.items() if debt > QUANTUM_ROWS}
