"""The hop by hand, cancelled waves: each still goes through, as a husk where nothing of it was computed."""

from __future__ import annotations

from msgspec.structs import replace

from peer.hop_events import CancelCame, Command, CreditCame, Send
from peer.plan import Outcome
from routing.messages import Cancel, Grant, Stale, Wave
from tests.hop_by_hand import (
    CLIENT,
    FIRST,
    LAST,
    MIDDLE,
    NEXT,
    OTHER,
    SESSION,
    HopByHand,
    Part,
    Pass,
    chain,
    done,
    gave,
    opened_at,
    passed_on,
    timing,
    verdict,
    walked,
    wave,
)


def cancel(hand: HopByHand, first: int, last: int | None = None, epoch: int = 0) -> list[Command | Pass]:
    return hand.happens(CancelCame(CLIENT, Cancel(SESSION, epoch, first, last or first)))


def husk(number: int, start: int = 0, first_row: int = 0) -> Send:
    return Send(NEXT, Wave(SESSION, 0, number, 0, start, (), first_row=first_row, is_cancelled=True))


def stale(number: int) -> Send:
    return Send(CLIENT, Stale(SESSION, 0, number))


def busy_at(index: int) -> HopByHand:
    """A session that waits while a pass of another one runs."""
    hand = opened_at(index)
    hand.opened(OTHER)
    hand.comes(wave(index, 1, chain(1), session=OTHER))
    return hand


def test_a_wave_that_waits_is_not_computed() -> None:
    hand = busy_at(MIDDLE)
    hand.comes(wave(MIDDLE, 1, chain(3), 3))
    assert cancel(hand, 1) == [husk(1, 3)]
    assert len(hand.is_computed(gave(1))) == 1  # of the other session


def test_the_last_hop_answers_each_wave_that_is_cancelled() -> None:
    hand = busy_at(LAST)
    for number in (1, 2, 3):
        hand.comes(wave(LAST, number, chain(3, 3 * number - 2), commit=3 * number - 3))
    assert cancel(hand, 1, 3) == [stale(1), stale(2), stale(3)]
    assert hand.comes(wave(LAST, 2, chain(3, 4), commit=3)) == [stale(2)]  # a repeat


def test_a_wave_that_is_in_a_pass_goes_on_whole() -> None:
    hand = opened_at(MIDDLE)
    came = wave(MIDDLE, 1, chain(3), 3)
    hand.comes(came)
    assert cancel(hand, 1) == []
    assert hand.is_computed(gave(3)) == [passed_on(came, gave(3), timing(3))]


def test_the_rest_of_a_prompt_that_is_in_a_pass_is_left_out() -> None:
    hand = opened_at(FIRST)
    came = wave(FIRST, 1, chain(200), 200)
    hand.comes(came)
    assert cancel(hand, 1) == []
    first = passed_on(replace(came, nodes=chain(128), is_last_part=False), gave(128))
    assert hand.is_computed(gave(128)) == [first, husk(1, 200, 128)]


def test_what_follows_a_wave_that_is_in_a_pass_is_let_go_after_it() -> None:
    hand = opened_at(LAST)
    hand.comes(wave(LAST, 1, chain(3)))
    hand.comes(wave(LAST, 2, chain(3, 4), 6, 3))
    assert cancel(hand, 1, 2) == []
    assert hand.is_computed(Outcome()) == [done(1, timing(3)), stale(2)]


def test_a_wave_of_which_parts_are_at_the_next_hop_ends_there_with_one_husk() -> None:
    """Parts 0:100 and 100:150 have gone on, 150:180 waits, the rest never comes."""
    hand = opened_at(MIDDLE)
    hand.opened(OTHER)
    whole = chain(200)
    for begin, end in [(0, 100), (100, 150)]:
        part = wave(MIDDLE, 1, whole[begin:end], 200, first_row=begin, is_last_part=False)
        hand.comes(part)
        assert hand.is_computed(gave(end - begin)) == [passed_on(part, gave(end - begin))]
    hand.comes(wave(MIDDLE, 1, chain(1), session=OTHER))
    assert hand.comes(wave(MIDDLE, 1, whole[150:180], 200, first_row=150, is_last_part=False)) == []
    assert cancel(hand, 1) == []  # the wave has not come in whole
    assert hand.comes(wave(MIDDLE, 1, whole[180:190], 200, first_row=180, is_last_part=False)) == []
    ending = wave(MIDDLE, 1, (), 200, first_row=190, is_cancelled=True)
    assert hand.comes(ending) == [husk(1, 200, 150)]
    assert len(hand.is_computed(gave(1))) == 1
    assert hand.comes(ending) == [Send(NEXT, Wave(SESSION, 0, 1, 0, 200, ()))]  # a repeat
    second = wave(MIDDLE, 2, chain(1, 201, 3), 201, 3, rewind=True)
    assert hand.comes(second) == [Pass((Part(1, chain(1, 201, 3), 3, (), 3, 0),))]


def test_a_husk_is_understood_without_a_word_from_the_client() -> None:
    hand = opened_at(LAST)
    hand.comes(wave(LAST, 1, chain(3), 5, is_last_part=False))
    assert hand.comes(wave(LAST, 1, (), 5, first_row=3, is_cancelled=True)) == []  # the part is in a pass
    assert hand.is_computed(Outcome()) == [stale(1)]
    hand.comes(wave(LAST, 2, chain(1, 6, 2), 6, 2, rewind=True), 1.0)
    assert hand.is_computed(walked(), now=1.5) == [verdict(2, (), timing(1))]  # and no timing of what was let go


def test_a_cancel_may_come_before_its_wave() -> None:
    hand = opened_at(MIDDLE)
    assert cancel(hand, 1, 2) == []
    assert hand.comes(wave(MIDDLE, 1, chain(3), 5, is_last_part=False)) == []
    assert hand.comes(wave(MIDDLE, 1, chain(2, 4), 5, first_row=3)) == [husk(1, 5)]
    assert hand.comes(wave(MIDDLE, 2, chain(1, 6))) == [husk(2)]
    assert hand.comes(wave(MIDDLE, 3, chain(1, 7, 0), rewind=True)) == [Pass((Part(1, chain(1, 7, 0)),))]


def test_cancels_of_neighbours_add_up() -> None:
    hand = busy_at(LAST)
    for number in (1, 2, 3):
        hand.comes(wave(LAST, number, chain(1, number)))
    assert cancel(hand, 2) == []
    assert cancel(hand, 1) == [stale(1), stale(2)]
    assert cancel(hand, 3, epoch=1) == []  # of another route
    assert cancel(hand, 3) == [stale(3)]


def test_what_waits_for_credit_goes_on_as_it_is_and_its_husk_behind_it() -> None:
    hand = opened_at(FIRST, window=400)  # parts of at most 4 rows
    came = wave(FIRST, 1, chain(12), 12)
    hand.comes(came)
    parts = [replace(came, nodes=chain(4, begin + 1), first_row=begin, is_last_part=False) for begin in (0, 4, 8)]
    assert hand.is_computed(gave(4))[0] == passed_on(parts[0], gave(4))
    assert hand.is_computed(gave(4))[0] == passed_on(parts[1], gave(4))  # 368 bytes now
    assert hand.comes(wave(FIRST, 2, chain(1, 13), 13, 12)) == []
    assert cancel(hand, 1, 2) == []
    assert hand.is_computed(gave(4)) == [Send(CLIENT, Grant(SESSION, 0, 760))]
    assert hand.happens(CreditCame(NEXT, Grant(SESSION, 0, 900))) == [
        passed_on(replace(came, nodes=chain(4, 9), first_row=8), gave(4), timing(12, 0.0, 3)),
        husk(2, 13),
    ]
