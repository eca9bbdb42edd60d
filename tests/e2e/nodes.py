"""Nodes on loopback, and what tests of them share."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

from routing.domain import PeerRecord
from routing.identity import Identity
from routing.p2p.directory import get_dht_time
from routing.p2p.node import P2PNode
from tests.peer_records import record_of

GUARD_SECONDS = 120
NodeFactory = Callable[..., Awaitable[P2PNode]]


def record_by(node: P2PNode, life_seconds: float = 300.0, **changes: object) -> PeerRecord:
    return record_of(node.peer_id, **{"addresses": node.addresses, "expiry": get_dht_time() + life_seconds, **changes})


async def dead_address() -> str:
    """Where nobody listens, as the address of a peer that is nowhere."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return f"/ip4/127.0.0.1/tcp/{port}/p2p/{Identity.generate().peer_id}"
