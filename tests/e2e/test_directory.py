"""Records in a real DHT, and how nodes join it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace

import pytest
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.p2p import PeerID

from peer.node import _served_now
from routing.domain import ModelId, PeerState, Span
from routing.errors import ConfigError, SwarmError
from routing.handshake import welcome
from routing.identity import Identity
from routing.p2p.node import P2PNode
from routing.record_rules import key_id, model_key, models_key
from routing.records import sign_record
from routing.streams import MessageStream
from routing.transport import Directory
from tests.e2e.nodes import GUARD_SECONDS, NodeFactory, dead_address, record_by
from tests.peer_records import MODEL, record_of

pytestmark = [
    pytest.mark.filterwarnings("error::ResourceWarning"),
    pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
]


async def test_records_are_found_until_their_goodbye(start: NodeFactory) -> None:
    bootstrap = await start()
    peers = [await start(initial_peers=bootstrap.join_addresses) for _ in range(3)]
    other = ModelId("other", "2" * 8, "3" * 8)
    records = [record_by(peer) for peer in peers[:2]] + [record_by(peers[2], model=other)]
    for peer, record in zip(peers, records, strict=True):
        await peer.publish(record)
    directories: list[Directory] = [bootstrap, *peers]
    for directory in directories:
        assert await directory.lookup("nobody") == []
    for node in (bootstrap, *peers):
        assert await node.lookup("tiny") == sorted(records[:2], key=lambda record: record.peer)
        assert await node.models() == {MODEL, other}
    await peers[0].publish(replace(records[0], state=PeerState.GONE, expiry=records[0].expiry + 1, sequence=2))
    for node in (bootstrap, *peers):
        assert await node.lookup("tiny") == [records[1]]
    with pytest.raises(SwarmError, match="nobody took our record"):
        await peers[0].publish(records[0])


async def test_a_forged_record_is_refused_by_every_node_and_the_honest_one_stays(start: NodeFactory) -> None:
    num_bad: dict[str, int] = {"bootstrap": 0, "peer": 0, "third": 0}

    def counter(name: str) -> Callable[[], None]:
        return lambda: num_bad.update({name: num_bad[name] + 1})

    bootstrap = await start(records_bad=counter("bootstrap"))
    owner = Identity.generate()
    peer = await start(owner, records_bad=counter("peer"), initial_peers=bootstrap.join_addresses)
    third = await start(records_bad=counter("third"), initial_peers=bootstrap.join_addresses)
    stranger_identity = Identity.generate()
    stranger = await start(stranger_identity, initial_peers=bootstrap.join_addresses)
    honest = record_by(peer)
    await peer.publish(honest)
    key, models = DHTID.generate(model_key("tiny")), DHTID.generate(models_key(stranger.peer_id))
    assert key.to_bytes() == key_id(model_key("tiny"))
    protocol, dumps = stranger._directory.dht.protocol, stranger._directory.dht.protocol.serializer.dumps
    own = record_by(stranger)
    own_signed, later = sign_record(stranger_identity, own), honest.expiry + 100
    honest_signed = sign_record(owner, honest)
    old = replace(honest, expiry=honest.expiry - 100)
    old_signed = sign_record(owner, old)
    claimed = sign_record(stranger_identity, own).replace(stranger.peer_id.encode(), peer.peer_id.encode())
    whole = DictionaryDHTValue()
    whole.store(peer.peer_id, dumps(own_signed), later)
    forged = {
        "no subkey": (key, dumps(honest_signed), honest.expiry, None),
        "no subkey, later": (key, dumps(b"x"), later, None),
        "another's subkey": (key, dumps(own_signed), own.expiry, peer.peer_id),
        "another's subkey, later": (key, dumps(own_signed), later, peer.peer_id),
        "another's name": (key, dumps(claimed), own.expiry, peer.peer_id),
        "no record": (key, dumps(b"x"), later, peer.peer_id),
        "no bytes": (key, dumps({"a": 1}), later, peer.peer_id),
        "stretched": (key, dumps(honest_signed), later, peer.peer_id),
        "shortened": (key, dumps(honest_signed), honest.expiry - 100, peer.peer_id),
        "wrong key": (DHTID.generate(model_key("other")), dumps(honest_signed), honest.expiry, peer.peer_id),
        "any key": (DHTID.generate("x"), dumps(own_signed), own.expiry, stranger.peer_id),
        "whole dictionary": (key, whole, later, None),
        "strange subkey": (models, dumps(own_signed), own.expiry, 7),
    }
    for node in (bootstrap, peer, third):
        remote = PeerID.from_base58(node.peer_id)
        await stranger._daemon.dial(node.peer_id, node.addresses)
        for what, (where, value, expiry, subkey) in forged.items():
            for in_cache in (False, True):
                stored = await protocol.call_store(remote, [where], [value], [expiry], [subkey], in_cache)
                assert stored == [False], (what, in_cache)
        # What would be a good record must not get into a cache, where it would hide all others.
        assert await protocol.call_store(remote, [key], [dumps(own_signed)], [own.expiry], [own.peer], True) == [False]
        # The peer's own older record again: the newer one must not die with it.
        assert await protocol.call_store(remote, [key], [dumps(old_signed)], [old.expiry], [old.peer]) == [False]
        kept = node._directory.dht.protocol.storage.get(key).value
        assert kept.key_to_heap[peer.peer_id].expiration_time == kept.get(peer.peer_id).expiration_time == honest.expiry
    assert num_bad == dict.fromkeys(num_bad, 2 * len(forged))
    for node in (bootstrap, peer, third, stranger):
        assert await node.lookup("tiny") == [honest]
    await stranger.publish(own)
    assert {record.peer for record in await third.lookup("tiny")} == {peer.peer_id, stranger.peer_id}


async def test_a_dead_bootstrap_ends_with_a_clear_error(start: NodeFactory) -> None:
    address = await dead_address()
    with pytest.raises(SwarmError, match=r"no peer answered within 1 s at /ip4/127.*: check that it runs") as error:
        await start(initial_peers=[address], join_seconds=1.0)
    assert address in str(error.value)


async def test_a_bootstrap_that_accepts_and_says_nothing_ends_with_a_clear_error(start: NodeFactory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{Identity.generate().peer_id}"
        with pytest.raises(SwarmError, match=r"no peer answered within 1 s at /ip4/127"):
            await start(initial_peers=[address], join_seconds=1.0)


async def test_a_stopped_bootstrap_does_not_stop_who_also_knows_a_living_one(start: NodeFactory) -> None:
    stopped, living = await start(), await start()
    os.kill(stopped.daemon_pid, signal.SIGSTOP)
    try:
        peer = await start(initial_peers=[*stopped.join_addresses, *living.join_addresses], join_seconds=GUARD_SECONDS)
        await peer.publish(record_by(peer))
        assert [record.peer for record in await living.lookup("tiny")] == [peer.peer_id]
    finally:
        os.kill(stopped.daemon_pid, signal.SIGCONT)


async def test_one_living_bootstrap_among_dead_ones_is_enough(start: NodeFactory) -> None:
    bootstrap = await start()
    peer = await start(initial_peers=[await dead_address(), *bootstrap.join_addresses], join_seconds=GUARD_SECONDS)
    await peer.publish(record_by(peer))
    assert [record.peer for record in await bootstrap.lookup("tiny")] == [peer.peer_id]


async def test_a_port_in_use_is_named(start: NodeFactory) -> None:
    first = await start()
    with pytest.raises(ConfigError, match=r"can't listen at /ip4/127.0.0.1/tcp/[0-9]+: .* in use"):
        await start(listen=first.addresses)


async def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    starting = asyncio.create_task(P2PNode.create(Identity.generate()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting


async def test_what_is_no_address_is_refused_before_anything_starts(start: NodeFactory) -> None:
    with pytest.raises(ConfigError, match="is not a peer's address"):
        await start(initial_peers=["/ip4/127.0.0.1/tcp/4001"])
    with pytest.raises(ConfigError, match="is not an address to listen at"):
        await start(listen=["localhost:4001"])


async def test_an_announced_address_is_the_one_that_others_get(start: NodeFactory) -> None:
    node = await start(announce=["/dns4/example.org/tcp/4001"])
    assert node.join_addresses == (f"/dns4/example.org/tcp/4001/p2p/{node.peer_id}",)


async def test_who_joins_counts_the_blocks_only_of_peers_that_are_there(start: NodeFactory) -> None:
    async def greet(stream: MessageStream) -> None:
        await welcome(stream)

    living, newcomer = await start(), await start()
    await living.serve(greet)
    killed = record_of(Identity.generate().peer_id, addresses=("/ip4/127.0.0.1/tcp/1",), span=Span(0, 2))
    assert await _served_now(newcomer, [killed, record_by(living, span=Span(1, 3))]) == [Span(1, 3)]
