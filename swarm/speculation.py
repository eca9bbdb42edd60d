"""How large a tree to send now: as large as measurement says that it pays. Pure.

A round with n drafted nodes brings 1 + the sum of their reach tokens, and takes a time that is fitted as
fixed + per_row * n over the rounds before, with forgetting. A round without a draft is measured apart, because the step
from one row to two is often the dearest. The tree is cut where tokens a second are the most; that may be at none.
What has not been measured for long is tried again, drafts among plain rounds and a plain round among drafts, and what
is known of it from before counts little then: the world may have changed.

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
PLAIN_AFTER = 32
FIRST_TREE = 8
GUESSED_ROW_SHARE = 0.03
"""Of a plain round's time, what one more row is taken to cost at least until it has been measured."""


@dataclass(slots=True)
class _Fit:
    """Weighted least squares of seconds over nodes."""

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def add(self, num_nodes: int, seconds: float, keep: float) -> None:
        """One more round; from now on earlier ones count ``keep`` of what they did."""
        self.weight = self.weight * keep + 1
        self.x = self.x * keep + num_nodes
        self.y = self.y * keep + seconds
        self.xx = self.xx * keep + num_nodes * num_nodes
        self.xy = self.xy * keep + num_nodes * seconds

    def slope_from(self, plain_seconds: float) -> float:
        """Seconds a node, if half of what a drafted round takes beyond a plain one is its nodes' doing.

        The other half is the step to several rows. All of it would keep a tree of one node from ever growing, none
        of it would send large trees where every row is dear.
        """
        return (self.y - self.weight * plain_seconds) / self.x / 2

    def predict(self, num_nodes: int, guessed_slope: float) -> float:
        """Seconds of a round of so many nodes; the slope leans on the guess as long as sizes hardly differ."""
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
        self._rounds_without = 0  # drafts, one after the other
        self._rounds_with = 0
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
        if self._rounds_with >= PLAIN_AFTER:
            return draft[:0]
        guess = max(GUESSED_ROW_SHARE * self._plain, self._drafted.slope_from(self._plain))
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
        if best_size:
            self._probe_after = PROBE_AFTER
        return draft[:best_size]

    def observe(self, num_nodes: int, seconds: float) -> None:
        """A round with so many drafted nodes took so long, from sending it to its verdict."""
        if num_nodes:
            self._drafted.add(num_nodes, seconds, _keep(self._rounds_without))
            self._rounds_with += 1
            self._rounds_without = 0
        else:
            keep = _keep(self._rounds_with)
            self._plain = seconds if self._plain is None else keep * self._plain + (1 - keep) * seconds
            self._rounds_without += 1
            self._rounds_with = 0


def _keep(rounds_since: int) -> float:
    """What earlier measurements still count when the latest of them is so many rounds ago."""
    return FORGET ** max(1, rounds_since - PROBE_AFTER)
