"""What a pass costs, tried out on an engine. Pure but for the clock that it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from peer.formats import ELEMENT_BYTES
from peer.plan import Engine, PassPart, PassPlan
from routing.domain import SamplingParams, Span
from routing.messages import Rows

MEASURED_ROWS = (1, 8, 32)
_CACHE = -1  # a number that no session has


def measure(
    engine: Engine,
    span: Span,
    width: int,
    rows_format: str,
    clock: Callable[[], float],
    sizes: Sequence[int] = MEASURED_ROWS,
) -> tuple[tuple[int, float], ...]:
    """(rows, seconds) of passes of one session without a text before it; the last blocks verify every row.

    Each size is run three times, the first one to warm up; the faster of the others counts.

    Args:
        engine: its caches are left as they were.
        span: the blocks to run.
        width: numbers in a row between spans.
        rows_format: of these numbers, a name of ``peer.formats``.
        clock: seconds.
        sizes: numbers of rows.

    Raises:
        RuntimeError: the engine could not do it.
    """
    measured: list[tuple[int, float]] = []
    for num_rows in sizes:
        plan = PassPlan(span, (_chain(span, num_rows, width, rows_format),))
        seconds: list[float] = []
        for _ in range(3):
            began = clock()
            [outcome] = engine.run(plan)
            seconds.append(clock() - began)
            engine.forget([_CACHE])
            if outcome.failure is not None:
                raise RuntimeError(f"a pass of {num_rows} rows failed: {outcome.failure}")
        measured.append((num_rows, round(min(seconds[1:]), 6)))
    return tuple(measured)


def _chain(span: Span, num_rows: int, width: int, rows_format: str) -> PassPart:
    """A text of so many tokens, none of them known; its rows are zeros."""
    positions = np.arange(num_rows)
    zeros = memoryview(bytes(num_rows * width * ELEMENT_BYTES[rows_format]))
    return PassPart(
        cache=_CACHE,
        max_tokens=num_rows,
        params=SamplingParams(),
        first=0,
        moves=positions[:0],
        num_committed=0,
        ids=positions + 1,
        parents=positions,
        tokens=np.zeros(num_rows, np.int64),
        open_positions=positions,
        verify_from=0,
        rows=Rows(rows_format, num_rows, width, zeros) if span.start > 0 else None,
    )
