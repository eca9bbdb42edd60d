from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.domain import PeerId, PeerRecord, Span
from routing.errors import NoRoute
from routing.planner import best_route, step_seconds
from tests.peer_records import record_of

MAX_PEERS, MAX_BLOCKS = 5, 6


@dataclass(frozen=True, slots=True)
class Swarm:
    num_blocks: int
    records: list[PeerRecord]
    links: list[list[int]]

    def latency(self, here: PeerId | None, there: PeerId | None) -> float:
        row, column = (MAX_PEERS if peer is None else int(peer) for peer in (here, there))
        return self.links[row][column] / 100

    def cost(self, hops: list[tuple[PeerRecord, int, int]]) -> float:
        ends: list[PeerId | None] = [None, *(peer.peer for peer, _, _ in hops), None]
        ways = sum(self.latency(here, there) for here, there in pairwise(ends))
        return ways + sum(step_seconds(peer, 1) / len(peer.span) * (end - start) for peer, start, end in hops)

    def all_ways(
        self, start: int = 0, used: frozenset[str] = frozenset()
    ) -> Iterator[list[tuple[PeerRecord, int, int]]]:
        """Every way through the blocks from ``start`` on, each peer once, cut where spans start or end."""
        if start == self.num_blocks:
            yield []
        cuts = {self.num_blocks, *(cut for peer in self.records for cut in (peer.span.start, peer.span.end))}
        for peer in self.records:
            for end in cuts:
                if peer.peer not in used and start < end and peer.span.covers(Span(start, end)):
                    for rest in self.all_ways(end, used | {peer.peer}):
                        yield [(peer, start, end), *rest]


@st.composite
def swarms(draw: st.DrawFn) -> Swarm:
    """Few blocks, and ways that cost about what blocks cost: coming back to a peer is often worth it."""
    num_blocks = draw(st.integers(1, MAX_BLOCKS))
    spans = st.lists(st.integers(0, num_blocks), min_size=2, max_size=2, unique=True).map(sorted)
    records = [
        record_of(
            str(number),
            num_blocks=num_blocks,
            span=Span(start, end),
            step_seconds=((1, draw(st.integers(0, 6)) / 100 * (end - start)),),
        )
        for number, (start, end) in enumerate(draw(st.lists(spans, min_size=1, max_size=MAX_PEERS)))
    ]
    row = st.lists(st.sampled_from([0, 0, 0, 1]), min_size=MAX_PEERS + 1, max_size=MAX_PEERS + 1)
    return Swarm(num_blocks, records, draw(st.lists(row, min_size=MAX_PEERS + 1, max_size=MAX_PEERS + 1)))


@settings(max_examples=300)
@given(swarms())
def test_a_route_is_the_cheapest_of_those_that_have_each_peer_once(swarm: Swarm) -> None:
    costs = [swarm.cost(way) for way in swarm.all_ways()]
    if not costs:
        with pytest.raises(NoRoute):
            best_route(swarm.records, swarm.num_blocks, swarm.latency)
        return
    route = best_route(swarm.records, swarm.num_blocks, swarm.latency)
    peers = {peer.peer: peer for peer in swarm.records}
    assert len({hop.peer for hop in route.hops}) == len(route)
    assert all(peers[hop.peer].span.covers(hop.span) for hop in route.hops)
    assert route.num_blocks == swarm.num_blocks
    cost = swarm.cost([(peers[hop.peer], hop.span.start, hop.span.end) for hop in route.hops])
    assert cost == pytest.approx(min(costs), abs=1e-9)
