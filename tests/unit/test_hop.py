"""The hop by hand, streams and sessions: for each event exactly the commands that follow."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from peer.callers import MAX_STREAMS, MAX_STREAMS_OF_A_PEER
from peer.hop import IDLE_SECONDS
from peer.hop_events import (
    CancelCame,
    CloseCame,
    Dial,
    DialFailed,
    Drop,
    FaultCame,
    HangUp,
    NextHopReached,
    OpenCame,
    PassDone,
    PingCame,
    Send,
    StreamId,
    StreamLost,
    StreamOpened,
    Tick,
)
from peer.next_hops import MAX_DIALS_OF_A_CLIENT
from peer.plan import Outcome
from routing.domain import PeerId, SessionId
from routing.messages import Busy, Cancel, Close, Fault, Open, Opened, Ping, Pong
from routing.story import IllegalEvent
from tests.hop_by_hand import (
    ADDRESSES,
    BEFORE,
    CLIENT,
    FIRST,
    GRANTED,
    KV_TOKENS,
    LAST,
    MIDDLE,
    NEXT,
    OTHER,
    PEERS,
    SECONDS,
    SESSION,
    WINDOW,
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
    timing,
    wave,
)

SECOND = StreamId(8)
STRANGER = StreamId(9)


def opened(session: SessionId = SESSION, num_kv_tokens: int = GRANTED, stream: StreamId = CLIENT) -> Send:
    return Send(stream, Opened(session, 0, num_kv_tokens, first_grant=WINDOW))


def toward(hand: HopByHand, peer: str, number: int = 1, *addresses: str) -> Open:
    """An Open whose next hop is this peer."""
    message = hand.open_message(SessionId(bytes([number] * 16)), 10)
    hops = list(message.route)
    hops[hand.index + 1] = replace(hops[hand.index + 1], peer=peer, addresses=addresses)
    return replace(message, route=tuple(hops))


# --- opening


def test_an_open_is_answered_when_the_next_hop_is_there() -> None:
    hand = HopByHand(MIDDLE)
    assert hand.happens(OpenCame(CLIENT, hand.open_message())) == [Dial(PEERS[2], ADDRESSES)]
    assert hand.happens(NextHopReached(PEERS[2], NEXT)) == [opened()]


def test_the_last_hop_answers_an_open_at_once() -> None:
    hand = HopByHand(LAST)
    assert hand.happens(OpenCame(CLIENT, hand.open_message())) == [opened()]


def test_a_next_hop_is_dialled_once_for_all_sessions() -> None:
    hand = HopByHand(FIRST)
    assert hand.happens(OpenCame(CLIENT, hand.open_message())) == [Dial(PEERS[1], ADDRESSES)]
    assert hand.happens(OpenCame(CLIENT, hand.open_message(OTHER))) == []
    assert hand.happens(NextHopReached(PEERS[1], NEXT)) == [opened(), opened(OTHER)]
    third = SessionId(bytes([3] * 16))
    assert hand.happens(OpenCame(CLIENT, hand.open_message(third))) == [opened(third)]


def test_more_tokens_than_are_free_is_busy_until_they_are() -> None:
    hand = HopByHand(LAST)
    hand.opened(SESSION, 600)
    message = hand.open_message(OTHER, KV_TOKENS - 599)
    assert hand.happens(OpenCame(CLIENT, message)) == [Send(CLIENT, Busy(OTHER, 0, 10.0))]
    assert hand.happens(CloseCame(CLIENT, Close(SESSION))) == [Drop((1,))]
    assert hand.happens(OpenCame(CLIENT, message)) == [opened(OTHER, KV_TOKENS - 599)]


def test_a_session_that_is_open_is_not_opened_again() -> None:
    hand = opened_at(LAST)
    text = "the session is open here already; changing its route is not possible yet"
    assert hand.happens(OpenCame(CLIENT, hand.open_message())) == [fault("unsupported", text)]
    assert hand.hop.num_sessions == 1


# --- dials


def test_a_dial_that_fails_ends_the_session() -> None:
    hand = HopByHand(MIDDLE)
    hand.happens(OpenCame(CLIENT, hand.open_message()))
    assert hand.happens(DialFailed(PEERS[2], "nobody is there")) == ended("hop-lost", "nobody is there")
    assert hand.hop.num_free_kv_tokens == KV_TOKENS


def test_addresses_that_lead_nowhere_are_the_fault_of_who_gave_them() -> None:
    hand = HopByHand(MIDDLE)
    hand.happens(StreamOpened(STRANGER, PeerId("stranger")))
    assert hand.happens(OpenCame(STRANGER, toward(hand, "next", 1, "/nowhere"))) == [
        Dial(PeerId("next"), ("/nowhere",))
    ]
    assert hand.happens(OpenCame(CLIENT, toward(hand, "next", 2, "/there"))) == []
    assert hand.happens(OpenCame(STRANGER, toward(hand, "next", 3, "/elsewhere"))) == []
    refusals = [fault("hop-lost", "timed out", 0, STRANGER, SessionId(bytes([number] * 16))) for number in (1, 3)]
    assert hand.happens(DialFailed(PeerId("next"), "timed out")) == [
        refusals[0],
        Drop((1,)),
        refusals[1],
        Drop((3,)),
        Dial(PeerId("next"), ("/there",)),
    ]
    assert hand.happens(NextHopReached(PeerId("next"), NEXT)) == [opened(SessionId(bytes([2] * 16)), 10)]


def test_one_client_can_not_have_more_than_a_few_peers_dialled_at_once() -> None:
    hand = HopByHand(FIRST)
    for number in range(MAX_DIALS_OF_A_CLIENT):
        assert hand.happens(OpenCame(CLIENT, toward(hand, f"next-{number}", number))) == [
            Dial(PeerId(f"next-{number}"), ())
        ]
    hand.happens(StreamOpened(SECOND, PeerId("user")))
    hand.happens(StreamOpened(STRANGER, PeerId("stranger")))
    one_more = toward(hand, "next-8", 8)
    for stream in (CLIENT, SECOND):  # another stream makes no other client
        assert hand.happens(OpenCame(stream, one_more)) == [Send(stream, Busy(one_more.session, 0, 10.0))]
    assert hand.happens(OpenCame(CLIENT, toward(hand, "next-3", 9))) == []
    assert hand.happens(OpenCame(STRANGER, one_more)) == [Dial(PeerId("next-8"), ())]
    assert hand.happens(StreamLost(CLIENT, "lost")) == [Drop((cache,)) for cache in range(1, 10)]
    assert hand.happens(OpenCame(SECOND, toward(hand, "next-9", 10))) == [
        Send(SECOND, Busy(SessionId(bytes([10] * 16)), 0, 10.0))
    ]
    assert hand.happens(DialFailed(PeerId("next-0"), "gone")) == []
    assert hand.happens(OpenCame(SECOND, toward(hand, "next-9", 10))) == [Dial(PeerId("next-9"), ())]


def test_a_next_hop_that_is_reached_too_late_is_there_for_the_next_session() -> None:
    hand = HopByHand(MIDDLE)
    hand.happens(OpenCame(CLIENT, hand.open_message()))
    assert hand.happens(CloseCame(CLIENT, Close(SESSION))) == [Drop((1,))]
    assert hand.happens(NextHopReached(PEERS[2], NEXT)) == []
    assert hand.happens(OpenCame(CLIENT, hand.open_message(OTHER))) == [opened(OTHER)]


# --- the end of a session


@pytest.mark.parametrize("stream", [CLIENT, BEFORE])
def test_a_close_frees_the_session_here_and_at_the_hops_after(stream: StreamId) -> None:
    hand = opened_at(MIDDLE)
    assert hand.happens(CloseCame(stream, Close(SESSION))) == [Drop((1,)), Send(NEXT, Close(SESSION))]
    assert hand.hop.num_free_kv_tokens == KV_TOKENS
    assert hand.happens(CloseCame(stream, Close(SESSION))) == []


def test_strangers_can_neither_close_nor_cancel() -> None:
    hand = opened_at(MIDDLE)
    hand.happens(StreamOpened(STRANGER, PeerId("stranger")))
    assert hand.happens(CloseCame(STRANGER, Close(SESSION))) == []
    hand.comes(wave(MIDDLE, 1, chain(3), 3))
    hand.comes(wave(MIDDLE, 2, chain(1, 4), 4, 3))
    for stream in (STRANGER, BEFORE):
        assert hand.happens(CancelCame(stream, Cancel(SESSION, 0, 1, 2))) == []
    assert hand.is_computed(gave(3))[1:] == [Pass((Part(1, chain(1, 4), 3, (), 3, verify_from=0),))]


def test_a_client_that_is_lost_frees_all_its_sessions() -> None:
    hand = opened_at(MIDDLE)
    hand.opened(OTHER)
    assert hand.happens(StreamLost(CLIENT, "the connection was lost")) == [
        Drop((1,)),
        Send(NEXT, Close(SESSION)),
        Drop((2,)),
        Send(NEXT, Close(OTHER)),
    ]
    assert hand.hop.num_sessions == 0


def test_a_next_hop_that_is_lost_ends_its_sessions_and_is_dialled_again_for_new_ones() -> None:
    hand = opened_at(MIDDLE)
    assert hand.happens(StreamLost(NEXT, "it said goodbye")) == ended("hop-lost", "it said goodbye")
    assert hand.happens(OpenCame(CLIENT, hand.open_message(OTHER))) == [Dial(PEERS[2], ADDRESSES)]


def test_that_the_hop_before_is_lost_is_for_the_client_to_hear_from_it() -> None:
    hand = opened_at(LAST, window=400)
    hand.comes(wave(LAST, 1, chain(3)))
    hand.comes(wave(LAST, 2, chain(3, 4), commit=3))
    assert hand.happens(StreamLost(BEFORE, "lost")) == []
    assert hand.is_computed(Outcome()) == [done(1, timing(3)), Pass((Part(1, chain(3, 4), 3, (), 3),))]
    assert hand.is_computed(Outcome(), now=1.0) == [done(2, timing(3, SECONDS))]  # and no Grant
    assert hand.hop.num_sessions == 1
    assert hand.happens(CloseCame(CLIENT, Close(SESSION))) == [Drop((1,))]


def test_a_fault_of_the_next_hop_is_told_to_the_client() -> None:
    hand = opened_at(MIDDLE)
    message = Fault("no-credit", "the wave is too much", SESSION, 0, 3)
    assert hand.happens(FaultCame(BEFORE, message)) == []
    assert hand.happens(FaultCame(NEXT, message)) == [
        fault("no-credit", "the wave is too much"),
        Drop((1,)),
        Send(NEXT, Close(SESSION)),
    ]


def test_a_session_that_says_nothing_is_ended() -> None:
    hand = opened_at(MIDDLE)
    hand.comes(wave(MIDDLE, 1, chain(3)), 100.0)
    assert hand.happens(Tick(), IDLE_SECONDS + 1) == []
    hand.is_computed(gave(3), now=200.0)
    assert hand.happens(Tick(), IDLE_SECONDS + 200.0) == []
    assert hand.happens(Tick(), IDLE_SECONDS + 200.5) == [
        fault("idle", "the session said nothing for 600 s"),
        Drop((1,)),
        Send(NEXT, Close(SESSION)),
    ]


# --- streams


def test_one_peer_has_only_so_many_streams() -> None:
    hand = HopByHand(LAST)
    user = PeerId("user")
    for number in range(1, MAX_STREAMS_OF_A_PEER):
        assert hand.happens(StreamOpened(StreamId(10 + number), user)) == []
    for number in (50, 51):  # who is refused does not count
        code, text = code_of(hand.happens(StreamOpened(StreamId(number), user)))
        assert (code, text) == ("busy", "too many streams: 16 of yours; use one for all sessions")
    assert hand.happens(OpenCame(StreamId(50), hand.open_message())) == []
    assert hand.happens(StreamLost(StreamId(50), "we hung up")) == []
    hand.happens(StreamLost(StreamId(11), "lost"))
    assert hand.happens(StreamOpened(StreamId(52), user)) == []


def test_where_all_streams_are_taken_an_idle_one_of_who_has_most_makes_room() -> None:
    hand = opened_at(MIDDLE)
    for number in range(MAX_STREAMS - 2):
        assert hand.happens(StreamOpened(StreamId(100 + number), PeerId(f"sybil-{number // 10}"))) == []
    for number, leaving in [(1, 100), (2, 110)]:
        [command] = hand.happens(StreamOpened(StreamId(number * 1000), PeerId(f"honest-{number}")))
        assert isinstance(command, HangUp)
        assert command.stream == leaving
        assert "512 in all, and this one has no session" in command.fault.text
    assert hand.happens(OpenCame(StreamId(1000), hand.open_message(OTHER))) == [opened(OTHER, stream=StreamId(1000))]
    assert hand.happens(OpenCame(StreamId(100), hand.open_message(SessionId(bytes(16))))) == []


def test_streams_that_sessions_need_stay() -> None:
    hand = opened_at(MIDDLE)
    for number in range(MAX_STREAMS - 2):
        stream = StreamId(100 + number)
        hand.happens(StreamOpened(stream, PeerId(f"user-{number}")))
        hand.happens(OpenCame(stream, hand.open_message(SessionId(number.to_bytes(16, "big")), 1)))
    [command] = hand.happens(StreamOpened(STRANGER, PeerId("stranger")))
    assert isinstance(command, HangUp)
    assert command.stream == STRANGER


def test_a_ping_is_answered_with_how_we_are() -> None:
    hand = opened_at(LAST)
    hand.comes(wave(LAST, 1, chain(3)))
    hand.comes(wave(LAST, 2, chain(3, 4)))
    assert hand.happens(PingCame(STRANGER, Ping(5))) == [Send(STRANGER, Pong(5, "joining", 700, 2, 1, 0))]


# --- mistakes of the driver


def test_a_pass_that_nobody_asked_for_tells_the_story() -> None:
    hand = opened_at(LAST)
    hand.happens(Tick())
    story = "PassDone, and no pass runs; before it: StreamOpened, StreamOpened, OpenCame, Tick"
    with pytest.raises(IllegalEvent, match=story):
        hand.hop.handle(PassDone((), 0.1), 1.0)
