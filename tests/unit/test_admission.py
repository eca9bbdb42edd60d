"""What a hop refuses, each by its code: sessions that it does not take, and waves that end theirs."""

from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec.structs import fields, replace

from peer.admission import FEATURES
from peer.hop_events import Drop, OpenCame, Send
from peer.plan import Outcome
from routing.messages import Close, HopEntry, Open, Rows, Wave
from routing.wire_types import MAX_VERIFIED_NODES
from tests.hop_by_hand import (
    CLIENT,
    FIRST,
    LAST,
    MIDDLE,
    NEXT,
    PEERS,
    SESSION,
    HopByHand,
    Nodes,
    Part,
    Pass,
    chain,
    code_of,
    fault,
    gave,
    opened_at,
    rows_of,
    walked,
    wave,
)

# --- sessions


def route(*hops: tuple[str, int, int]) -> tuple[HopEntry, ...]:
    return tuple(HopEntry(*hop) for hop in hops)


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"model": "tiny@0-0"}, "wrong-model", "this peer serves tiny@00000000-11111111, not tiny@0-0"),
        ({"index": 1}, "wrong-peer", "hop 1 of the route is ..hop-1, this is another peer"),
        ({"index": 3}, "malformed", "hop 3 of a route of 3"),
        ({"route": route(("a", 0, 2), ("b", 3, 4), (PEERS[2], 4, 6))}, "malformed", "go on at block 2, not at 3"),
        ({"route": route(("a", 0, 2), ("b", 2, 2), (PEERS[2], 4, 6))}, "malformed", "span 2:2 has no blocks"),
        ({"route": route(("a", 0, 2), ("a", 2, 4), (PEERS[2], 4, 6))}, "malformed", "a peer is in the route twice"),
        ({"route": route(("a", 0, 2), ("b", 2, 3), (PEERS[2], 3, 6))}, "wrong-span", "blocks 4:6 of 6, not 3:6 of 6"),
        ({"route": route(("a", 0, 2), ("b", 2, 4), (PEERS[2], 4, 5))}, "wrong-span", "this peer serves the blocks 4:6"),
        ({"num_kv_tokens": 0}, "too-long", "0 tokens are more than all the 800 that this model's positions allow"),
        ({"num_kv_tokens": 801}, "too-long", "801 tokens are more than all the 800 that this model's positions allow"),
        ({"sampling": {"temperature": math.nan}}, "malformed", "temperature nan must be"),
        ({"sampling": {"relax": 0.5}}, "malformed", "can't draw with 'relax': leave it out"),
        ({"sampling": {"top_k": "many"}}, "malformed", "top_k is 'many', no number"),
        ({"needs": ("credit", "telepathy", "magic")}, "needs", "this peer can't do telepathy, magic"),
        ({"weights_class": "int4"}, "wrong-weights", "this peer's weights are float32, not int4"),
        ({"epoch": 1}, "unsupported", "changing the route of a session is not in this version"),
        ({"tip": 1}, "unsupported", "changing the route of a session is not in this version"),
        ({"wire_dtype": "int8"}, "unsupported", "another dtype on the wire is not in this version"),
        ({"num_recycled": 1}, "unsupported", "recycling tokens is not in this version"),
        ({"adapter": "poet"}, "unsupported", "an adapter is not in this version"),
        ({"num_logprobs": 1}, "unsupported", "log-probabilities is not in this version"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)
def test_an_open_that_can_not_be_met_is_refused(changes: dict[str, Any], code: str, text: str) -> None:
    hand = HopByHand(LAST, max_text=800)
    said = code_of(hand.happens(OpenCame(CLIENT, hand.open_message(**changes))))
    assert (said[0], text in said[1]) == (code, True), said
    assert hand.hop.num_sessions == 0


def test_more_than_there_is_room_for_is_refused_for_good() -> None:
    hand = HopByHand(LAST)
    said = code_of(hand.happens(OpenCame(CLIENT, hand.open_message(num_kv_tokens=1001))))
    assert said == ("too-long", "1001 tokens are more than all the 1000 that this peer has room for")


def test_what_this_version_can_do_may_be_needed() -> None:
    hand = HopByHand(LAST)
    message = hand.open_message(needs=FEATURES, weights_class="float32")
    assert [type(command) for command in hand.happens(OpenCame(CLIENT, message))] == [Send]
    assert hand.hop.num_sessions == 1


def test_no_field_of_an_open_is_forgotten_here() -> None:
    """A field that is added must be done, or refused above."""
    done = {"session", "model", "index", "route", "num_kv_tokens", "sampling", "needs", "weights_class"}
    refused = {"epoch", "tip", "wire_dtype", "num_recycled", "adapter", "num_logprobs"}
    assert {field.name for field in fields(Open)} == done | refused


# --- waves

WIDE = rows_of(1)
FIRST_NODE = chain(1, 4)


def second(nodes: Nodes = FIRST_NODE, start: int = 4, commit: int = 3, **changes: Any) -> Wave:
    return wave(MIDDLE, 2, nodes, start, commit, **changes)


@pytest.mark.parametrize(
    ("came", "code", "text"),
    [
        (second(if_tip=(0, 0)), "unsupported", "waves in flight: not in this version"),
        (second(last_hop=0), "unsupported", "replays: not in this version"),
        (second(weights=b"\0"), "unsupported", "draft weights: not in this version"),
        (second(digest=b"\0"), "unsupported", "digests of rows: not in this version"),
        (second(rows=replace(WIDE, present=b"\1")), "unsupported", "rows of some nodes only: not in this version"),
        (second(epoch=1), "unsupported", "epoch 1 of a session in epoch 0"),
        (second(((4, 3, 100),)), "bad-wave", "token 100 is not in the model's vocabulary of 100"),
        (second((), 0, is_last_part=False), "bad-wave", "a part that has no nodes, and more to come"),
        (second((), 0, rows=WIDE), "bad-wave", "the wave needs no rows, it has 1"),
        (second(rows=None), "bad-wave", "the wave needs 1 rows of width 4, it has none"),
        (second(rows=rows_of(2)), "bad-wave", "it has 2 x 4 float32"),
        (second(rows=Rows("float32", 0, 0, memoryview(b""))), "bad-wave", "it has 0 x 0 float32"),
        (second(rows=replace(WIDE, dtype="int3")), "bad-wave", "it has 1 x 4 int3"),
        (second(rows=replace(WIDE, data=WIDE.data[1:])), "bad-wave", "1 x 4 float32 are not 15 bytes"),
        (second(wave=3), "out-of-order", "wave 3 after 1 and 0 nodes of the next one"),
        (second(first_row=1), "out-of-order", "not from node 1 on"),
        (second(start=3), "bad-wave", "start at node 3, which is not in the wave"),
        (second(is_last_part=False), "bad-wave", "start at node 4, which is not in the wave"),
        (second(chain(161, 4)), "bad-wave", f"more than {MAX_VERIFIED_NODES} nodes are to be verified at once"),
        (second(chain(301, 4), 0), "bad-wave", "longer than the 300 tokens that its session was granted"),
        (second(commit=9), "bad-wave", "node 9 is not in the tree"),
        (second(chain(1, 4, 9)), "bad-wave", "node 4 hangs from node 9, which is not in the tree"),
        (second(chain(1, 3, 2), 3), "bad-wave", "node 3 must come after node 3"),
        (second(chain(1, 0, 3), 0), "bad-wave", "node 0 must come after node 3"),
        (second(chain(1, 4, 4)), "bad-wave", "node 4 hangs from node 4"),
    ],
    ids=lambda value: None if isinstance(value, Wave) else value,
)
def test_a_wave_that_can_not_be_ends_its_session(came: Wave, code: str, text: str) -> None:
    hand = opened_at(MIDDLE)
    hand.comes(wave(MIDDLE, 1, chain(3), 3))
    hand.is_computed(gave(3))
    told, *rest = hand.comes(came)
    said = code_of([told])
    assert (said[0], text in said[1]) == (code, True), said
    assert rest == [Drop((1,)), Send(NEXT, Close(SESSION))]
    assert hand.comes(second()) == []
    assert hand.hop.num_free_kv_tokens == 1000


def test_the_first_hop_takes_no_rows() -> None:
    for rows in (rows_of(1), Rows("float32", 0, 0, memoryview(b""))):
        hand = opened_at(FIRST)
        told, *_ = hand.comes(wave(FIRST, 1, chain(1), rows=rows))
        assert code_of([told]) == ("bad-wave", f"the wave needs no rows, it has {rows.num_rows}")


def test_only_so_many_waves_of_a_session_may_wait() -> None:
    hand = opened_at(MIDDLE)
    for number in (1, 2, 3, 4):
        hand.comes(wave(MIDDLE, number, chain(1, number)))
    told, *_ = hand.comes(wave(MIDDLE, 5, chain(1, 5)))
    assert told == fault("out-of-order", "wave 5 while 1 waits: too many at once", 5)


def test_more_than_was_granted_ends_the_session() -> None:
    hand = opened_at(MIDDLE, window=400)
    hand.comes(wave(MIDDLE, 1, chain(4)))
    hand.comes(wave(MIDDLE, 2, chain(4, 5)))
    told, *_ = hand.comes(wave(MIDDLE, 3, chain(1, 9)))
    assert told == fault("no-credit", "the wave is more than the 400 bytes that were granted", 3)


def test_a_text_that_grows_beyond_what_was_granted_ends_its_session() -> None:
    hand = HopByHand(LAST)
    hand.opened(SESSION, 10)
    hand.comes(wave(LAST, 1, chain(8)))
    hand.is_computed(Outcome())
    told, *_ = hand.comes(wave(LAST, 2, chain(3, 9), commit=8))
    assert told == fault("bad-wave", "the session is longer than the 10 tokens that it was granted", 2)


def test_a_draft_that_replaces_another_needs_no_room_of_its_own() -> None:
    hand = HopByHand(LAST)
    hand.opened(SESSION, 10)
    tip = 0
    for number in (1, 2, 3):
        draft = chain(8, 10 * number, tip)
        part = Part(1, draft, number - 1, (), number - 1, 0)
        assert hand.comes(wave(LAST, number, draft, draft[0][0], tip, rewind=True)) == [Pass((part,))]
        hand.is_computed(walked())
        tip = draft[0][0]


def test_no_field_of_a_wave_is_forgotten_here() -> None:
    """A field that is added must be done, or refused above."""
    done = {"session", "epoch", "wave", "commit", "start", "nodes", "rows", "timings"}
    done |= {"rewind", "first_row", "is_last_part", "is_cancelled"}
    assert {field.name for field in fields(Wave)} == done | {"if_tip", "last_hop", "weights", "digest"}
    assert {field.name for field in fields(Rows)} == {"dtype", "num_rows", "width", "data", "present"}
