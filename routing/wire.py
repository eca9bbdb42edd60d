"""Messages to bytes and back, and what is in them as the nouns of ``routing.domain``. Sans-IO.

Everything comes from strangers: what does not fit the limits that ``routing.messages`` declares is a ``WireError``.
"""

from __future__ import annotations

from typing import get_args

import msgspec

from routing.domain import Hop, PeerId, Route, SamplingParams, SessionId, Span
from routing.errors import WireError
from routing.messages import LAST_KIND, PROTOCOL_VERSION, HopEntry, Known, Message, Open, Unknown, Wave
from routing.wire_types import MAX_MESSAGE_BYTES

NODE_BYTES = 24
"""What a node counts for credit."""

_encoder = msgspec.msgpack.Encoder()
_FIELDS = {
    kind: (
        tuple(field.name for field in msgspec.structs.fields(kind)),
        tuple({} if field.default_factory is dict else field.default for field in msgspec.structs.fields(kind)),
    )
    for kind in get_args(Known)
}
"""Of each message the names of its fields, and their defaults, which nothing equals where there is none."""
_decoder: msgspec.msgpack.Decoder[Known] = msgspec.msgpack.Decoder(Known)


def encode(message: Message) -> bytes:
    """A message as bytes; fields at its end that have their default are left out.

    Raises:
        WireError: it is larger than ``MAX_MESSAGE_BYTES``.
    """
    names, defaults = _FIELDS[type(message)]
    values = [getattr(message, name) for name in names]
    while values and values[-1] == defaults[len(values) - 1]:
        values.pop()
    data = _encoder.encode([message.__struct_config__.tag, *values])
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {len(data)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    return data


def decode(data: bytes | bytearray | memoryview) -> Message:
    """Bytes as a message, or ``Unknown`` if only its kind is not known. Rows share the memory of ``data``.

    Raises:
        WireError: the bytes are no message of this protocol, or a field is out of its limits.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # ValidationError is a DecodeError
        if (unknown := _unknown(bytes(data[:24]))) is not None:
            return unknown
        raise WireError(f"not a message of protocol version {PROTOCOL_VERSION}: {error}") from None


def _unknown(head: bytes) -> Unknown | None:
    """The head of a message whose kind comes after ours; its first field is looked at, in case it is a session."""
    if len(head) < 2 or not 0x91 <= head[0] <= 0x9F:  # an array of 1 to 15
        return None
    if head[1] < 0x80:
        kind, rest = head[1], head[2:]
    elif head[1] == 0xCC and len(head) > 2:
        kind, rest = head[2], head[3:]
    else:
        return None
    has_session = rest[:2] == b"\xc4\x10" and len(rest) >= 18
    return Unknown(kind, rest[2:18] if has_session else b"") if kind > LAST_KIND else None


def session_of(message: Message) -> bytes:
    """The session that a message is about, or ``b""``."""
    session = getattr(message, "session", b"")
    return session if isinstance(session, bytes) else b""


def credit_of(message: Wave) -> int:
    """Bytes that a wave, or a part of one, takes of the receiver's grant; both sides count the same."""
    return NODE_BYTES * (1 + len(message.nodes)) + (len(message.rows.data) if message.rows is not None else 0)


def open_message(
    session: SessionId, epoch: int, model: str, index: int, route: Route, num_kv_tokens: int, params: SamplingParams
) -> Open:
    """The Open for the hop at ``index`` of ``route``."""
    entries = tuple(HopEntry(hop.peer, hop.span.start, hop.span.end, hop.addresses) for hop in route.hops)
    sampling: dict[str, int | float | str] = {
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "seed": params.seed,
    }
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


_SAMPLING = {"temperature": float, "top_k": int, "top_p": float, "seed": int}


def sampling_of(message: Open) -> SamplingParams:
    """The sampling parameters in an Open.

    Raises:
        WireError: a number is out of range, or asks for what this version does not do.
    """
    for name, value in message.sampling.items():
        kinds = (int, float) if _SAMPLING.get(name) is float else (int,)
        if name not in _SAMPLING:
            raise WireError(f"this version can't draw with {name[:40]!r}: leave it out")
        if not isinstance(value, kinds):
            raise WireError(f"{name} is {str(value)[:40]!r}, no number that would do")
    try:
        return SamplingParams(**message.sampling)  # type: ignore[arg-type]
    except ValueError as error:
        raise WireError(str(error)) from None
