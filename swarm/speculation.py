"""How large a tree to send now: as large as measurement says that it pays. Pure.

A round with n drafted nodes brings 1 + the sum of their reach tokens, and takes a time that is fitted as
fixed + per_row * n over the rounds before, with forgetting. A round without a draft is measured apart, because the step
from one row to two is often the dearest. The tree is cut where tokens a second are the most; that may be at none.

Source of the cost model: least squares with forgetting, as ShardFlow and SpecDec++ describe it; the form of the
decision is SpecInfer's (arXiv 2305.09781) with measured cost in the place of a fixed budget.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarm.drafting import Draft

MAX_TREE = 64
FORGET = 0.85
PROBE_AFTER = 16
MAX_PROBE_AFTER = 128
FIRST_TREE = 8
GUESSED_ROW_SHARE = 0.03
"""Of a plain round's time, what one more row is taken to cost until it has been measured."""


@dataclass(slots=True)
class _Fit:
    """Weighted least squares of seconds over nodes."""

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def add(self, num_nodes: int, seconds: float) -> None:
        """One more round; earlier ones count less from now on."""
        self.weight = self.weight * FORGET + 1
        self.x = self.x * FORGET + num_nodes
        self.y = self.y * FORGET + seconds
        self.xx = self.xx * FORGET + num_nodes * num_nodes
        self.xy = self.xy * FORGET + num_nodes * seconds

    def predict(self, num_nodes: int, guessed_slope: float) -> float:
        """Seconds of a round of so many nodes; the slope leans on a guess as long as sizes hardly differ."""
        mean_x, mean_y = self.x / self.weight, self.y / self.weight
        spread = max(0.0, self.xx / self.weight - mean_x * mean_x)
        covariance = self.xy / self.weight - mean_x * mean_y
        slope = max(0.0, (covariance + guessed_slope) / (spread + 1.0))
        return max(1e-6, mean_y + slope * (num_nodes - mean_x))


class Speculation:
    """Decides the size of each tree.

    Args:
        fixed: None decides by measurement; 0 sends no drafts; n sends up to n nodes whatever it costs.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._plain: float | None = None
        self._drafted = _Fit()
        self._rounds_without = 0
        self._probe_after = PROBE_AFTER

    @property
    def max_nodes(self) -> int:
        """Nodes that a proposer should be asked for."""
        return MAX_TREE if self._fixed is None else min(self._fixed, MAX_TREE)

    def cut(self, draft: Draft) -> Draft:
        """The beginning of the draft that is worth sending."""
        if self._fixed is not None:
            return draft[: self._fixed]
        if not draft or self._plain is None:
            return draft[:0]  # the first round measures what a plain one takes
        if not self._drafted.weight:
            return draft[:FIRST_TREE]
        guess = GUESSED_ROW_SHARE * self._plain
        best_size, best_rate = 0, 1.0 / self._plain
        tokens = 1.0
        for size, node in enumerate(draft, 1):
            tokens += node.reach
            rate = tokens / self._drafted.predict(size, guess)
            if rate > best_rate:
                best_size, best_rate = size, rate
        if best_size == 0 and self._rounds_without >= self._probe_after:
            self._probe_after = min(2 * self._probe_after, MAX_PROBE_AFTER)
            return draft[:2]
        return draft[:best_size]

    def observe(self, num_nodes: int, seconds: float) -> None:
        """A round with so many drafted nodes took so long, from sending it to its verdict."""
        if num_nodes:
            self._rounds_without = 0
            self._drafted.add(num_nodes, seconds)
        else:
            self._rounds_without += 1
            self._plain = seconds if self._plain is None else FORGET * self._plain + (1 - FORGET) * seconds
