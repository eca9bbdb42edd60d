from __future__ import annotations

from collections.abc import Sequence

import pytest

from peer.engines.measure import measure
from peer.engines.stand_in import StandInEngine
from peer.plan import Outcome, PassPlan
from routing.domain import Span


class Timed(StandInEngine):
    """It moves its own clock; the first pass of each size is slow."""

    now = 0.0
    known: frozenset[int] = frozenset()

    def run(self, plan: PassPlan) -> list[Outcome]:
        self.now += self.seconds(plan) + (0.0 if plan.num_rows in self.known else 5.0)
        self.known |= {plan.num_rows}
        return super().run(plan)


@pytest.mark.parametrize("span", [Span(0, 2), Span(0, 6)], ids=str)
@pytest.mark.parametrize("sizes", [(1, 8, 32), (16,)], ids=str)
def test_the_measured_seconds_are_those_of_a_warm_pass(span: Span, sizes: Sequence[int]) -> None:
    engine = Timed(6, len, fixed_seconds=0.01, row_seconds=0.001)
    measured = measure(engine, span, 4, "float32", lambda: engine.now, sizes)
    assert [num_rows for num_rows, _ in measured] == list(sizes)
    assert [seconds for _, seconds in measured] == pytest.approx([0.01 + 0.001 * num_rows for num_rows in sizes])


def test_an_engine_that_cannot_do_it_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"a pass of 1 rows failed: the rows are not those"):
        measure(StandInEngine(6, len), Span(2, 4), 4, "float32", lambda: 0.0)
