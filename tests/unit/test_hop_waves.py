"""The hop by hand, waves and passes: for each event exactly the commands that follow."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from peer.early_waves import MAX_PEER_WAVES
from peer.hop_events import (
    CloseCame,
    CreditCame,
    Drop,
    Event,
    NextHopReached,
    OpenCame,
    Send,
    StreamLost,
    Tick,
    WaveCame,
)
from peer.plan import Outcome
from peer.seat import ANSWERS_KEPT
from routing.domain import SessionId
from routing.messages import Close, Fault, Grant, Opened, Wave
from tests.hop_by_hand import (
    BEFORE,
    CLIENT,
    FIRST,
    GRANTED,
    LAST,
    MIDDLE,
    NEXT,
    OTHER,
    PEERS,
    SECONDS,
    SESSION,
    HopByHand,
    Part,
    Pass,
    chain,
    code_of,
    done,
    ended,
    fault,
    gave,
    opened_at,
    passed_on,
    timing,
    verdict,
    walked,
    wave,
)

NO_SESSION = "this session is not open here: it was closed, or was idle for too long"


def opened(hand: HopByHand, session: SessionId = SESSION) -> Send:
    return Send(CLIENT, Opened(session, 0, GRANTED, first_grant=hand.hop._window))


# --- from hop to hop


def test_rows_go_to_the_next_hop_with_one_more_timing() -> None:
    hand = opened_at(MIDDLE)
    came = wave(MIDDLE, 1, chain(3), 3, timings=(timing(9),))
    assert hand.comes(came) == [Pass((Part(1, chain(3), verify_from=2),))]
    assert hand.is_computed(gave(3)) == [passed_on(came, gave(3), timing(3))]


def test_a_commit_moves_only_what_does_not_lie_in_its_place() -> None:
    hand = opened_at(MIDDLE)
    hand.comes(wave(MIDDLE, 1, chain(3)))
    hand.is_computed(gave(3))
    tree = ((4, 3, 5), (5, 4, 6), (6, 4, 7), (7, 6, 8))
    assert hand.comes(wave(MIDDLE, 2, tree, 4, 3)) == [Pass((Part(1, tree, 3, (), 3, 0),))]
    hand.is_computed(gave(4))
    assert hand.comes(wave(MIDDLE, 3, chain(1, 8, 6), 8, 6)) == [Pass((Part(1, chain(1, 8, 6), 3, (3, 5, 6), 5, 0),))]


def test_the_last_hop_says_where_the_walk_went_or_that_there_was_none() -> None:
    hand = opened_at(LAST)
    hand.comes(wave(LAST, 1, chain(3)))
    assert hand.is_computed(Outcome()) == [done(1, timing(3))]
    hand.comes(wave(LAST, 2, chain(3, 4), 4, 3))
    assert hand.is_computed(walked(5, 6, token=9)) == [verdict(2, (5, 6), timing(3), token=9)]


def test_what_comes_while_a_pass_runs_is_in_the_next_one_together() -> None:
    hand = opened_at(LAST)
    hand.opened(OTHER)
    hand.comes(wave(LAST, 1, chain(3), 3))
    assert hand.comes(wave(LAST, 2, chain(1, 4), 4, 3), 0.25) == []
    assert hand.comes(wave(LAST, 1, chain(2), 2, session=OTHER), 0.375) == []
    parts = (Part(1, chain(1, 4), 3, (), 3, 0), Part(2, chain(2), verify_from=1))
    assert hand.is_computed(walked()) == [verdict(1, (), timing(3)), Pass(parts)]
    assert hand.is_computed(walked(), walked(token=8), now=1.0) == [
        verdict(2, (), timing(3, 0.25)),
        verdict(1, (), timing(3, 0.125), token=8, session=OTHER),
    ]


def test_a_long_prompt_goes_on_in_parts_and_the_last_one_has_the_timings() -> None:
    hand = opened_at(FIRST)
    came = wave(FIRST, 1, chain(200), 200)
    assert hand.comes(came) == [Pass((Part(1, chain(128)),))]
    first = replace(came, nodes=chain(128), is_last_part=False)
    rest = replace(came, nodes=chain(72, 129), first_row=128)
    assert hand.is_computed(gave(128)) == [
        passed_on(first, gave(128)),
        Pass((Part(1, chain(72, 129), 128, verify_from=71),)),
    ]
    assert hand.is_computed(gave(72), now=1.0) == [passed_on(rest, gave(72), timing(200, 0.0, 2))]


def test_parts_are_one_wave_and_get_one_answer() -> None:
    hand = opened_at(LAST)
    assert hand.comes(wave(LAST, 1, chain(3), 5, is_last_part=False)) == [Pass((Part(1, chain(3)),))]
    assert hand.is_computed(Outcome()) == []
    hand.comes(wave(LAST, 1, chain(2, 4), 5, first_row=3), 4.0)
    assert hand.is_computed(walked(), now=4.5) == [verdict(1, (), timing(5, 0.0, 2))]


def test_who_can_not_be_computed_is_told_and_who_waits_behind_is_served() -> None:
    hand = opened_at(LAST)
    hand.opened(OTHER)
    hand.comes(wave(LAST, 1, chain(3)))
    hand.comes(wave(LAST, 2, chain(1, 4, 99), 4, 3))
    hand.comes(wave(LAST, 1, chain(2), 2, session=OTHER))
    assert hand.is_computed(Outcome()) == [
        done(1, timing(3)),
        *ended("bad-wave", "node 4 hangs from node 99, which is not in the tree", 2),
        Pass((Part(2, chain(2), verify_from=1),)),
    ]


# --- waves that come before their session, or from others


def test_a_wave_that_comes_before_its_session_waits_for_it() -> None:
    hand = HopByHand(LAST)
    assert hand.comes(wave(LAST, 1, chain(3))) == []
    assert hand.comes(wave(LAST, 2, chain(1, 4), 4, 3)) == []
    assert hand.happens(Tick(), 5.0) == []
    open_came = OpenCame(CLIENT, hand.open_message())
    assert hand.happens(open_came, 5.0) == [opened(hand), Pass((Part(1, chain(3)),))]
    assert hand.happens(Tick(), 20.0) == []


def test_a_wave_without_a_session_is_dropped_after_five_seconds() -> None:
    hand = HopByHand(LAST)
    hand.comes(wave(LAST, 1, chain(3)), 1.0)
    assert hand.happens(Tick(), 6.0) == []
    assert hand.happens(Tick(), 6.5) == [fault("unknown-session", NO_SESSION, 1, BEFORE)]
    assert hand.happens(OpenCame(CLIENT, hand.open_message())) == [opened(hand)]


@pytest.mark.parametrize(
    "end",
    [
        CloseCame(CLIENT, Close(SESSION)),
        OpenCame(CLIENT, HopByHand(LAST).open_message(num_kv_tokens=1001)),
        OpenCame(CLIENT, HopByHand(LAST).open_message(num_kv_tokens=900)),
        StreamLost(BEFORE, "lost"),
    ],
    ids=["closed", "refused", "busy", "lost"],
)
def test_a_session_that_will_not_be_takes_its_early_waves_along(end: Event) -> None:
    hand = HopByHand(LAST)
    hand.opened(OTHER)
    hand.comes(wave(LAST, 1, chain(3)))
    hand.happens(end)
    assert hand.happens(OpenCame(CLIENT, hand.open_message())) == [opened(hand)]


def test_only_so_much_of_a_peer_is_held_before_its_sessions() -> None:
    hand = HopByHand(LAST)
    for number in range(MAX_PEER_WAVES):
        assert hand.comes(wave(LAST, number + 1, chain(3))) == []
    assert code_of(hand.comes(wave(LAST, 65, chain(3)))) == (
        "unknown-session",
        "this session is not open here, and too much came before its Open",
    )
    assert hand.happens(WaveCame(CLIENT, wave(FIRST, 1, chain(3), session=OTHER))) == []  # another peer


def test_waves_are_taken_from_the_hop_before_only() -> None:
    hand = opened_at(MIDDLE)
    text = "waves of this session are taken from the hop before only"
    assert hand.happens(WaveCame(CLIENT, wave(MIDDLE, 1, chain(3)))) == [fault("unauthorized", text, 1)]
    assert hand.hop.num_wire_errors == 1
    assert hand.comes(wave(MIDDLE, 1, chain(3))) == [Pass((Part(1, chain(3)),))]
    early = HopByHand(LAST)
    early.happens(WaveCame(CLIENT, wave(LAST, 1, chain(3))))
    assert early.happens(OpenCame(CLIENT, early.open_message())) == [opened(early), fault("unauthorized", text, 1)]


# --- repeats


@pytest.mark.parametrize("index", [MIDDLE, LAST])
def test_a_repeat_before_and_during_the_pass_changes_nothing(index: int) -> None:
    hand = opened_at(index)
    hand.opened(OTHER)
    came, other = wave(index, 1, chain(3), 3), wave(index, 1, chain(3), 3, session=OTHER)
    hand.comes(came)
    hand.comes(other)
    assert hand.comes(came) == []  # in the pass
    assert hand.comes(other) == []  # waits for one
    outcome = gave(3) if index == MIDDLE else walked()
    assert len(hand.is_computed(outcome)) == 2
    assert len(hand.is_computed(outcome)) == 1


def test_a_repeat_of_what_went_on_is_passed_on_without_nodes() -> None:
    hand = opened_at(MIDDLE)
    came = wave(MIDDLE, 1, chain(3), 3)
    hand.comes(came)
    hand.is_computed(gave(3))
    again = Wave(SESSION, 0, 1, 0, 3, ())
    assert hand.comes(came) == [Send(NEXT, again)]
    assert hand.comes(replace(came, is_last_part=False)) == []
    assert hand.comes(again) == [Send(NEXT, again)]  # as the next hop gets it


def test_a_repeat_does_not_overtake_what_waits_for_credit() -> None:
    hand = opened_at(MIDDLE, window=400)
    for number in (1, 2, 3):
        hand.comes(wave(MIDDLE, number, chain(3, 3 * number - 2)))
        hand.is_computed(gave(3))
    assert hand.comes(wave(MIDDLE, 3, chain(3, 7))) == []
    assert hand.comes(wave(MIDDLE, 2, chain(3, 4))) == [Send(NEXT, Wave(SESSION, 0, 2, 0, 0, ()))]


def test_the_last_hop_repeats_its_last_answers() -> None:
    hand = opened_at(LAST)
    waves = [wave(LAST, number, chain(1, number), number, number - 1) for number in range(1, ANSWERS_KEPT + 2)]
    answers = []
    for came in waves:
        hand.comes(came)
        answers += hand.is_computed(walked())
    assert hand.comes(waves[0]) == []
    assert [hand.comes(came) for came in waves[1:]] == [[answer] for answer in answers[1:]]
    assert hand.comes(Wave(SESSION, 0, 5, 0, 0, ())) == [answers[4]]


# --- credit


def test_nothing_is_sent_beyond_the_credit_and_who_waits_for_it_is_in_no_pass() -> None:
    hand = opened_at(MIDDLE, window=400)  # two waves of three rows are 288 bytes
    hand.opened(OTHER)
    waves = [wave(MIDDLE, number, chain(3, 3 * number - 2), commit=3 * number - 3) for number in range(1, 5)]
    hand.comes(waves[0])
    assert hand.is_computed(gave(3)) == [passed_on(waves[0], gave(3), timing(3))]
    hand.comes(waves[1], 1.0)
    assert hand.is_computed(gave(3), now=1.5) == [
        passed_on(waves[1], gave(3), timing(3)),
        Send(BEFORE, Grant(SESSION, 0, 688)),  # half a window is used up
    ]
    hand.comes(waves[2], 2.0)
    assert hand.is_computed(gave(3), now=2.5) == []
    assert hand.comes(waves[3], 3.0) == []
    other = wave(MIDDLE, 1, chain(2), session=OTHER)
    assert hand.comes(other, 4.0) == [Pass((Part(2, chain(2)),))]
    assert hand.is_computed(gave(2), now=4.5) == [passed_on(other, gave(2), timing(2))]
    for stream, message in [(CLIENT, Grant(SESSION, 0, 9999)), (NEXT, Grant(SESSION, 1, 9999))]:
        assert hand.happens(CreditCame(stream, message)) == []
    assert hand.happens(CreditCame(NEXT, Grant(SESSION, 0, 431)), 5.0) == []
    assert hand.happens(CreditCame(NEXT, Grant(SESSION, 0, 432)), 5.0) == [
        passed_on(waves[2], gave(3), timing(3)),
        Pass((Part(1, chain(3, 10), 9, (), 9),)),
    ]
    assert hand.happens(CreditCame(NEXT, Grant(SESSION, 0, 7)), 5.0) == []  # nothing is taken back


def test_rows_wait_for_the_next_hop_to_be_reached() -> None:
    hand = HopByHand(MIDDLE)
    hand.happens(OpenCame(CLIENT, hand.open_message()))
    came = wave(MIDDLE, 1, chain(3))
    hand.comes(came)
    assert hand.is_computed(gave(3)) == []
    assert hand.happens(NextHopReached(PEERS[2], NEXT)) == [opened(hand), passed_on(came, gave(3), timing(3))]


# --- passes that fail, sessions that end meanwhile


def test_a_pass_that_fails_ends_all_its_sessions() -> None:
    hand = opened_at(LAST)
    third = SessionId(bytes([3] * 16))
    for session in (OTHER, third):
        hand.opened(session)
    hand.comes(wave(LAST, 1, chain(1), 1, session=third))
    hand.comes(wave(LAST, 1, chain(3), 3))
    hand.comes(wave(LAST, 1, chain(2), 2, session=OTHER))
    hand.is_computed(walked())
    assert hand.is_computed(failure="no memory") == [
        *ended("internal", "no memory", 1),
        Send(CLIENT, Fault("internal", "no memory", OTHER, 0, 1)),
        Drop((2,)),
    ]
    assert hand.comes(wave(LAST, 2, chain(1, 2), 2, 1, session=third)) == [Pass((Part(3, chain(1, 2), 1, (), 1, 0),))]


def test_an_engine_that_forgets_a_part_ends_all_sessions_of_the_pass() -> None:
    hand = opened_at(LAST)
    hand.comes(wave(LAST, 1, chain(3), 3))
    assert hand.is_computed() == ended("internal", "the engine gave 0 outcomes for 1 parts", 1)


def test_a_part_that_fails_ends_its_session_alone() -> None:
    hand = opened_at(LAST)
    hand.opened(OTHER)
    hand.comes(wave(LAST, 1, chain(3), 3))
    hand.is_computed(walked())
    hand.comes(wave(LAST, 1, chain(2), 2, session=OTHER))
    hand.comes(wave(LAST, 2, chain(1, 4), 4, 3))
    hand.is_computed(walked())
    hand.comes(wave(LAST, 2, chain(1, 3), 3, 2, session=OTHER), 1.0)
    assert hand.is_computed(Outcome(failure="the logits are not finite"), now=1.0) == [
        *ended("internal", "the logits are not finite", 2),
        Pass((Part(2, chain(1, 3), 2, (), 2, 0),)),
    ]
    assert hand.is_computed(walked(), now=1.5) == [verdict(2, (), timing(1), session=OTHER)]


def test_a_session_that_is_closed_in_its_pass_is_forgotten_and_may_be_opened_anew() -> None:
    hand = opened_at(LAST)
    hand.comes(wave(LAST, 1, chain(3), 3))
    assert hand.happens(CloseCame(CLIENT, Close(SESSION))) == [Drop((1,))]
    assert hand.happens(OpenCame(CLIENT, hand.open_message())) == [opened(hand)]
    assert hand.comes(wave(LAST, 1, chain(2), 2)) == []
    assert hand.is_computed(walked(token=1)) == [Pass((Part(2, chain(2), verify_from=1),))]
    assert hand.is_computed(walked(token=2), now=1.0) == [verdict(1, (), timing(2, SECONDS), token=2)]
