"""Which blocks a joining peer should serve. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from routing.domain import Span


def worst_covered(served: Iterable[Span], num_blocks: int, num_wanted: int) -> Span:
    """The span of ``num_wanted`` blocks that the swarm needs most.

    A block that nobody serves outweighs any number of thinly served ones, one that a single peer serves those that
    two serve, and so on; among equal spans the first wins.

    Args:
        served: spans of the peers that are there.
        num_blocks: of the whole model.
        num_wanted: at least 1; more than the model has means all of it.
    """
    cover = [0] * num_blocks
    for span in served:
        for block in range(span.start, min(span.end, num_blocks)):
            cover[block] += 1
    length = max(1, min(num_wanted, num_blocks))
    starts = range(num_blocks - length + 1)
    start = min(starts, key=lambda first: sorted(cover[first : first + length]))
    return Span(start, start + length)
