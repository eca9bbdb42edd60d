"""The session by hand: for each event exactly the commands that follow."""

from __future__ import annotations

import pytest

from routing.tree import Node
from swarm.drafting import PENDING, DraftNode
from swarm.session import (
    PREFILL_ROWS,
    Asked,
    Command,
    Drafted,
    Emit,
    Event,
    Fail,
    Finish,
    FinishReason,
    IllegalEvent,
    Phase,
    Prefilled,
    Propose,
    RouteLost,
    SendWave,
    Session,
    StopAsked,
    Verified,
)

LIE = "the verdict does not fit the wave: the last hop is broken or lies"
UNASKED = "an answer came that nobody had asked for: the last hop is broken or lies"


def asked() -> Session:
    """One question under way: wave 1 with the nodes 1 and 2."""
    session = Session(100)
    assert session.handle(Asked((10, 11), 20)) == [SendWave(1, 0, 2, (Node(1, 0, 10), Node(2, 1, 11)))]
    return session


def drafted() -> Session:
    """A tree under way: wave 2 with the pending node 3, below it 4 (token 5) and 6 (token 6), below 4 node 5."""
    session = asked()
    assert session.handle(Verified(1, (), 7)) == [Emit((7,), 0), Propose(18)]
    draft = [DraftNode(PENDING, 5, 0.9), DraftNode(0, 8, 0.5), DraftNode(PENDING, 6, 0.1)]
    nodes = (Node(3, 2, 7), Node(4, 3, 5), Node(5, 4, 8), Node(6, 3, 6))
    assert session.handle(Drafted(draft)) == [SendWave(2, 2, 3, nodes)]
    return session


def test_an_accepted_path_is_emitted_with_the_token_after_it() -> None:
    session = drafted()
    assert session.handle(Verified(2, (4, 5), 9)) == [Emit((5, 8, 9), 2), Propose(15)]
    assert session.num_tokens == 6
    assert session.handle(Drafted(())) == [SendWave(3, 5, 7, (Node(7, 5, 9),))]


def test_a_draft_that_is_wrong_leaves_nothing_behind() -> None:
    session = drafted()
    assert session.handle(Verified(2, (), 9)) == [Emit((9,), 0), Propose(17)]
    assert session.handle(Drafted(())) == [SendWave(3, 3, 7, (Node(7, 3, 9),))]


def test_a_sibling_can_be_the_right_one() -> None:
    assert drafted().handle(Verified(2, (6,), 9)) == [Emit((6, 9), 1), Propose(16)]


def test_a_stop_token_cuts_an_accepted_path_and_the_next_question_hangs_from_there() -> None:
    session = Session(100)
    session.handle(Asked((10,), 20, frozenset({5})))
    session.handle(Verified(1, (), 7))
    session.handle(Drafted([DraftNode(PENDING, 5, 0.9), DraftNode(0, 8, 0.5)]))
    assert session.handle(Verified(2, (3, 4), 9)) == [Emit((5,), 1), Finish(FinishReason.STOP)]
    assert session.num_tokens == 3
    assert session.handle(Asked((12,), 1)) == [SendWave(3, 3, 5, (Node(5, 3, 12),))]


def test_a_stop_token_that_nobody_drafted_is_sent_with_the_next_question() -> None:
    session = Session(100)
    session.handle(Asked((10,), 20, frozenset({7})))
    assert session.handle(Verified(1, (), 7)) == [Emit((7,), 0), Finish(FinishReason.STOP)]
    assert session.handle(Asked((12,), 1)) == [SendWave(2, 1, 3, (Node(2, 1, 7), Node(3, 2, 12)))]


def test_the_length_cuts_an_accepted_path() -> None:
    session = Session(100)
    session.handle(Asked((10,), 2))
    assert session.handle(Verified(1, (), 7)) == [Emit((7,), 0), Propose(0)]
    session.handle(Drafted([DraftNode(PENDING, 5, 0.9), DraftNode(0, 8, 0.5)]))
    assert session.handle(Verified(2, (3, 4), 9)) == [Emit((5,), 1), Finish(FinishReason.LENGTH)]
    assert session.num_tokens == 3


def test_a_long_question_goes_in_chunks_of_which_four_are_under_way() -> None:
    session = Session(1000)
    commands = session.handle(Asked(tuple(range(5 * PREFILL_ROWS + 1)), 1))
    sent = [command for command in commands if isinstance(command, SendWave)]
    assert [(wave.wave, wave.commit, wave.start) for wave in sent] == [(1, 0, 0), (2, 128, 0), (3, 256, 0), (4, 384, 0)]
    [fifth] = session.handle(Prefilled(1))
    assert isinstance(fifth, SendWave)
    assert (fifth.wave, fifth.commit, fifth.start) == (5, 512, 0)
    assert session.handle(Prefilled(2)) == [SendWave(6, 640, 641, (Node(641, 640, 640),))]
    for wave in (3, 4, 5):
        assert session.handle(Prefilled(wave)) == []
    assert session.handle(Verified(6, (), 7)) == [Emit((7,), 0), Finish(FinishReason.LENGTH)]


def test_stop_before_the_draft_ends_at_once_and_keeps_what_was_emitted() -> None:
    session = asked()
    session.handle(Verified(1, (), 7))
    assert session.handle(StopAsked()) == [Finish(FinishReason.CANCELLED)]
    assert session.handle(Asked((12,), 1)) == [SendWave(2, 2, 4, (Node(3, 2, 7), Node(4, 3, 12)))]


def test_stop_while_a_wave_is_under_way_waits_for_it_and_forgets_what_it_brings() -> None:
    session = drafted()
    assert session.handle(StopAsked()) == []
    assert session.handle(StopAsked()) == []
    assert session.handle(Verified(2, (4, 5), 9)) == [Finish(FinishReason.CANCELLED)]
    assert session.num_tokens == 3
    assert session.handle(Asked((12,), 1)) == [SendWave(3, 3, 7, (Node(7, 3, 12),))]


def test_stop_of_one_answer_does_not_stop_the_next() -> None:
    session = Session(100)
    assert session.handle(StopAsked()) == []
    session.handle(Asked((10,), 2))
    session.handle(StopAsked())
    assert session.handle(Verified(1, (), 7)) == [Finish(FinishReason.CANCELLED)]
    session.handle(Asked((11,), 2))
    assert session.handle(Verified(2, (), 7)) == [Emit((7,), 0), Propose(0)]


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
    assert session.handle(verdict) == [Fail(LIE)]
    assert session.phase is Phase.CLOSED


@pytest.mark.parametrize("stopped", [False, True])
def test_a_verdict_in_the_place_of_a_chunk_ends_the_answer(stopped: bool) -> None:
    session = Session(1000)
    session.handle(Asked((1,) * 200, 5))
    if stopped:
        session.handle(StopAsked())
    assert session.handle(Verified(1, (), 9)) == [Fail(LIE)]


@pytest.mark.parametrize("wave", [1, 2, 3])
def test_a_chunk_answered_out_of_turn_ends_the_answer(wave: int) -> None:
    session = drafted()
    assert session.handle(Prefilled(wave)) == [Fail(f"wave {wave} was answered out of turn")]


@pytest.mark.parametrize("event", [Verified(1, (), 9), Prefilled(1)])
def test_an_answer_that_nobody_asked_for_ends_the_session(event: Event) -> None:
    fresh = Session(100)
    assert fresh.handle(event) == []
    assert fresh.phase is Phase.CLOSED
    drafting = asked()
    drafting.handle(Verified(1, (), 7))
    assert drafting.handle(event) == [Fail(UNASKED)]
    assert drafting.phase is Phase.CLOSED


def test_a_lost_route_ends_an_answer_and_nothing_follows() -> None:
    session = drafted()
    assert session.handle(RouteLost("gone")) == [Fail("gone")]
    late: list[Event] = [Verified(2, (), 9), Prefilled(2), Drafted(()), StopAsked(), RouteLost("again")]
    silence: list[list[Command]] = [[]] * len(late)
    assert [session.handle(event) for event in late] == silence


def test_an_event_out_of_place_tells_the_story_of_the_session() -> None:
    session = drafted()
    with pytest.raises(IllegalEvent) as raised:
        session.handle(Asked((1,), 1))
    assert str(raised.value) == (
        "Asked while VERIFYING; before it: Asked -> PREFILLING, Verified -> DRAFTING, Drafted -> VERIFYING"
    )
    with pytest.raises(IllegalEvent, match="Drafted while VERIFYING"):
        session.handle(Drafted(()))
    session.handle(RouteLost("gone"))
    with pytest.raises(IllegalEvent, match="Asked while CLOSED"):
        session.handle(Asked((1,), 1))


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Asked((), 5), "nothing to continue"),
        (Asked((1,), 0), "an answer of 0 tokens"),
        (Asked((1,) * 60, 41), "101 tokens of text and answer are more than the 100"),
    ],
    ids=["empty", "no answer", "too long"],
)
def test_a_question_that_can_not_be_asked_changes_nothing(question: Asked, message: str) -> None:
    session = Session(100)
    with pytest.raises(ValueError, match=message):
        session.handle(question)
    assert session.handle(Asked((1,), 99)) == [SendWave(1, 0, 1, (Node(1, 0, 1),))]
