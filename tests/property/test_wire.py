"""Messages survive the wire whole, whatever the lanes and the cuts; what is no message is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.domain import Hop, PeerId, Route, SamplingParams, SessionId, Span
from routing.errors import WireError
from routing.framing import MAX_CHUNK_BYTES, Assembler, Outbox, lane_of
from routing.wire import (
    MAX_NODES_PER_WAVE,
    Close,
    Fault,
    Hello,
    Open,
    Rows,
    Sampling,
    Timing,
    Verdict,
    Wave,
    decode,
    encode,
    nodes_of,
    open_message,
    route_of,
    sampling_of,
)

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
    assert [(node.id, node.parent, node.token) for node in nodes_of(wave)] == list(wave.nodes)


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
        Wave(SESSION, 0, 1, 0, 0, ()),
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
    with pytest.raises(WireError, match="not a message of protocol version 1"):
        decode(encode(message))


def test_a_route_that_does_not_chain_is_refused() -> None:
    good = open_message(SESSION, 0, "m", 0, ROUTE, 100, SamplingParams())
    with pytest.raises(WireError, match="go on at block 0, not at 2"):
        route_of(msgspec.structs.replace(good, route=good.route[1:]))
    with pytest.raises(WireError, match="hop 2 of a route of 2"):
        route_of(msgspec.structs.replace(good, index=2))


def test_sampling_that_this_version_does_not_do_is_refused() -> None:
    good = open_message(SESSION, 0, "m", 0, ROUTE, 100, SamplingParams())
    for sampling in (Sampling(relax=0.1), Sampling(cap=2.0), Sampling(temperature=-1.0), Sampling(top_p=0.0)):
        with pytest.raises(WireError):
            sampling_of(msgspec.structs.replace(good, sampling=sampling))


def test_fields_that_a_later_version_adds_are_ignored() -> None:
    longer = msgspec.msgpack.encode([*msgspec.msgpack.decode(encode(Close(SESSION))), "something new"])
    assert decode(longer) == Close(SESSION)


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
