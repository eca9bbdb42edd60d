"""Messages that the protocol has and that nothing uses yet: who gets one says ``unsupported``."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from routing.wire_types import Addresses, Count, Name, Seconds, SessionBytes


class Renew(Struct, frozen=True, array_like=True, tag=17):
    """Client to every hop: keep the session, though nothing is asked now. Kept for leases."""

    session: SessionBytes
    epoch: Count


class Replay(Struct, frozen=True, array_like=True, tag=18):
    """Client to a hop: send your journal from ``first`` to ``last`` to the hop after you. Kept for re-routing."""

    session: SessionBytes
    epoch: Count
    first: Count
    last: Count


class Leaving(Struct, frozen=True, array_like=True, tag=19):
    """A peer to everybody on its streams: it will go away. Kept for draining."""

    seconds: Seconds


class Handover(Struct, frozen=True, array_like=True, tag=20):
    """A peer that leaves to a client: this peer can take the session over. Kept for draining."""

    session: SessionBytes
    epoch: Count
    peer: Name
    addresses: Addresses = ()


class Fetch(Struct, frozen=True, array_like=True, tag=21):
    """Send a piece of a tensor. Kept for weights from peers."""

    nonce: Count
    tensor: Name
    offset: Count
    num_bytes: Annotated[int, Meta(ge=1, le=4 << 20)]


class Part(Struct, frozen=True, array_like=True, tag=22):
    """The piece that a Fetch asked for. Kept for weights from peers."""

    nonce: Count
    data: memoryview
