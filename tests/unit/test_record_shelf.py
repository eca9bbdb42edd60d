from __future__ import annotations

from dataclasses import replace

import pytest

from routing.domain import PeerId, PeerRecord, PeerState
from routing.record_rules import CLOCK_SLACK_SECONDS, MAX_LIFE_SECONDS, MAX_PER_KEY, MAX_PER_PLACE
from routing.record_shelf import MAX_LOCAL_PER_KEY, MAX_PER_PLACE_IN_ALL, MAX_RECORDS, RecordShelf
from tests.peer_records import record_of

NOW = 1000.0
TOO_LATE = NOW + MAX_LIFE_SECONDS + CLOCK_SLACK_SECONDS + 1
KEY = b"k" * 20


def at(number: int) -> str:
    """An address in a place of its own."""
    return f"/ip4/{20 + number // 250}.{number % 250}.1.1/tcp/4001"


def record(peer: str, address: str, expiry: float = NOW + 300) -> PeerRecord:
    return record_of(peer, addresses=(address,), expiry=expiry)


def put(shelf: RecordShelf, record: PeerRecord, now: float = NOW, key: bytes = KEY) -> bool:
    return shelf.put(key, record, record.peer.encode(), now)


def peers(shelf: RecordShelf, now: float = NOW) -> list[PeerId]:
    return list(shelf.under(KEY, now))


def test_who_comes_late_pushes_nobody_out() -> None:
    shelf = RecordShelf()
    honest = [record(f"honest {number}", at(number)) for number in range(10)]
    assert all(put(shelf, record) for record in honest)
    for number in range(1000):
        put(shelf, record(f"stranger {number}", at(100 + number)))
    assert peers(shelf)[:10] == [record.peer for record in honest]
    assert len(peers(shelf)) == MAX_PER_KEY
    renewed = [replace(record, expiry=record.expiry + 60) for record in honest]
    assert all(put(shelf, record) for record in renewed)
    assert peers(shelf)[:10] == [record.peer for record in honest]


def test_strangers_at_one_place_leave_room_for_all_others() -> None:
    shelf = RecordShelf()
    stored = [put(shelf, record(f"stranger {number}", f"/ip4/8.8.1.{number % 250}/tcp/1")) for number in range(1000)]
    assert sum(stored) == MAX_PER_PLACE
    assert all(put(shelf, record(f"honest {number}", at(number))) for number in range(10))


def test_private_addresses_may_be_many_and_leave_half_of_the_room() -> None:
    shelf = RecordShelf()
    stored = [put(shelf, record(f"near {number}", "/ip4/192.168.1.2/tcp/1")) for number in range(1000)]
    assert sum(stored) == MAX_LOCAL_PER_KEY > 100
    assert put(shelf, record("far", at(1)))


@pytest.mark.parametrize(
    "expiry", [1e300, float("inf"), float("nan"), NOW + MAX_LIFE_SECONDS + CLOCK_SLACK_SECONDS + 1, NOW, 0.0]
)
def test_what_would_stay_too_long_or_is_over_is_refused(expiry: float) -> None:
    shelf = RecordShelf()
    assert not put(shelf, record("peer", at(1), expiry))
    assert peers(shelf) == []


def test_a_writers_clock_may_be_ninety_seconds_off() -> None:
    shelf = RecordShelf()
    assert put(shelf, record("ahead", at(1), NOW + 300 + CLOCK_SLACK_SECONDS))
    assert put(shelf, record("behind", at(2), NOW + 300 - CLOCK_SLACK_SECONDS))


def test_an_older_record_does_not_replace_a_newer_one() -> None:
    shelf = RecordShelf()
    assert put(shelf, record("peer", at(1), NOW + 300))
    assert not put(shelf, record("peer", at(1), NOW + 300))
    assert not put(shelf, record("peer", at(1), NOW + 200))
    assert put(shelf, record("peer", at(1), NOW + 301))
    assert [kept.expiry for kept in shelf.under(KEY, NOW).values()] == [NOW + 301]


def test_what_has_expired_makes_room() -> None:
    shelf = RecordShelf()
    for number in range(MAX_PER_PLACE):
        assert put(shelf, record(f"peer {number}", at(1), NOW + 10 + number))
    newcomer = record("newcomer", at(1))
    assert not put(shelf, newcomer)
    assert put(shelf, newcomer, NOW + 10)
    assert peers(shelf, NOW + 400) == []
    assert len(shelf) == 0


def test_a_goodbye_stays_until_somebody_needs_its_room() -> None:
    shelf = RecordShelf()
    records = [record(f"peer {number}", at(1)) for number in range(MAX_PER_PLACE)]
    assert all(put(shelf, record) for record in records)
    assert put(shelf, replace(records[3], state=PeerState.GONE, expiry=NOW + 301))
    assert shelf.under(KEY, NOW)[PeerId("peer 3")].is_goodbye
    assert put(shelf, record("newcomer", at(1)))
    assert "peer 3" not in peers(shelf)
    assert not put(shelf, record("another", at(1)))


def test_who_moves_to_a_full_place_is_a_newcomer_there() -> None:
    shelf = RecordShelf()
    for number in range(MAX_PER_PLACE):
        assert put(shelf, record(f"peer {number}", at(1)))
    assert put(shelf, record("mover", at(2)))
    assert not put(shelf, record("mover", at(1), NOW + 301))
    assert put(shelf, record("mover", at(3), NOW + 301))


def test_there_is_a_bound_on_all_keys_together_and_for_each_place() -> None:
    shelf = RecordShelf()
    keys = [number.to_bytes(20, "big") for number in range(MAX_RECORDS // MAX_PER_KEY + 2)]
    assert sum(put(shelf, record("peer", at(1)), key=key) for key in keys) == MAX_PER_PLACE_IN_ALL
    for number in range(MAX_PER_KEY + 1):
        for key in keys:
            put(shelf, record(f"peer {number}", at(2 + number)), key=key)
    assert len(shelf) <= MAX_RECORDS
    assert set(shelf.keys(NOW)) <= set(keys)
    assert list(shelf.keys(NOW + 301)) == []
    assert len(shelf) == 0
