"""The session by hand: for each event exactly the commands that follow."""

from __future__ import annotations

import pytest

from routing.story import IllegalEvent
from routing.tree import Node
from swarm.drafting import PENDING, DraftNode
from swarm.session import PREFILL_ROWS, Phase, Session
from swarm.session_events import (
    Asked,
    CancelWaves,
    Command,
    Drafted,
    Dropped,
    Emit,
    Event,
    Fail,
    Finish,
    FinishReason,
    Prefilled,
    Propose,
    RouteLost,
    SendWave,
    StopAsked,
    Verified,
)

NOW = 5.0
LIE = "the verdict does not fit the wave: the last hop is broken or lies"
UNASKED = "an answer came that nobody had asked for: the last hop is broken or lies"


def asked() -> Session:
    """One question under way: wave 1 with the nodes 1 and 2."""
    session = Session(100)
    assert session.handle(Asked((10, 11), 20), NOW) == [SendWave(1, 0, 2, (Node(1, 0, 10), Node(2, 1, 11)))]
    return session


def drafted() -> Session:
    """A tree under way: wave 2 with the pending node 3, below it 4 (token 5) and 6 (token 6), below 4 node 5."""
    session = asked()
    assert session.handle(Verified(1, (), 7), NOW) == [Emit((7,), 0, None, 0.0), Propose(3, 18)]
    draft = [DraftNode(PENDING, 5, 0.9), DraftNode(0, 8, 0.5), DraftNode(PENDING, 6, 0.1)]
    nodes = (Node(3, 2, 7), Node(4, 3, 5), Node(5, 4, 8), Node(6, 3, 6))
    assert session.handle(Drafted(draft, 3), NOW) == [SendWave(2, 2, 3, nodes)]
    return session


def test_an_accepted_path_is_emitted_with_the_token_after_it() -> None:
    session = drafted()
    assert session.handle(Verified(2, (4, 5), 9), NOW) == [Emit((5, 8, 9), 2, 3, 0.0), Propose(6, 15)]
    assert session.num_tokens == 6
    assert session.handle(Drafted((), 6), NOW) == [SendWave(3, 5, 7, (Node(7, 5, 9),))]


def test_a_draft_that_is_wrong_leaves_nothing_behind() -> None:
    session = drafted()
    assert session.handle(Verified(2, (), 9), NOW) == [Emit((9,), 0, 3, 0.0), Propose(4, 17)]
    assert session.handle(Drafted((), 4), NOW) == [SendWave(3, 3, 7, (Node(7, 3, 9),))]


def test_a_sibling_can_be_the_right_one() -> None:
    assert drafted().handle(Verified(2, (6,), 9), NOW) == [Emit((6, 9), 1, 3, 0.0), Propose(5, 16)]


def test_a_stop_token_cuts_an_accepted_path_and_the_next_question_hangs_from_there() -> None:
    session = Session(100)
    session.handle(Asked((10,), 20, frozenset({5})), NOW)
    session.handle(Verified(1, (), 7), NOW)
    session.handle(Drafted([DraftNode(PENDING, 5, 0.9), DraftNode(0, 8, 0.5)], 2), NOW)
    assert session.handle(Verified(2, (3, 4), 9), NOW) == [Emit((5,), 1, 2, 0.0), Finish(FinishReason.STOP)]
    assert session.num_tokens == 3
    assert session.handle(Asked((12,), 1), NOW) == [SendWave(3, 3, 5, (Node(5, 3, 12),))]


def test_a_stop_token_that_nobody_drafted_is_sent_with_the_next_question() -> None:
    session = Session(100)
    session.handle(Asked((10,), 20, frozenset({7})), NOW)
    assert session.handle(Verified(1, (), 7), NOW) == [Emit((7,), 0, None, 0.0), Finish(FinishReason.STOP)]
    assert session.handle(Asked((12,), 1), NOW) == [SendWave(2, 1, 3, (Node(2, 1, 7), Node(3, 2, 12)))]


def test_the_length_cuts_an_accepted_path() -> None:
    session = Session(100)
    session.handle(Asked((10,), 2), NOW)
    assert session.handle(Verified(1, (), 7), NOW) == [Emit((7,), 0, None, 0.0), Propose(2, 0)]
    session.handle(Drafted([DraftNode(PENDING, 5, 0.9), DraftNode(0, 8, 0.5)], 2), NOW)
    assert session.handle(Verified(2, (3, 4), 9), NOW) == [Emit((5,), 1, 2, 0.0), Finish(FinishReason.LENGTH)]
    assert session.num_tokens == 3


def test_a_long_question_goes_in_chunks_of_which_four_are_under_way() -> None:
    session = Session(1000)
    commands = session.handle(Asked(tuple(range(5 * PREFILL_ROWS + 1)), 1), NOW)
    sent = [command for command in commands if isinstance(command, SendWave)]
    assert [(wave.wave, wave.commit, wave.start) for wave in sent] == [(1, 0, 0), (2, 128, 0), (3, 256, 0), (4, 384, 0)]
    [fifth] = session.handle(Prefilled(1), NOW)
    assert isinstance(fifth, SendWave)
    assert (fifth.wave, fifth.commit, fifth.start) == (5, 512, 0)
    assert session.handle(Prefilled(2), NOW) == [SendWave(6, 640, 641, (Node(641, 640, 640),))]
    for wave in (3, 4, 5):
        assert session.handle(Prefilled(wave), NOW) == []
    assert session.handle(Verified(6, (), 7), NOW) == [Emit((7,), 0, None, 0.0), Finish(FinishReason.LENGTH)]


def test_stop_before_the_draft_ends_at_once_and_keeps_what_was_emitted() -> None:
    session = asked()
    session.handle(Verified(1, (), 7), NOW)
    assert session.handle(StopAsked(), NOW) == [Finish(FinishReason.CANCELLED)]
    assert session.handle(Asked((12,), 1), NOW) == [SendWave(2, 2, 4, (Node(3, 2, 7), Node(4, 3, 12)))]


def test_stop_while_a_wave_is_under_way_calls_it_back_and_forgets_what_it_brings() -> None:
    for answer in (Verified(2, (4, 5), 9), Dropped(2)):
        session = drafted()
        assert session.handle(StopAsked(), NOW) == [CancelWaves(2, 2)]
        assert session.handle(StopAsked(), NOW) == []
        assert session.handle(answer, NOW) == [Finish(FinishReason.CANCELLED)]
        assert session.num_tokens == 3
        nodes = (Node(7, 2, 7), Node(8, 7, 12))
        assert session.handle(Asked((12,), 1), NOW) == [SendWave(3, 2, 8, nodes, rewind=True)]


def test_stop_in_a_long_prefill_sends_no_more_of_it_and_the_text_comes_with_the_next_question() -> None:
    session = Session(2000)
    assert len(session.handle(Asked(tuple(range(900)), 20), NOW)) == 4
    session.handle(Prefilled(1), NOW)
    assert session.handle(StopAsked(), NOW) == [CancelWaves(2, 5)]
    assert session.handle(Prefilled(2), NOW) == []
    assert session.handle(Dropped(3), NOW) == []
    assert session.handle(Dropped(4), NOW) == []
    assert session.handle(Dropped(5), NOW) == [Finish(FinishReason.CANCELLED)]
    assert session.num_tokens == 900
    [first, *others] = session.handle(Asked((7,), 1), NOW)
    assert isinstance(first, SendWave)
    assert (first.wave, first.commit, first.rewind, first.nodes[0].token) == (6, 0, True, 0)
    assert [other.rewind for other in others if isinstance(other, SendWave)] == [False] * 3


def test_stop_of_one_answer_does_not_stop_the_next() -> None:
    session = Session(100)
    assert session.handle(StopAsked(), NOW) == []
    session.handle(Asked((10,), 2), NOW)
    session.handle(StopAsked(), NOW)
    assert session.handle(Verified(1, (), 7), NOW) == [Finish(FinishReason.CANCELLED)]
    session.handle(Asked((11,), 2), NOW)
    assert session.handle(Verified(2, (), 7), NOW) == [Emit((7,), 0, None, 0.0), Propose(3, 0)]


def test_cancelled_waves_answered_out_of_turn_end_the_session() -> None:
    session = drafted()
    session.handle(StopAsked(), NOW)
    assert session.handle(Dropped(3), NOW) == [Fail("wave 3 was answered out of turn")]


def test_a_question_can_go_back_to_any_token_of_the_text() -> None:
    session = drafted()
    session.handle(Verified(2, (4, 5), 9), NOW)  # 10 11 7 5 8 and 9, which is pending
    session.handle(StopAsked(), NOW)
    assert session.handle(Asked((1,), 1, keep=2), NOW) == [SendWave(3, 2, 7, (Node(7, 2, 1),), rewind=True)]
    assert session.handle(Verified(3, (), 4), NOW)[0] == Emit((4,), 0, None, 0.0)
    assert session.handle(Asked((1,), 1, keep=0), NOW) == [SendWave(4, 0, 8, (Node(8, 0, 1),), rewind=True)]


def test_to_take_back_what_was_never_sent_needs_no_word_to_the_hops() -> None:
    session = drafted()
    session.handle(Verified(2, (4, 5), 9), NOW)
    session.handle(StopAsked(), NOW)
    assert session.handle(Asked((1,), 1, keep=5), NOW) == [SendWave(3, 5, 7, (Node(7, 5, 1),))]


def test_a_draft_for_a_text_that_was_left_is_not_sent() -> None:
    session = drafted()
    session.handle(Verified(2, (), 9), NOW)
    assert session.handle(Drafted((), 3), NOW) == []
    assert session.handle(Drafted((), 4), NOW) == [SendWave(3, 3, 7, (Node(7, 3, 9),))]
    assert session.handle(Drafted((), 4), NOW) == []


def test_the_ledger_remembers_when_a_round_began() -> None:
    session = Session(100)
    session.handle(Asked((10,), 20), 1.0)
    assert session.num_rows_in_flight == 1
    assert session.handle(Verified(1, (), 7), 1.5)[0] == Emit((7,), 0, None, 0.5)
    session.handle(Drafted([DraftNode(PENDING, 5, 0.9)], 2), 2.0)
    assert session.num_rows_in_flight == 2
    assert session.handle(Verified(2, (), 7), 2.25)[0] == Emit((7,), 0, 1, 0.25)


def test_what_another_epoch_says_is_not_heard() -> None:
    session = drafted()
    for event in (Verified(2, (4,), 9, 1), Prefilled(2, 1), Dropped(2, 1), RouteLost("gone", 1)):
        assert session.handle(event, NOW) == []
    assert session.handle(Verified(2, (6,), 9), NOW)[0] == Emit((6, 9), 1, 3, 0.0)


def test_a_token_outside_the_vocabulary_is_a_lie() -> None:
    session = Session(100, vocab_size=50)
    session.handle(Asked((10,), 20), NOW)
    assert session.handle(Verified(1, (), 50), NOW) == [Fail(LIE)]


@pytest.mark.parametrize(
    "verdict",
    [
        Verified(2, (5,), 9),
        Verified(2, (4, 6), 9),
        Verified(2, (2,), 9),
        Verified(2, (3,), 9),
        Verified(2, (99,), 9),
        Verified(2, (4, 4), 9),
        Verified(1, (), 9),
        Verified(3, (), 9),
        Verified(2, (), 6),
        Verified(2, (4,), 8),
    ],
    ids=[
        "skips a node",
        "changes branches",
        "a committed node",
        "the start itself",
        "an unknown node",
        "a node twice",
        "the wave before",
        "a wave to come",
        "a child of the start has the token",
        "a child of the path has the token",
    ],
)
def test_a_verdict_that_can_not_be_true_ends_the_answer(verdict: Verified) -> None:
    session = drafted()
    assert session.handle(verdict, NOW) == [Fail(LIE)]
    assert session.phase is Phase.CLOSED


def test_a_verdict_in_the_place_of_a_chunk_ends_the_answer() -> None:
    session = Session(1000)
    session.handle(Asked((1,) * 200, 5), NOW)
    assert session.handle(Verified(1, (), 9), NOW) == [Fail(LIE)]


@pytest.mark.parametrize("wave", [1, 2, 3])
def test_a_chunk_answered_out_of_turn_ends_the_answer(wave: int) -> None:
    session = drafted()
    assert session.handle(Prefilled(wave), NOW) == [Fail(f"wave {wave} was answered out of turn")]


@pytest.mark.parametrize("event", [Verified(1, (), 9), Prefilled(1), Dropped(1)])
def test_an_answer_that_nobody_asked_for_ends_the_session(event: Event) -> None:
    fresh = Session(100)
    assert fresh.handle(event, NOW) == []
    assert fresh.phase is Phase.CLOSED
    drafting = asked()
    drafting.handle(Verified(1, (), 7), NOW)
    assert drafting.handle(event, NOW) == [Fail(UNASKED)]
    assert drafting.phase is Phase.CLOSED


def test_a_lost_route_ends_an_answer_and_nothing_follows() -> None:
    session = drafted()
    assert session.handle(RouteLost("gone"), NOW) == [Fail("gone")]
    late: list[Event] = [Verified(2, (), 9), Prefilled(2), Drafted((), 3), StopAsked(), RouteLost("again")]
    silence: list[list[Command]] = [[]] * len(late)
    assert [session.handle(event, NOW) for event in late] == silence


def test_an_event_out_of_place_tells_the_story_of_the_session() -> None:
    session = drafted()
    with pytest.raises(IllegalEvent) as raised:
        session.handle(Asked((1,), 1), NOW)
    assert str(raised.value) == (
        "Asked while VERIFYING; before it: Asked -> PREFILLING, Verified -> DRAFTING, Drafted -> VERIFYING"
    )
    session.handle(RouteLost("gone"), NOW)
    with pytest.raises(IllegalEvent, match="Asked while CLOSED"):
        session.handle(Asked((1,), 1), NOW)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Asked((), 5), "nothing to continue"),
        (Asked((1,), 0), "an answer of 0 tokens"),
        (Asked((1,) * 60, 41), "101 tokens of text and answer are more than the 100"),
        (Asked((1,), 1, keep=1), "the text has 0 tokens, 1 of them can't be kept"),
        (Asked((1,), 1, keep=-1), "-1 of them"),
    ],
    ids=["empty", "no answer", "too long", "keeps too much", "keeps less than nothing"],
)
def test_a_question_that_can_not_be_asked_changes_nothing(question: Asked, message: str) -> None:
    session = Session(100)
    with pytest.raises(ValueError, match=message):
        session.handle(question, NOW)
    assert session.handle(Asked((1,), 99), NOW) == [SendWave(1, 0, 1, (Node(1, 0, 1),))]
