"""Streams, greetings and the network in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from routing.domain import PeerId
from routing.errors import (
    NotAuthorized,
    PeerRefused,
    PeerTimeout,
    PeerUnreachable,
    PeerUntrusted,
    VersionMismatch,
    WireError,
)
from routing.handshake import check_hello, dial, welcome
from routing.identity import Identity
from routing.in_memory import MemoryNetwork, MemoryTransport
from routing.links import Links
from routing.messages import Bye, Fault, Hello, Message, Ping, Pong, Ready
from routing.streams import MESSAGES_A_TURN, MessageStream

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


async def test_a_stream_that_can_not_be_written_to_is_not_read_for_ever() -> None:
    class HalfDead:
        """Nothing ever comes, and nothing can be written."""

        async def read(self, n: int) -> bytes:
            await asyncio.Event().wait()
            return bytes(n)

        def write(self, data: bytes) -> None:
            raise BrokenPipeError(len(data))

        async def drain(self) -> None: ...

        def close(self) -> None: ...

        async def wait_closed(self) -> None: ...

    dead = HalfDead()
    stream = MessageStream(B.peer_id, dead, dead)
    reading = asyncio.create_task(stream.receive())
    await asyncio.sleep(1)
    assert not reading.done()
    stream.send(Ping(1))
    with pytest.raises(PeerUnreachable, match="BrokenPipeError"):
        await reading
    await stream.close()


async def test_who_does_not_read_is_let_go_before_it_costs_much() -> None:
    class Deaf:
        def __init__(self) -> None:
            self.is_stuck = asyncio.Event()

        async def read(self, n: int) -> bytes:
            await asyncio.Event().wait()
            return bytes(n)

        def write(self, data: bytes) -> None: ...

        async def drain(self) -> None:
            await self.is_stuck.wait()

        def close(self) -> None: ...

        async def wait_closed(self) -> None: ...

    deaf = Deaf()
    stream = MessageStream(B.peer_id, deaf, deaf)
    num_sent = 0

    async def send_for_ever() -> None:
        nonlocal num_sent
        while True:
            stream.send(Pong(num_sent, "online", 0, 0, 0, 0))
            num_sent += 1
            if num_sent % 100 == 0:
                await asyncio.sleep(0)

    with pytest.raises(PeerUnreachable, match="does not read"):
        await send_for_ever()
    assert num_sent < 20_000
    await stream.close()


async def test_a_flood_of_messages_lets_others_have_their_turn() -> None:
    line = Bytes(b"")
    flood = MessageStream(B.peer_id, line, line)
    for nonce in range(1000):
        flood.send(Ping(nonce))
    await flood.close()
    stream = MessageStream(B.peer_id, Bytes(line.written), line)
    taken = 0

    async def take_all() -> None:
        nonlocal taken
        while taken < 1000:
            await stream.receive()
            taken += 1

    taking = asyncio.create_task(take_all())
    turns: list[int] = []
    while not taking.done():
        await asyncio.sleep(0)
        turns.append(taken)
    assert taken == 1000
    assert max(after - before for before, after in pairwise([0, *turns])) <= MESSAGES_A_TURN
    await stream.close()


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
    with pytest.raises(PeerUntrusted, match="Ready in the place of Hello"):
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
        check_hello(Hello(2, auth=b"proof"))


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


async def test_a_link_answers_a_ping_and_what_it_does_not_know_and_lives() -> None:
    said: list[Message] = []

    async def curious(stream: MessageStream) -> None:
        await welcome(stream)
        stream.send(Ping(7))
        await asyncio.sleep(1)
        data = bytes([0x92, 99, 0xC4, 16]) + bytes(16)
        stream._writer.write((0).to_bytes(4, "big") + len(data).to_bytes(4, "big") + data)
        while True:
            said.append(await stream.receive())

    a, b = await pair(curious)
    links = Links(a)
    link = await links.get(B.peer_id, ())
    await asyncio.sleep(5)
    assert link.is_open
    assert [type(message).__name__ for message in said] == ["Pong", "Fault"]
    assert isinstance(said[1], Fault)
    assert (said[1].code, said[1].session) == ("unsupported", bytes(16))
    await links.close()
    await a.close()
    await b.close()
