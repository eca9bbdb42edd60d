from __future__ import annotations

from peer.batching import next_pass


def test_waves_that_are_verified_go_first_and_prefill_fills_the_rest() -> None:
    assert next_pass([(128, False), (1, True), (8, True), (128, False)], 256) == [1, 2, 0]


def test_a_small_prefill_passes_one_that_does_not_fit() -> None:
    assert next_pass([(200, False), (100, True), (56, False)], 256) == [1, 2]


def test_the_first_wave_is_taken_whatever_its_size() -> None:
    assert next_pass([(1000, False), (1000, False)], 256) == [0]
    assert next_pass([], 256) == []
