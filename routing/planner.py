"""Which route to take: the cheapest, over every place where one peer may take over from another. Pure.

A hop may end wherever somebody's span starts or ends. Between two such cuts the peer that runs either goes on or hands
over, so one pass over the cuts finds the cheapest way. It may come back to a peer that it has left, which no peer
accepts: then those peers are watched, which is to say that the pass is done again and remembers for each way which of
them it has left, until no peer comes back. There is always such a way: who would come back can run on instead.

Source: decremental state space relaxation, Righini and Salani, Networks 51(3), 2008.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from routing.domain import Hop, PeerId, PeerRecord, PeerState, Route, Span
from routing.errors import NoRoute

Latency = Callable[[PeerId | None, PeerId | None], float]
"""Seconds one way between two peers; None is the client."""

DEFAULT_STEP_SECONDS = 0.05
MAX_APART = 16
_TICKS = 10**12
"""Costs are whole picoseconds: what is equal must not differ by rounding."""

_Way = tuple[tuple[int, int], ...]
"""(peer, first block) of each hop; peers are numbers here, in the order of their ids."""

_Label = tuple[int, int, _Way]
"""A way up to some cut: its cost, its hops, itself. The lesser of two labels is the better way."""


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
    """The cheapest way through all blocks and back to the client that has each peer at most once.

    A hop costs the way to it, and its step for ``num_rows`` rows times (1 + its queue), in proportion to the
    part of its span that it runs. Among equals the fewer hops win, then the lower peer ids: two clients choose alike.

    The route is the cheapest of all but in one case: where peers would come back, and more than ``MAX_APART`` ways to
    one peer, each of which has left other peers, are worth keeping apart at some cut. Then the dearer ones are dropped,
    and another route may cost less. The time that this takes grows with the square of the number of peers, so give it
    few: ``routing.choice`` picks them.

    Args:
        records: of one model, one a peer; only peers that are online count.
        num_blocks: of the whole model.
        latency: one way, in seconds.
        num_rows: nodes that a wave of this route will have.

    Raises:
        NoRoute: some blocks are served by nobody.
    """
    online = sorted((r for r in records if r.state is PeerState.ONLINE), key=lambda record: record.peer)
    if missing := Span(0, num_blocks).missing(record.span for record in online):
        raise NoRoute(records[0].model.name if records else "the model", missing)
    ways = _ways(online, num_blocks, latency, num_rows)
    best = ways.cheapest(()) or ()  # without watching anybody there is a way
    watched: list[int] = []
    while coming_back := [peer for peer, num_hops in Counter(peer for peer, _ in best).items() if num_hops > 1]:
        watched += coming_back
        best = ways.cheapest(watched) or _run_on(best)
    ends = [*(start for _, start in best[1:]), num_blocks]
    return Route(
        tuple(
            Hop(online[peer].peer, Span(start, end), online[peer].addresses)
            for (peer, start), end in zip(best, ends, strict=True)
        )
    )


def _run_on(way: _Way) -> _Way:
    """The same way, but each peer that comes back runs all the blocks in between."""
    hops: list[tuple[int, int]] = []
    for peer, start in way:
        places = [place for place, (other, _) in enumerate(hops) if other == peer]
        if places:
            del hops[places[0] + 1 :]
        else:
            hops.append((peer, start))
    return tuple(hops)


@dataclass(frozen=True, slots=True)
class _Ways:
    """All ways through the blocks; numbers stand for the peers.

    Attributes:
        cuts: where a hop may begin or end, from 0 to the number of blocks.
        spans: of each peer.
        block_costs: of a block at each peer.
        links: links[a][b] is the cost of the way from a to b; the last number stands for the client.
    """

    cuts: list[int]
    spans: list[Span]
    block_costs: list[int]
    links: list[list[int]]

    def cheapest(self, watched: Sequence[int]) -> _Way | None:
        """The best way in which no watched peer comes back; None if every way was dropped that leads to the end."""
        client = len(self.spans)
        bits = {peer: 1 << place for place, peer in enumerate(watched)}
        # The best way to each peer that runs up to the cut, by (peer, bits of the watched ones that were there).
        running: dict[tuple[int, int], _Label] = {}
        for start, end in pairwise(self.cuts):
            after: dict[tuple[int, int], _Label] = {}
            useful = sum(bit for peer, bit in bits.items() if self.spans[peer].end > end)
            for peer, span in enumerate(self.spans):
                if not span.start <= start < span.end:
                    continue
                bit, cost_here = bits.get(peer, 0), self.block_costs[peer] * (end - start)
                if start == 0:
                    after[peer, bit & useful] = (self.links[client][peer] + cost_here, 1, ((peer, 0),))
                for (before, left), (cost, num_hops, way) in running.items():
                    if before == peer:
                        total, key = cost + cost_here, (peer, left & useful)
                    elif left & bit:
                        continue
                    else:
                        total, key = cost + self.links[before][peer] + cost_here, (peer, (left | bit) & useful)
                        num_hops += 1
                    known = after.get(key)
                    if known is None or total <= known[0]:
                        label = (total, num_hops, way if before == peer else (*way, (peer, start)))
                        if known is None or label < known:
                            after[key] = label
            running = _undominated(after) if bits else after
        back = [(cost + self.links[peer][client], num, way) for (peer, _), (cost, num, way) in running.items()]
        return min(back)[2] if back else None


def _ways(online: Sequence[PeerRecord], num_blocks: int, latency: Latency, num_rows: int) -> _Ways:
    everybody: list[PeerId | None] = [*(record.peer for record in online), None]
    ends = {block for record in online for block in (record.span.start, record.span.end) if block < num_blocks}
    return _Ways(
        cuts=sorted({0, num_blocks, *ends}),
        spans=[record.span for record in online],
        block_costs=[
            round(step_seconds(record, num_rows) * (1 + record.queue) / len(record.span) * _TICKS) for record in online
        ],
        links=[
            [0 if here == there else round(latency(here, there) * _TICKS) for there in everybody] for here in everybody
        ],
    )


def _undominated(labels: dict[tuple[int, int], _Label]) -> dict[tuple[int, int], _Label]:
    """The best ``MAX_APART`` ways to each peer, without those that have left more peers than a better one."""
    by_peer: dict[int, list[tuple[int, _Label]]] = {}
    for (peer, left), label in sorted(labels.items(), key=lambda item: item[1]):
        better = by_peer.setdefault(peer, [])
        if len(better) < MAX_APART and all(other & ~left for other, _ in better):
            better.append((left, label))
    return {(peer, left): label for peer, kept in by_peer.items() for left, label in kept}
