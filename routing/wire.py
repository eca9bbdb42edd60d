"""The whole protocol: every message that peers and clients say to each other, to bytes and back. Sans-IO.

A message is a msgpack array that begins with its kind. Fields are only ever added at the end, and a receiver ignores
those that it does not know; anything that changes a meaning changes ``PROTOCOL_VERSION``. `PROTOCOL.md` tells who says
what when. Everything here comes from strangers: what does not fit the declared limits is a ``WireError``.
"""

from __future__ import annotations

from typing import Annotated, get_args

import msgspec
from msgspec import Meta, Struct

from routing.domain import Hop, PeerId, Route, SamplingParams, SessionId, Span
from routing.errors import WireError
from routing.tree import Node

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 32 << 20
MAX_NODES_PER_WAVE = 1024
MAX_WAVES_OUTSTANDING = 4
MAX_HOPS = 64

SessionBytes = Annotated[bytes, Meta(min_length=16, max_length=16)]
Count = Annotated[int, Meta(ge=0, lt=2**53)]
Seconds = Annotated[float, Meta(ge=0)]
Text = Annotated[str, Meta(max_length=2000)]
Name = Annotated[str, Meta(max_length=200)]


class Hello(Struct, frozen=True, array_like=True, tag=1):
    """First on every stream, both ways.

    ``auth`` is empty in an open swarm. ``nonce`` is 16 random bytes of the sender.
    """

    version: Count
    features: Annotated[tuple[Name, ...], Meta(max_length=32)] = ()
    nonce: Annotated[bytes, Meta(max_length=64)] = b""
    auth: Annotated[bytes, Meta(max_length=64)] = b""


class Ready(Struct, frozen=True, array_like=True, tag=2):
    """The sender accepts the other's Hello; what follows is work."""

    auth: Annotated[bytes, Meta(max_length=64)] = b""


class Ping(Struct, frozen=True, array_like=True, tag=3):
    """Are you there, and how are you?"""

    nonce: Count


class Pong(Struct, frozen=True, array_like=True, tag=4):
    """The answer to a Ping, with what changes too often for a record."""

    nonce: Count
    state: Name
    num_free_kv_tokens: Count
    queue: Count
    num_sessions: Count
    num_wire_errors: Count


class HopEntry(Struct, frozen=True, array_like=True):
    """One hop of a route."""

    peer: Name
    start: Count
    end: Count
    addresses: Annotated[tuple[Name, ...], Meta(max_length=32)] = ()


class Sampling(Struct, frozen=True, array_like=True):
    """``SamplingParams`` on the wire; ``relax`` and ``cap`` are kept for adaptive verification and must be 0 and 1."""

    temperature: float = 0.0
    top_k: Count = 0
    top_p: float = 1.0
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    relax: float = 0.0
    cap: float = 1.0


class Open(Struct, frozen=True, array_like=True, tag=5):
    """Client to every hop: take part in a session. Answered by Opened, Busy or Fault.

    ``index`` is the receiver's place in ``route``. ``epoch`` counts the routes of a session, from 0.
    """

    session: SessionBytes
    epoch: Count
    model: Name
    index: Count
    route: Annotated[tuple[HopEntry, ...], Meta(min_length=1, max_length=MAX_HOPS)]
    num_kv_tokens: Count
    sampling: Sampling = Sampling()


class Opened(Struct, frozen=True, array_like=True, tag=6):
    """The hop has reached its successor and holds ``num_kv_tokens`` of KV cache for the session."""

    session: SessionBytes
    epoch: Count
    num_kv_tokens: Count


class Busy(Struct, frozen=True, array_like=True, tag=7):
    """The hop has no room for the session now."""

    session: SessionBytes
    epoch: Count
    retry_after_seconds: Seconds


class Rows(Struct, frozen=True, array_like=True):
    """Hidden states, one row for each node of a wave in order: ``num_rows * width`` numbers, little endian."""

    dtype: Name
    num_rows: Count
    width: Count
    data: memoryview


class Timing(Struct, frozen=True, array_like=True):
    """What one hop did for a wave: rows computed in the pass that it was in, waiting and computing."""

    num_rows: Count
    queue_seconds: Seconds
    compute_seconds: Seconds


class Wave(Struct, frozen=True, array_like=True, tag=8):
    """New nodes for a session's token tree; down the route, from hop to hop.

    Attributes:
        wave: counts the session's waves, from 1.
        commit: the node up to which the tree is final; what does not hang from it is dropped.
        start: where the verifier's walk begins; 0 for no walk.
        nodes: (id, parent, token), parents before children.
        rows: the output of the hop before; None from the client.
        timings: of the hops that it has passed.
        if_tip: kept for waves in flight; must be None.
        last_hop: kept for replays; must be None.
    """

    session: SessionBytes
    epoch: Count
    wave: Annotated[int, Meta(ge=1, lt=2**53)]
    commit: Count
    start: Count
    nodes: Annotated[tuple[tuple[Count, Count, Count], ...], Meta(min_length=1, max_length=MAX_NODES_PER_WAVE)]
    rows: Rows | None = None
    timings: Annotated[tuple[Timing, ...], Meta(max_length=MAX_HOPS)] = ()
    if_tip: tuple[Count, Count] | None = None
    last_hop: Count | None = None


class Verdict(Struct, frozen=True, array_like=True, tag=9):
    """Last hop to client: the walk from ``start`` went down ``path`` and ended with a token that no child has.

    ``path`` has the ids of the accepted nodes below ``start``, in order. ``next_token`` comes after them.
    """

    session: SessionBytes
    epoch: Count
    wave: Count
    path: Annotated[tuple[Count, ...], Meta(max_length=MAX_NODES_PER_WAVE)]
    next_token: Count
    timings: Annotated[tuple[Timing, ...], Meta(max_length=MAX_HOPS)] = ()


class Done(Struct, frozen=True, array_like=True, tag=10):
    """Last hop to client: a wave without a walk went through."""

    session: SessionBytes
    epoch: Count
    wave: Count
    timings: Annotated[tuple[Timing, ...], Meta(max_length=MAX_HOPS)] = ()


class Stale(Struct, frozen=True, array_like=True, tag=11):
    """Last hop to client: kept for waves in flight."""

    session: SessionBytes
    epoch: Count
    wave: Count


class Cancel(Struct, frozen=True, array_like=True, tag=12):
    """Client to hops: kept for waves in flight."""

    session: SessionBytes
    epoch: Count
    wave: Count


class Close(Struct, frozen=True, array_like=True, tag=13):
    """Client to every hop, and hop to hop: the session is over, its KV is free."""

    session: SessionBytes


class Fault(Struct, frozen=True, array_like=True, tag=14):
    """Something can't go on; ``text`` is for a person. With no session it ends the stream."""

    code: Name
    text: Text
    session: Annotated[bytes, Meta(max_length=16)] = b""
    epoch: Count = 0
    wave: Count = 0


class Bye(Struct, frozen=True, array_like=True, tag=15):
    """The last message of a stream that ends as it should."""


Message = (
    Hello | Ready | Ping | Pong | Open | Opened | Busy | Wave | Verdict | Done | Stale | Cancel | Close | Fault | Bye
)

MESSAGE_KINDS: tuple[type[Struct], ...] = get_args(Message)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """A message as bytes.

    Raises:
        WireError: it is larger than ``MAX_MESSAGE_BYTES``.
    """
    data = _encoder.encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {len(data)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    return data


def decode(data: bytes | bytearray | memoryview) -> Message:
    """Bytes as a message. Rows share the memory of ``data``.

    Raises:
        WireError: the bytes are no message of this protocol, or a field is out of its limits.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # ValidationError is a DecodeError
        raise WireError(f"not a message of protocol version {PROTOCOL_VERSION}: {error}") from None


def session_of(message: Message) -> bytes:
    """The session that a message is about, or ``b""``."""
    session = getattr(message, "session", b"")
    return session if isinstance(session, bytes) else b""


def open_message(
    session: SessionId, epoch: int, model: str, index: int, route: Route, num_kv_tokens: int, params: SamplingParams
) -> Open:
    """The Open for the hop at ``index`` of ``route``."""
    entries = tuple(HopEntry(hop.peer, hop.span.start, hop.span.end, hop.addresses) for hop in route.hops)
    sampling = Sampling(params.temperature, params.top_k, params.top_p, params.seed)
    return Open(session, epoch, model, index, entries, num_kv_tokens, sampling)


def route_of(message: Open) -> Route:
    """The route in an Open.

    Raises:
        WireError: it does not chain, or ``index`` lies outside of it.
    """
    try:
        route = Route(
            tuple(Hop(PeerId(entry.peer), Span(entry.start, entry.end), entry.addresses) for entry in message.route)
        )
    except ValueError as error:
        raise WireError(str(error)) from None
    if message.index >= len(route):
        raise WireError(f"hop {message.index} of a route of {len(route)}")
    return route


def sampling_of(message: Open) -> SamplingParams:
    """The sampling parameters in an Open.

    Raises:
        WireError: a number is out of range, or asks for what this version does not do.
    """
    wanted = message.sampling
    if wanted.relax != 0.0 or wanted.cap != 1.0:
        raise WireError("adaptive verification is not in this version of the protocol: relax must be 0 and cap 1")
    try:
        return SamplingParams(wanted.temperature, wanted.top_k, wanted.top_p, wanted.seed)
    except ValueError as error:
        raise WireError(str(error)) from None


def nodes_of(message: Wave) -> tuple[Node, ...]:
    """The nodes in a wave."""
    return tuple(Node(*entry) for entry in message.nodes)
