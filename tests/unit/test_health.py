from __future__ import annotations

import pytest

from routing.domain import PeerId
from routing.health import MAX_PEERS, MEMORY_SECONDS, Health

PEER = PeerId("peer")


def shunned_seconds(health: Health, now: float) -> int:
    """For how long from now the peer is shunned."""
    return next(seconds for seconds in range(1000) if not health.is_shunned(PEER, now + seconds))


def test_a_stranger_is_not_shunned_and_has_not_failed() -> None:
    health = Health()
    assert not health.is_shunned(PEER, 0.0)
    assert not health.is_answering(PEER)
    assert health.num_failures(PEER, 0.0) == 0
    assert health.rtt_seconds(PEER) is None


def test_each_failure_doubles_the_time_up_to_a_minute() -> None:
    health, now = Health(), 0.0
    times = []
    for _ in range(8):
        health.failed(PEER, now)
        times.append(shunned_seconds(health, now))
        now += times[-1]
    assert times == [2, 4, 8, 16, 32, 60, 60, 60]


def test_very_many_failures_are_still_a_minute() -> None:
    health = Health()
    for _ in range(5000):
        health.failed(PEER, 0.0)
    assert shunned_seconds(health, 0.0) == 60


def test_an_answer_ends_the_back_off_at_once() -> None:
    health = Health()
    for _ in range(5):
        health.failed(PEER, 10.0)
    health.answered(PEER, 11.0, 0.05)
    assert not health.is_shunned(PEER, 11.0)
    assert health.is_answering(PEER)
    assert health.rtt_seconds(PEER) == 0.05


def test_a_peer_that_answers_pings_and_fails_at_work_is_shunned_longer_each_time() -> None:
    health, times = Health(), []
    for now in (0.0, 10.0, 20.0, 30.0):
        health.answered(PEER, now, 0.05)
        health.failed(PEER, now + 1)
        assert not health.is_answering(PEER)
        times.append(shunned_seconds(health, now + 1))
    assert times == [2, 4, 8, 16]


def test_a_failure_is_forgotten_after_some_minutes() -> None:
    health = Health()
    for _ in range(3):
        health.failed(PEER, 0.0)
    assert health.num_failures(PEER, MEMORY_SECONDS - 1) == 3
    assert health.num_failures(PEER, MEMORY_SECONDS) == 0
    health.answered(PEER, MEMORY_SECONDS, 0.05)
    health.failed(PEER, MEMORY_SECONDS + 1)
    assert shunned_seconds(health, MEMORY_SECONDS + 1) == 2


@pytest.mark.parametrize("max_peers", [1, 3, MAX_PEERS])
def test_only_so_many_peers_are_remembered_and_those_seen_last(max_peers: int) -> None:
    health = Health(max_peers)
    health.failed(PEER, 0.0)
    for number in range(max_peers - 1):
        health.failed(PeerId(f"other {number}"), 0.0)
    health.failed(PEER, 1.0)
    health.failed(PeerId("newcomer"), 1.0)
    assert len(health) == max_peers
    assert health.num_failures(PEER, 1.0) == (2 if max_peers > 1 else 0)
    assert health.num_failures(PeerId("newcomer"), 1.0) == 1
    assert health.num_failures(PeerId("other 0"), 1.0) == 0
