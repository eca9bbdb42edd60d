"""Streams, greetings and the network in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from routing.domain import PeerId
from routing.errors import NotAuthorized, PeerRefused, PeerTimeout, PeerUnreachable, VersionMismatch, WireError
from routing.handshake import check_hello, dial, welcome
from routing.identity import Identity
from routing.in_memory import MemoryNetwork, MemoryTransport
from routing.streams import MessageStream
from routing.wire import Bye, Fault, Hello, Ping, Pong, Ready

A, B = Identity(bytes([1] * 32)), Identity(bytes([2] * 32))
Handler = Callable[[MessageStream], Awaitable[None]]


async def pair(handler: Handler, delay_seconds: float = 0.0) -> tuple[MemoryTransport, MemoryTransport]:
    network = MemoryNetwork(delay_seconds)
    a, b = network.join(A), network.join(B)
    await b.serve(handler)
    return a, b


async def echo(stream: MessageStream) -> None:
    await welcome(stream)
    while True:
        try:
            message = await stream.receive()
        except PeerUnreachable:
            return
        assert isinstance(message, Ping)
        stream.send(Pong(message.nonce, "online", 0, 0, 0, 0))


async def test_messages_go_both_ways_in_order() -> None:
    a, b = await pair(echo)
    stream = await dial(a, B.peer_id, ())
    for nonce in range(50):
        stream.send(Ping(nonce))
    answers = [await stream.receive() for _ in range(50)]
    assert [answer.nonce for answer in answers if isinstance(answer, Pong)] == list(range(50))
    assert stream.num_bytes_sent > 0
    assert stream.num_bytes_received > 0
    await stream.close()
    with pytest.raises(PeerUnreachable, match="closed"):
        stream.send(Ping(1))
    await a.close()
    await b.close()


async def test_a_delay_holds_every_message_back_by_the_same_time() -> None:
    a, b = await pair(echo, delay_seconds=0.05)
    clock = asyncio.get_running_loop().time
    stream = await dial(a, B.peer_id, ())
    assert clock() == pytest.approx(0.1)
    stream.send(Ping(1))
    await asyncio.sleep(0.03)
    stream.send(Ping(2))
    await stream.receive()
    assert clock() == pytest.approx(0.2)
    await stream.receive()
    assert clock() == pytest.approx(0.23)
    await stream.close()
    await a.close()
    await b.close()


async def test_a_peer_that_vanishes_ends_the_stream() -> None:
    a, b = await pair(echo)
    stream = await dial(a, B.peer_id, ())
    b.vanish()
    with pytest.raises(PeerUnreachable, match="lost"):
        await stream.receive()
    await stream.close()
    with pytest.raises(PeerUnreachable, match="nobody"):
        await dial(a, B.peer_id, ())
    await a.close()
    await b.close()


async def test_a_goodbye_is_told_from_a_loss() -> None:
    async def leave(stream: MessageStream) -> None:
        await welcome(stream)

    a, b = await pair(leave)
    stream = await dial(a, B.peer_id, ())
    with pytest.raises(PeerUnreachable, match="said goodbye"):
        await stream.receive()
    await stream.close()
    await a.close()
    await b.close()


async def test_a_peer_that_lets_us_in_and_says_nothing_times_out() -> None:
    async def silent(_stream: MessageStream) -> None:
        await asyncio.sleep(1000)

    a, b = await pair(silent)
    with pytest.raises(PeerTimeout, match="no answer within 10 s"):
        await dial(a, B.peer_id, ())
    assert asyncio.get_running_loop().time() < 20
    await a.close()
    await b.close()


async def test_another_version_is_refused_with_a_word_on_what_to_do() -> None:
    refused: list[Exception] = []

    async def note(stream: MessageStream) -> None:
        try:
            await welcome(stream)
        except WireError as error:
            refused.append(error)

    a, b = await pair(note)
    stream = await a.connect(B.peer_id, ())
    stream.send(Hello(99))
    answer = await stream.receive()
    assert isinstance(answer, Fault)
    assert answer.code == "version"
    assert "update the older one" in answer.text
    assert isinstance(refused[0], VersionMismatch)
    await stream.close()
    await a.close()
    await b.close()


async def test_what_is_no_greeting_is_refused() -> None:
    async def wrong(stream: MessageStream) -> None:
        stream.send(Ready())
        await asyncio.sleep(1)

    a, b = await pair(wrong)
    with pytest.raises(WireError, match="Ready in the place of Hello"):
        await dial(a, B.peer_id, ())
    await a.close()
    await b.close()


async def test_a_refusal_reaches_who_dialled() -> None:
    async def refuse(stream: MessageStream) -> None:
        stream.send(Fault("busy", "come back tomorrow"))

    a, b = await pair(refuse)
    with pytest.raises(PeerRefused, match="come back tomorrow"):
        await dial(a, B.peer_id, ())
    await a.close()
    await b.close()


def test_a_private_swarm_is_told_apart() -> None:
    with pytest.raises(NotAuthorized, match="private swarm"):
        check_hello(Hello(1, auth=b"proof"))


class Bytes:
    """A byte stream by hand: what is fed is read, what is written is kept."""

    def __init__(self, fed: bytes) -> None:
        self.fed = fed
        self.written = b""

    async def read(self, n: int) -> bytes:
        data, self.fed = self.fed[:n], self.fed[n:]
        return data

    def write(self, data: bytes) -> None:
        self.written += data

    async def drain(self) -> None: ...

    def close(self) -> None: ...

    async def wait_closed(self) -> None: ...


async def test_a_stream_that_ends_inside_a_message_is_a_wire_error() -> None:
    cut = Bytes((0).to_bytes(4, "big") + (9).to_bytes(4, "big") + b"only")
    stream = MessageStream(PeerId("x"), cut, cut)
    with pytest.raises(WireError, match="middle of a message"):
        await stream.receive()
    await stream.close()


async def test_close_sends_what_waits_and_then_a_goodbye_once() -> None:
    line = Bytes(b"")
    stream = MessageStream(PeerId("x"), line, line, delay_seconds=1.0)
    stream.send(Ping(7))
    await stream.close(Fault("busy", "later"))
    await stream.close()
    received = MessageStream(PeerId("x"), Bytes(line.written), line)
    assert await received.receive() == Ping(7)
    assert await received.receive() == Fault("busy", "later")
    with pytest.raises(PeerUnreachable, match="said goodbye"):
        await received.receive()
    assert line.written.count(bytes([0x91, 15])) == 1
    assert Bye() == Bye()
    await received.close()
