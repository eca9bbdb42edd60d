"""Messages survive the wire whole, whatever the lanes and the cuts; what is no message is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.domain import Hop, PeerId, Route, SamplingParams, SessionId, Span
from routing.errors import WireError
from routing.framing import MAX_CHUNK_BYTES, MESSAGE_COST_BYTES, Assembler, Outbox, lane_of
from routing.messages import (
    Cancel,
    Close,
    Fault,
    Grant,
    Hello,
    HopEntry,
    Known,
    Open,
    Opened,
    Recycled,
    Rows,
    Stale,
    Timing,
    Unknown,
    Verdict,
    Wave,
)
from routing.reserved import Fetch, Handover, Leaving, Part, Renew, Replay
from routing.wire import decode, encode, open_message, route_of, sampling_of
from routing.wire_types import MAX_NODES_PER_WAVE

SESSION = SessionId(bytes(range(16)))
ROUTE = Route((Hop(PeerId("a"), Span(0, 2), ("/ip4/127.0.0.1/tcp/1",)), Hop(PeerId("b"), Span(2, 6))))
counts = st.integers(0, 2**53 - 1)
waves = st.builds(
    Wave,
    session=st.binary(min_size=16, max_size=16),
    epoch=counts,
    wave=st.integers(1, 2**53 - 1),
    commit=counts,
    start=counts,
    nodes=st.lists(st.tuples(counts, counts, counts), min_size=1, max_size=9).map(tuple),
    timings=st.lists(st.builds(Timing, counts, st.floats(0, 9), st.floats(0, 9)), max_size=3).map(tuple),
)


@given(waves)
def test_a_wave_survives(wave: Wave) -> None:
    assert decode(encode(wave)) == wave


def test_rows_survive_bit_by_bit() -> None:
    data = bytes(range(256)) * 9
    wave = decode(encode(Wave(SESSION, 0, 1, 0, 0, ((1, 0, 5),), Rows("float32", 9, 64, memoryview(data)))))
    assert isinstance(wave, Wave)
    assert wave.rows is not None
    assert bytes(wave.rows.data) == data


def test_an_open_survives_with_its_route_and_sampling() -> None:
    params = SamplingParams(0.8, 40, 0.9, 2**63 - 1)
    message = decode(encode(open_message(SESSION, 0, "m", 1, ROUTE, 100, params)))
    assert isinstance(message, Open)
    assert route_of(message) == ROUTE
    assert sampling_of(message) == params


@pytest.mark.parametrize(
    "message",
    [
        Wave(SESSION, 0, 0, 0, 0, ((1, 0, 5),)),
        Wave(SESSION[:15], 0, 1, 0, 0, ((1, 0, 5),)),
        Wave(SESSION, 0, 1, 0, 0, ((1, 0, -5),)),
        Wave(SESSION, 0, 1, 0, 0, ((1, 0, 5),) * (MAX_NODES_PER_WAVE + 1)),
        Wave(SESSION, 0, 1, -1, 0, ((1, 0, 5),)),
        Verdict(SESSION, 0, 1, (), 5, (Timing(1, -0.5, 0.0),)),
        Open(SESSION, 0, "m", 0, (), 100),
        Fault("x", "y" * 2001),
    ],
    ids=repr,
)
def test_a_field_out_of_its_limits_is_refused(message: Wave | Verdict | Open | Fault) -> None:
    with pytest.raises(WireError, match="not a message of protocol version 2"):
        decode(encode(message))


def test_a_route_that_does_not_chain_is_refused() -> None:
    good = open_message(SESSION, 0, "m", 0, ROUTE, 100, SamplingParams())
    with pytest.raises(WireError, match="go on at block 0, not at 2"):
        route_of(msgspec.structs.replace(good, route=good.route[1:]))
    with pytest.raises(WireError, match="hop 2 of a route of 2"):
        route_of(msgspec.structs.replace(good, index=2))


def test_sampling_that_this_version_does_not_do_is_refused() -> None:
    good = open_message(SESSION, 0, "m", 0, ROUTE, 100, SamplingParams())
    refused: list[tuple[dict[str, int | float | str], str]] = [
        ({"relax": 0.1}, "can't draw with 'relax'"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"top_p": 0.0}, "top-p 0.0"),
        ({"top_k": 0.5}, "top_k is '0.5'"),
        ({"seed": "one"}, "seed is 'one'"),
    ]
    for sampling, text in refused:
        with pytest.raises(WireError, match=text):
            sampling_of(msgspec.structs.replace(good, sampling=sampling))


def test_fields_that_a_later_version_adds_are_ignored() -> None:
    longer = msgspec.msgpack.encode([*msgspec.msgpack.decode(encode(Close(SESSION))), "something new"])
    assert decode(longer) == Close(SESSION)


@pytest.mark.parametrize("kind", [23, 99, 200])
def test_a_kind_that_a_later_version_adds_is_told_from_what_is_no_message(kind: int) -> None:
    assert decode(msgspec.msgpack.encode([kind, SESSION, 7])) == Unknown(kind, SESSION)
    assert decode(msgspec.msgpack.encode([kind, "text"])) == Unknown(kind)
    assert decode(msgspec.msgpack.encode([kind])) == Unknown(kind)
    with pytest.raises(WireError):
        decode(msgspec.msgpack.encode({"kind": kind}))


RESERVED = [
    Renew(SESSION, 1),
    Replay(SESSION, 1, 2, 3),
    Leaving(5.0),
    Handover(SESSION, 1, "peer", ("/ip4/127.0.0.1/tcp/1",)),
    Fetch(1, "model.norm.weight", 0, 4096),
    Grant(SESSION, 0, 1 << 20),
    Stale(SESSION, 0, 1, (), Recycled(8, 16, 2, bytes(16))),
    Verdict(SESSION, 0, 1, (2, 3), 5, (), Recycled(8, 16, 2, bytes(16)), b"x", b"\x01", 0.25),
    Opened(SESSION, 1, 100, 7, 3, 1 << 20),
    Open(SESSION, 1, "m", 0, (HopEntry("a", 0, 6),), 9, {"seed": 1}, 7, ("rewind",), "bfloat16", 8, "a", "int8", 5),
    Wave(SESSION, 1, 2, 3, 0, (), None, (), (1, 2), 4, True, 5, False, True, b"w", b"d"),
    Cancel(SESSION, 0, 3, 5),
]


@pytest.mark.parametrize("message", RESERVED, ids=lambda message: type(message).__name__)
def test_every_field_of_version_2_survives(message: Known) -> None:
    assert decode(encode(message)) == message


def test_the_piece_of_a_tensor_survives() -> None:
    part = decode(encode(Part(1, memoryview(bytes(9)))))
    assert isinstance(part, Part)
    assert bytes(part.data) == bytes(9)


@given(st.binary(max_size=200))
def test_random_bytes_are_a_message_or_a_wire_error(data: bytes) -> None:
    try:
        decode(data)
    except WireError:
        return
    assert data


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3 * MAX_CHUNK_BYTES)), max_size=6), st.data())
def test_frames_come_out_whole_and_in_the_order_of_their_lane(
    sizes: list[tuple[int, int]], data: st.DataObject
) -> None:
    outbox, assembler = Outbox(), Assembler()
    sent: dict[int, list[bytes]] = {}
    for index, (lane, size) in enumerate(sizes):
        message = bytes([lane, index]) + bytes(size)
        sent.setdefault(lane, []).append(message)
        outbox.put(lane, message)
    stream = b""
    while (chunk := outbox.pop(0.0)) is not None:
        stream += chunk
    received: dict[int, list[bytes]] = {}
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        for whole in assembler.feed(stream[:cut]):
            received.setdefault(whole[0], []).append(bytes(whole))
        stream = stream[cut:]
    assert received == sent
    assert assembler.is_between_messages
    assert outbox.num_bytes == 0


def test_a_small_message_does_not_wait_for_a_large_one_of_another_lane() -> None:
    outbox, assembler = Outbox(), Assembler()
    outbox.put(1, bytes(10 * MAX_CHUNK_BYTES))
    outbox.put(2, b"small")
    first, second = outbox.pop(0.0), outbox.pop(0.0)
    assert first is not None
    assert second is not None
    assert assembler.feed(first) == []
    assert assembler.feed(second) == [b"small"]


def test_large_messages_of_many_lanes_are_never_begun_beyond_what_the_receiver_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("routing.framing.MAX_MESSAGE_BYTES", 5 * MAX_CHUNK_BYTES)
    outbox, assembler = Outbox(), Assembler()
    for lane in range(40):
        outbox.put(lane, bytes([lane]) * (2 * MAX_CHUNK_BYTES + 1), has_credit=True)
    outbox.put(99, b"small")
    received: list[bytearray] = []
    while (chunk := outbox.pop(0.0)) is not None:
        received += assembler.feed(chunk)
    assert sorted(bytes(message[:1]) for message in received) == sorted([*(bytes([n]) for n in range(40)), b"s"])
    assert bytes(received[0]) == b"small"
    assert outbox.num_bytes == outbox.num_uncredited_bytes == 0


def test_what_waits_without_credit_is_counted_with_what_it_takes() -> None:
    outbox = Outbox()
    for _ in range(1000):
        outbox.put(7, b"tiny")
    assert outbox.num_uncredited_bytes == 1000 * (4 + MESSAGE_COST_BYTES)
    outbox.put(8, bytes(100), has_credit=True)
    assert outbox.num_uncredited_bytes == 1000 * (4 + MESSAGE_COST_BYTES)
    while outbox.pop(0.0) is not None:
        pass
    assert outbox.num_uncredited_bytes == 0


def test_a_message_that_is_not_due_waits_and_says_until_when() -> None:
    outbox = Outbox()
    assert outbox.due() is None
    outbox.put(1, b"later", due=5.0)
    assert outbox.pop(4.9) is None
    assert outbox.due() == 5.0
    assert outbox.pop(5.0) is not None


def test_oversized_chunks_and_messages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WireError, match="chunk of 65537 bytes"):
        Assembler().feed((0).to_bytes(4, "big") + (MAX_CHUNK_BYTES + 1).to_bytes(4, "big"))
    monkeypatch.setattr("routing.framing.MAX_MESSAGE_BYTES", 100_000)
    outbox, assembler = Outbox(), Assembler()
    outbox.put(0, bytes(200_000))
    first, second = outbox.pop(0.0), outbox.pop(0.0)
    assert first is not None
    assert second is not None
    assembler.feed(first)
    with pytest.raises(WireError, match="over 100000"):
        assembler.feed(second)


def test_a_message_over_the_limit_is_not_sent() -> None:
    with pytest.raises(WireError, match="over the limit"):
        encode(Hello(1, ("x" * (33 << 20),)))


def test_sessions_have_lanes_of_their_own_and_none_has_lane_0() -> None:
    assert lane_of(b"") == 0
    assert lane_of(bytes(16)) != 0
    assert lane_of(SESSION) != lane_of(bytes(16))
