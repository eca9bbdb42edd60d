"""Which route to take: exact, over every peer and every place where one may take over from another. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from routing.domain import Hop, PeerId, PeerRecord, PeerState, Route, Span
from routing.errors import NoRoute

Latency = Callable[[PeerId | None, PeerId | None], float]
"""Seconds one way between two peers; None is the client."""

DEFAULT_STEP_SECONDS = 0.05


def step_seconds(record: PeerRecord, num_rows: int) -> float:
    """How long a peer says that a forward pass of so many rows takes, between the sizes it has measured."""
    points = sorted(record.step_seconds)
    if not points:
        return DEFAULT_STEP_SECONDS
    below = [point for point in points if point[0] <= num_rows] or points[:1]
    above = [point for point in points if point[0] >= num_rows] or points[-1:]
    (rows_low, low), (rows_high, high) = below[-1], above[0]
    if rows_high == rows_low:
        return low
    return low + (high - low) * (num_rows - rows_low) / (rows_high - rows_low)


def best_route(records: Sequence[PeerRecord], num_blocks: int, latency: Latency, num_rows: int = 1) -> Route:
    """The cheapest way through all blocks and back to the client.

    A hop costs the way to it, and its step for ``num_rows`` rows times (1 + its queue), in proportion to the
    part of its span that it runs. Among equals the fewer hops win, then the lower peer ids: two clients choose alike.

    Args:
        records: of one model; only peers that are online count.
        num_blocks: of the whole model.
        latency: one way, in seconds.
        num_rows: nodes that a wave of this route will have.

    Raises:
        NoRoute: some blocks are served by nobody.
    """
    online = sorted((r for r in records if r.state is PeerState.ONLINE), key=lambda record: record.peer)
    whole = Span(0, num_blocks)
    if missing := whole.missing(record.span for record in online):
        raise NoRoute(records[0].model.name if records else "the model", missing)
    ends = sorted({num_blocks, *(b for r in online for b in (r.span.start, r.span.end) if 0 < b <= num_blocks)})
    # The best way to have run the blocks [0, end) with a given peer last: (cost, hops, peers and ends on the way).
    best: dict[int, dict[PeerId, tuple[float, int, tuple[tuple[PeerId, int], ...]]]] = {end: {} for end in ends}
    for start in (0, *ends[:-1]):
        arrivals = [(0.0, 0, ())] if start == 0 else list(best[start].values())
        for record in online:
            if not record.span.start <= start < record.span.end:
                continue
            compute = step_seconds(record, num_rows) * (1 + record.queue) / len(record.span)
            for end in (end for end in ends if start < end <= record.span.end):
                for cost, num_hops, way in arrivals:
                    before = way[-1][0] if way else None
                    if before == record.peer:
                        continue  # one longer hop, which is also tried, costs less
                    total = cost + latency(before, record.peer) + compute * (end - start)
                    candidate = (total, num_hops + 1, (*way, (record.peer, end)))
                    if record.peer not in best[end] or candidate < best[end][record.peer]:
                        best[end][record.peer] = candidate
    finals = [(cost + latency(peer, None), hops, way) for peer, (cost, hops, way) in best[num_blocks].items()]
    addresses = {record.peer: record.addresses for record in online}
    hops: list[Hop] = []
    start = 0
    for peer, end in min(finals)[2]:
        hops.append(Hop(peer, Span(start, end), addresses[peer]))
        start = end
    return Route(tuple(hops))
