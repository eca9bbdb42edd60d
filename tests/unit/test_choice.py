from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from routing.choice import MAX_ASKED, Doubt, Wanted, choose_variant, doubt, worth_asking
from routing.domain import ModelId, PeerRecord, PeerState, Span
from routing.health import Health
from routing.messages import PROTOCOL_VERSION
from tests.peer_records import MODEL, record_of

NUM_BLOCKS = 30
WANTED = Wanted(MODEL.name, MODEL.config, NUM_BLOCKS, PROTOCOL_VERSION)
INVENTED = replace(MODEL, weights="0" * 8)  # comes before ours by name
NOW = 100.0


def at(number: int) -> str:
    """An address in a place of its own."""
    return f"/ip4/{20 + number // 250}.{number % 250}.1.1/tcp/4001"


def record(peer: str, start: int = 0, end: int = NUM_BLOCKS, place: int = 0, **changes: object) -> PeerRecord:
    return record_of(peer, **{"num_blocks": NUM_BLOCKS, "span": Span(start, end), "addresses": (at(place),), **changes})


def honest() -> list[PeerRecord]:
    """Ten peers in ten places, three blocks each."""
    return [record(f"honest {number}", 3 * number, 3 * number + 3, place=number) for number in range(10)]


def crowd(num: int, first_place: int, num_of_place: int = 8) -> list[PeerRecord]:
    """Strangers that say they serve everything, with much room."""
    return [
        record(f"a stranger {number:04}", place=first_place + number // num_of_place, num_free_kv_tokens=10**6)
        for number in range(num)
    ]


def names(records: Sequence[PeerRecord]) -> list[str]:
    return [record.peer for record in records]


def missing(records: Sequence[PeerRecord]) -> tuple[Span, ...]:
    return Span(0, NUM_BLOCKS).missing(record.span for record in records)


def num_calls_to_a_route(records: Sequence[PeerRecord]) -> int:
    """How often a client must ask, at once again each time, until honest peers that answered serve all blocks."""
    health, answered = Health(), list[PeerRecord]()
    for num_calls in range(1, 1000):
        for peer in worth_asking(records, NUM_BLOCKS, health, NOW, 100):
            if peer.peer.startswith("honest"):
                health.answered(peer.peer, NOW, 0.05)
                answered.append(peer)
            else:
                health.failed(peer.peer, NOW)
        if not missing(answered):
            return num_calls
    raise AssertionError(f"no route: {missing(answered)} are missing")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"model": ModelId("other", MODEL.config, MODEL.weights)}, Doubt.OTHER_MODEL),
        ({"model": ModelId(MODEL.name, "f" * 8, MODEL.weights)}, Doubt.OTHER_CONFIG),
        ({"model": INVENTED}, None),
        ({"num_blocks": 100_000}, Doubt.WRONG_BLOCKS),
        ({"num_blocks": 1, "span": Span(0, 1)}, Doubt.WRONG_BLOCKS),
        ({"span": Span(0, NUM_BLOCKS + 1)}, Doubt.WRONG_BLOCKS),
        ({"protocol": PROTOCOL_VERSION + 1}, Doubt.OTHER_PROTOCOL),
    ],
)
def test_a_record_is_held_against_what_the_client_knows(changes: dict[str, object], said: Doubt | None) -> None:
    assert doubt(replace(record("peer"), **changes), WANTED) == said  # type: ignore[arg-type]


def test_records_that_are_not_believed_do_not_count() -> None:
    liars = [
        record("long", num_blocks=100_000),
        record("short", 0, 1, num_blocks=1),
        record("old", protocol=1),
        record("other", model=ModelId(MODEL.name, "f" * 8, MODEL.weights)),
    ]
    variant = choose_variant([*liars, *honest()], WANTED)
    assert variant is not None
    assert names(variant.records) == names(honest())
    assert choose_variant(liars, WANTED) is None
    assert Counter(doubt(liar, WANTED) for liar in liars) == {
        Doubt.WRONG_BLOCKS: 2, Doubt.OTHER_PROTOCOL: 1, Doubt.OTHER_CONFIG: 1,
    }  # fmt: skip


def test_nobody_serves_no_variant() -> None:
    assert choose_variant([], WANTED) is None


@pytest.mark.parametrize("num_strangers", [1, 8, 1000])
def test_an_invented_variant_at_one_place_captures_nobody(num_strangers: int) -> None:
    invented = [replace(stranger, model=INVENTED) for stranger in crowd(num_strangers, 50, num_of_place=1000)]
    variant = choose_variant([*invented, *honest()], WANTED)
    assert variant is not None
    assert variant.model == MODEL


def test_the_variant_that_lacks_the_fewest_blocks_wins_then_the_one_with_most_places_then_peers_then_names() -> None:
    other = replace(MODEL, weights="f" * 8)

    def winner(*records: PeerRecord) -> ModelId:
        variant = choose_variant(records, WANTED)
        assert variant is not None
        return variant.model

    half = record("half", 0, 15)
    assert winner(half, record("whole", model=other)) == other
    assert winner(half, record("leaving", state=PeerState.DRAINING), record("whole", model=other)) == other
    assert winner(record("a", place=1), record("b", place=1), record("c", place=1, model=other)) == MODEL
    one_place = [record(f"many {number}", place=1) for number in range(5)]
    assert winner(*one_place, record("x", place=2, model=other), record("y", place=3, model=other)) == other
    assert winner(record("a", place=1), record("b", place=2, model=other)) == MODEL


def test_a_variant_whose_peers_did_not_answer_is_left_out() -> None:
    records = [record("stranger", model=INVENTED), record("peer")]
    first = choose_variant(records, WANTED)
    assert first is not None
    second = choose_variant(records, WANTED, {first.model})
    assert second is not None
    assert {first.model, second.model} == {MODEL, INVENTED}
    assert choose_variant(records, WANTED, {MODEL, INVENTED}) is None


def test_the_records_of_a_variant_come_in_the_order_of_their_spans() -> None:
    variant = choose_variant([record("c", 20, 30), record("b", 0, 10), record("a", 0, 20), record("0", 0, 10)], WANTED)
    assert variant is not None
    assert names(variant.records) == ["0", "b", "a", "c"]


def test_at_most_so_many_are_asked_and_all_blocks_are_covered_as_often_as_that_allows() -> None:
    records = [
        record(f"{start}-{number}", start, start + 10, place=number) for start in (0, 10, 20) for number in range(9)
    ]
    asked = worth_asking(records, NUM_BLOCKS, Health(), NOW)
    assert len(asked) == MAX_ASKED
    assert sorted(Counter(peer.span for peer in asked).values()) == [5, 5, 6]
    assert not missing(asked[:3])
    assert len(worth_asking(records[:5], NUM_BLOCKS, Health(), NOW)) == 5
    assert worth_asking([], NUM_BLOCKS, Health(), NOW) == []


def test_a_swarm_of_many_small_spans_is_covered_though_it_takes_more_peers() -> None:
    small = [record(f"{block:02}", block, block + 1, place=block) for block in range(NUM_BLOCKS)]
    assert names(worth_asking(small, NUM_BLOCKS, Health(), NOW)) == names(small)
    with_gap = small[:7] + small[12:]
    assert names(worth_asking(with_gap, NUM_BLOCKS, Health(), NOW)) == names(with_gap)


def test_few_small_spans_are_not_taken_where_the_limit_needs_long_ones() -> None:
    small = [record(f"{block:02}", block, block + 1, place=block) for block in range(NUM_BLOCKS)]
    long = [record("x", 0, 15, place=99), record("y", 15, 30, place=99)]
    asked = worth_asking([*small, *long], NUM_BLOCKS, Health(), NOW, limit=4)
    assert len(asked) == 4
    assert not missing(asked)


def test_only_peers_that_are_online_and_inside_the_model_are_asked() -> None:
    records = [record("leaving", state=PeerState.DRAINING), record("new", state=PeerState.JOINING), record("ready")]
    assert names(worth_asking([*records, record("too long", 0, 31)], NUM_BLOCKS, Health(), NOW)) == ["ready"]


def test_equal_records_give_an_equal_choice_whatever_their_order() -> None:
    records = [*honest(), *crowd(100, 50)]
    choice = names(worth_asking(records, NUM_BLOCKS, Health(), NOW))
    assert names(worth_asking(records[::-1], NUM_BLOCKS, Health(), NOW)) == choice
    assert choose_variant(records, WANTED) == choose_variant(records[::-1], WANTED)


def test_who_answered_comes_before_strangers_and_strangers_before_who_failed() -> None:
    health = Health()
    health.answered(record("known").peer, 0.0, 0.05)
    health.failed(record("failed").peer, 0.0)
    records = [record("failed", place=1), record("stranger", place=2), record("known", place=3)]
    assert not health.is_shunned(record("failed").peer, NOW)
    assert names(worth_asking(records, NUM_BLOCKS, health, NOW)) == ["known", "stranger", "failed"]


def test_a_shunned_peer_is_asked_only_where_nobody_else_serves_a_block() -> None:
    health = Health()
    records = [record("shunned", 0, 20, place=1), record("first", 0, 5, place=2), record("last", 15, 30, place=3)]
    health.failed(records[0].peer, NOW)
    assert names(worth_asking(records, NUM_BLOCKS, health, NOW)) == ["first", "shunned", "last"]
    between = record("between", 5, 15, place=4)
    assert names(worth_asking([*records, between], NUM_BLOCKS, health, NOW)) == ["first", "between", "last"]
    assert names(worth_asking(records[:1], NUM_BLOCKS, health, NOW)) == ["shunned"]


def test_a_faulty_peer_comes_after_others_that_answer() -> None:
    health = Health()
    faulty, sound = record("a faulty one"), record("b")
    health.failed(faulty.peer, NOW)
    for peer in (faulty, sound):
        health.answered(peer.peer, NOW, 0.05)
    assert names(worth_asking([faulty, sound], NUM_BLOCKS, health, NOW)) == ["b", "a faulty one"]


def test_room_then_queue_then_round_trip_decide_among_equals() -> None:
    health = Health()
    records = [
        record("full", num_free_kv_tokens=10),
        record("busy", queue=3),
        record("far"),
        record("near"),
    ]
    for peer in records:
        health.answered(peer.peer, NOW, 0.3 if peer.peer == "far" else 0.01)
    asked = worth_asking(records, NUM_BLOCKS, health, NOW, num_kv_tokens=100)
    assert names(asked) == ["near", "far", "busy", "full"]


def test_places_take_turns() -> None:
    records = [*(record(f"a{number}", place=1) for number in range(5)), record("b", place=2), record("c", place=3)]
    assert names(worth_asking(records, NUM_BLOCKS, Health(), NOW, limit=4)) == ["a0", "b", "c", "a1"]


@pytest.mark.parametrize("first_place", [5, 50], ids=["beside honest ones", "elsewhere"])
@pytest.mark.parametrize("num_of_place", [8, 1000])
def test_a_thousand_dead_strangers_do_not_hide_ten_honest_peers(num_of_place: int, first_place: int) -> None:
    assert num_calls_to_a_route([*honest(), *crowd(1000, first_place, num_of_place)]) <= 3


def test_dead_strangers_with_any_spans_and_eight_of_a_place_are_through_within_twenty_calls() -> None:
    strangers = [
        replace(stranger, span=Span(number % 20, number % 20 + 3 + number % 7))
        for number, stranger in enumerate(crowd(1000, 50))
    ]
    assert num_calls_to_a_route([*honest(), *strangers]) <= 20
