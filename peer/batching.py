"""Which waves form the next forward pass. Pure."""

from __future__ import annotations

from collections.abc import Sequence

ROW_BUDGET = 256
"""Rows of a pass; beyond it a pass holds up the sessions that only want their next token."""


def next_pass(waiting: Sequence[tuple[int, bool]], row_budget: int = ROW_BUDGET) -> list[int]:
    """Waves that are verified first, then prefill chunks into what the row budget leaves.

    Args:
        waiting: (rows, is it verified) of the first wave of each session, those that waited longest first.
        row_budget: rows that a pass should have at most; the first wave is taken whatever its size.

    Returns:
        Indices into ``waiting``, in the order of the pass.
    """
    order = sorted(range(len(waiting)), key=lambda index: not waiting[index][1])
    taken: list[int] = []
    num_rows = 0
    for index in order:
        rows = waiting[index][0]
        if not taken or num_rows + rows <= row_budget:
            taken.append(index)
            num_rows += rows
    return taken
