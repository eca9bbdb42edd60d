from __future__ import annotations

import itertools

import pytest

from routing.domain import PeerId, PeerRecord, PeerState, Span
from routing.errors import NoRoute
from routing.placement import worst_covered
from routing.planner import best_route, step_seconds
from tests.peer_records import record_of


def record(peer: str, start: int, end: int, *, step: float = 0.01, queue: int = 0, state: str = "online") -> PeerRecord:
    return record_of(
        peer,
        num_blocks=30,
        span=Span(start, end),
        addresses=(f"/memory/{peer}",),
        state=PeerState(state),
        queue=queue,
        step_seconds=((1, step), (9, step * 5)),
    )


def flat(_from: PeerId | None, _to: PeerId | None) -> float:
    return 0.05


def test_one_peer_with_everything_is_the_route_when_links_cost_more_than_blocks() -> None:
    records = [record("a", 0, 10), record("b", 10, 20), record("c", 20, 30), record("whole", 0, 30, step=0.04)]
    route = best_route(records, 30, flat)
    assert str(route) == "0:30 at ..whole"
    assert route.hops[0].addresses == ("/memory/whole",)


def test_three_fast_peers_beat_a_slow_whole_one() -> None:
    records = [record("a", 0, 10), record("b", 10, 20), record("c", 20, 30), record("whole", 0, 30, step=9.0)]
    assert [hop.peer for hop in best_route(records, 30, flat).hops] == ["a", "b", "c"]


def test_overlapping_spans_are_cut_where_one_takes_over() -> None:
    route = best_route([record("a", 0, 20), record("b", 8, 30)], 30, flat)
    assert [hop.span for hop in route.hops] in ([Span(0, 8), Span(8, 30)], [Span(0, 20), Span(20, 30)])


def test_a_peer_with_a_queue_is_passed_by() -> None:
    records = [record("busy", 0, 30, queue=20), record("idle", 0, 30)]
    assert best_route(records, 30, flat).hops[0].peer == "idle"


def test_a_peer_that_is_leaving_is_not_chosen_and_its_blocks_are_named() -> None:
    with pytest.raises(NoRoute, match=r"blocks 10:30 of tiny.*swarm serve MODEL --blocks 10:30") as caught:
        best_route([record("a", 0, 10), record("b", 10, 30, state="draining")], 30, flat)
    assert caught.value.missing == (Span(10, 30),)


def test_nobody_at_all_is_a_missing_model() -> None:
    with pytest.raises(NoRoute):
        best_route([], 30, flat)


def test_the_route_is_the_cheapest_of_all_that_there_are() -> None:
    peers = [record("a", 0, 3, step=0.03), record("b", 0, 5, step=0.2), record("c", 2, 6, step=0.08), record("d", 3, 6)]

    def latency(here: PeerId | None, there: PeerId | None) -> float:
        return (hash_of(here) * 7 + hash_of(there) * 3) % 11 / 100

    def hash_of(peer: PeerId | None) -> int:
        return 0 if peer is None else ord(peer[0])

    def cost(hops: list[tuple[PeerRecord, int, int]]) -> float:
        total, before = 0.0, None
        for peer, start, end in hops:
            total += latency(before, peer.peer) + step_seconds(peer, 1) * (end - start) / len(peer.span)
            before = peer.peer
        return total + latency(before, None)

    def all_ways(start: int) -> list[list[tuple[PeerRecord, int, int]]]:
        if start == 6:
            return [[]]
        return [
            [(peer, start, end), *rest]
            for peer, end in itertools.product(peers, range(start + 1, 7))
            if peer.span.covers(Span(start, end))
            for rest in all_ways(end)
        ]

    cheapest = min(map(cost, all_ways(0)))
    route = best_route(peers, 6, latency)
    by_id = {peer.peer: peer for peer in peers}
    assert cost([(by_id[hop.peer], hop.span.start, hop.span.end) for hop in route.hops]) == pytest.approx(cheapest)


def test_no_route_comes_back_to_a_peer_though_it_would_cost_less() -> None:
    """Peer b is faster in the middle of a's span and next door: a, b, a would be the cheapest."""
    slow, fast, between = record("a", 0, 30, step=3.0), record("b", 10, 20, step=0.01), record("c", 20, 30, step=1.2)

    def next_door(_from: PeerId | None, _to: PeerId | None) -> float:
        return 0.001

    assert str(best_route([slow, fast], 30, next_door)) == "0:30 at ..a"
    assert str(best_route([slow, fast, between], 30, next_door)) == "0:10 at ..a, 10:20 at ..b, 20:30 at ..c"


def test_a_route_over_many_nested_spans_has_each_peer_once() -> None:
    """The inner ones are faster, and both ends are served twice: there are more ways than are kept apart."""
    nested = [record(f"{number:02}", number // 2, 30 - number // 2, step=2.0 / (number + 1)) for number in range(28)]
    route = best_route(nested, 30, lambda here, there: 1e-5 if here and there else 0.01)
    assert len({hop.peer for hop in route.hops}) == len(route) > 2


def test_step_times_are_read_between_the_measured_sizes() -> None:
    peer = record("a", 0, 10, step=0.01)
    assert [step_seconds(peer, rows) for rows in (1, 5, 9, 100)] == pytest.approx([0.01, 0.03, 0.05, 0.05])


def test_the_worst_covered_blocks_come_first() -> None:
    assert worst_covered([], 30, 10) == Span(0, 10)
    assert worst_covered([Span(0, 10)], 30, 10) == Span(10, 20)
    assert worst_covered([Span(0, 10), Span(20, 30)], 30, 10) == Span(10, 20)
    assert worst_covered([Span(0, 10), Span(10, 20), Span(20, 30), Span(0, 15)], 30, 10) == Span(15, 25)
    assert worst_covered([Span(0, 29)], 30, 4) == Span(26, 30)
    assert worst_covered([Span(0, 30)], 30, 99) == Span(0, 30)
