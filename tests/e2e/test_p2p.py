"""Streams over libp2p: real daemons, real sockets, real ends."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from routing.addresses import split_peer
from routing.domain import PeerId
from routing.errors import PeerUnreachable, SwarmError
from routing.handshake import dial, welcome
from routing.identity import Identity
from routing.messages import Close, Fault, Ping, Pong, Rows, Wave
from routing.streams import MessageStream
from tests.e2e.nodes import GUARD_SECONDS, NodeFactory, dead_address, record_by

pytestmark = [
    pytest.mark.filterwarnings("error::ResourceWarning"),
    pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
]


async def echo(stream: MessageStream) -> None:
    """Welcomes whoever comes and sends back whatever is said."""
    await welcome(stream)
    while True:
        stream.send(await stream.receive())


def wave(session: bytes, number: int, num_bytes: int) -> Wave:
    data = bytes([number]) * num_bytes
    return Wave(session, 0, number, 0, 0, ((number, 0, 5),), Rows("uint8", 1, num_bytes, memoryview(data)))


async def test_two_nodes_talk_both_ways_in_small_and_large_messages_on_several_lanes(start: NodeFactory) -> None:
    acceptor, dialler = await start(), await start()
    remotes: list[PeerId] = []

    async def serve(stream: MessageStream) -> None:
        remotes.append(stream.remote)
        await echo(stream)

    await acceptor.serve(serve)
    stream = await dial(dialler, acceptor.peer_id, acceptor.addresses, GUARD_SECONDS)
    stream.send(Ping(7))
    assert await stream.receive() == Ping(7)
    sessions = [bytes([n]) * 16 for n in range(1, 4)]
    sent = [wave(session, number, size) for session in sessions for number, size in ((1, 3 << 20), (2, 100))]
    for message in sent:
        stream.send(message)
    got = [await stream.receive() for _ in sent]
    for session in sessions:
        assert [m for m in got if isinstance(m, Wave) and m.session == session] == [
            m for m in sent if m.session == session
        ]
    assert remotes == [dialler.peer_id]
    await stream.close()


async def test_a_client_talks_to_a_peer_and_listens_nowhere(start: NodeFactory) -> None:
    peer = await start()
    await peer.serve(echo)
    await peer.publish(record_by(peer))
    client = await start(client_only=True, initial_peers=peer.join_addresses)
    assert client.addresses == ()
    [found] = await client.lookup("tiny")
    stream = await dial(client, found.peer, found.addresses, GUARD_SECONDS)
    stream.send(Ping(1))
    assert await stream.receive() == Ping(1)
    await stream.close()


async def test_messages_are_held_back_by_the_delay_and_still_arrive_in_order(start: NodeFactory) -> None:
    acceptor, dialler = await start(delay_seconds=0.01), await start(delay_seconds=0.01)
    await acceptor.serve(echo)
    stream = await dial(dialler, acceptor.peer_id, acceptor.addresses, GUARD_SECONDS)
    for number in range(5):
        stream.send(Ping(number))
    assert [await stream.receive() for _ in range(5)] == [Ping(number) for number in range(5)]
    await stream.close()


async def test_a_peer_that_closes_is_unreachable_for_the_other(start: NodeFactory) -> None:
    acceptor, dialler = await start(), await start()
    served: list[MessageStream] = []

    async def serve(stream: MessageStream) -> None:
        try:
            await echo(stream)
        finally:
            served.append(stream)

    await acceptor.serve(serve)
    stream = await dial(dialler, acceptor.peer_id, acceptor.addresses, GUARD_SECONDS)
    stream.send(Ping(1))
    assert await stream.receive() == Ping(1)
    await acceptor.close()
    await acceptor.close()
    assert [served_stream.is_open for served_stream in served] == [False]
    with pytest.raises(PeerUnreachable):
        await stream.receive()
    with pytest.raises(PeerUnreachable, match="can't be dialled"):
        await dialler.connect(acceptor.peer_id, acceptor.addresses)


async def test_a_node_that_closes_ends_the_streams_that_it_opened(start: NodeFactory) -> None:
    acceptor, dialler = await start(), await start()
    await acceptor.serve(echo)
    stream = await dial(dialler, acceptor.peer_id, acceptor.addresses, GUARD_SECONDS)
    await dialler.close()
    assert not stream.is_open
    with pytest.raises(PeerUnreachable, match="can't be dialled"):
        await dialler.connect(acceptor.peer_id, acceptor.addresses)


async def test_a_killed_daemon_is_noticed_on_both_sides(start: NodeFactory, caplog: pytest.LogCaptureFixture) -> None:
    acceptor, dialler = await start(), await start()
    arrived, ended = asyncio.Event(), asyncio.Event()

    async def serve(stream: MessageStream) -> None:
        try:
            await welcome(stream)
            arrived.set()
            await stream.receive()
        except PeerUnreachable:
            ended.set()
            raise

    await acceptor.serve(serve)
    stream = await dial(dialler, acceptor.peer_id, acceptor.addresses, GUARD_SECONDS)
    async with asyncio.timeout(GUARD_SECONDS):
        await arrived.wait()
        os.kill(acceptor.daemon_pid, signal.SIGKILL)
        with pytest.raises(PeerUnreachable):
            await stream.receive()
        await acceptor.wait_lost()
        await ended.wait()
    with pytest.raises(SwarmError, match="no libp2p daemon any more"):
        await acceptor.lookup("tiny")
    with pytest.raises(PeerUnreachable, match="the libp2p daemon has ended"):
        await acceptor.connect(dialler.peer_id, dialler.addresses)
    await stream.close()
    await acceptor.close()
    assert "the libp2p daemon has ended by itself" in caplog.text
    caplog.clear()


async def test_dialling_nobody_and_nonsense_is_unreachable(start: NodeFactory) -> None:
    node = await start()
    peer, address = split_peer(await dead_address())
    with pytest.raises(PeerUnreachable, match="can't be dialled"):
        await node.connect(peer, [address])
    with pytest.raises(PeerUnreachable, match="can't be dialled"):
        await node.connect(peer, ["nonsense", "/ip4/1"])
    with pytest.raises(PeerUnreachable, match="its id is malformed"):
        await node.connect(PeerId("0OIl"), [address])
    with pytest.raises(PeerUnreachable):
        await node.connect(PeerId(""), [address])
    with pytest.raises(PeerUnreachable):
        await node.connect(node.peer_id, node.addresses)


async def test_another_peer_than_expected_is_unreachable(start: NodeFactory) -> None:
    acceptor, dialler = await start(), await start()
    await acceptor.serve(echo)
    with pytest.raises(PeerUnreachable, match="can't be dialled"):
        await dialler.connect(Identity.generate().peer_id, acceptor.addresses)


async def test_a_peer_that_serves_nothing_is_unreachable(start: NodeFactory) -> None:
    silent, dialler = await start(), await start()
    with pytest.raises(PeerUnreachable):
        await dial(dialler, silent.peer_id, silent.addresses, GUARD_SECONDS)


async def test_a_handler_that_breaks_ends_its_stream_only(start: NodeFactory, caplog: pytest.LogCaptureFixture) -> None:
    acceptor, dialler = await start(), await start()

    async def serve(stream: MessageStream) -> None:
        await welcome(stream)
        message = await stream.receive()
        if isinstance(message, Close):
            raise RuntimeError("broken")
        stream.send(Pong(1, "online", 0, 0, 0, 0))
        await stream.receive()

    await acceptor.serve(serve)
    broken = await dial(dialler, acceptor.peer_id, acceptor.addresses, GUARD_SECONDS)
    broken.send(Close(b"s" * 16))
    with pytest.raises(PeerUnreachable, match="goodbye"):
        await broken.receive()
    await broken.close()
    assert "ended by a mistake of ours" in caplog.text
    caplog.clear()
    working = await dial(dialler, acceptor.peer_id, acceptor.addresses, GUARD_SECONDS)
    working.send(Fault("x", "y"))
    assert isinstance(await working.receive(), Pong)
    await working.close()
