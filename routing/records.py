"""What a peer says about itself, as bytes that others can trust: signed by the key of the peer that it names.

What arrives was written by a stranger and is shown to people: a text with control characters, a number out of its
range or a field too many makes the whole record malformed.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from routing.domain import ModelId, PeerId, PeerRecord, PeerState, Span
from routing.errors import ConfigError, WireError
from routing.identity import Identity, is_signed, peer_id_of

MAX_RECORD_BYTES = 2 << 10
MAX_ADDRESSES = 8
_SIGNING_CONTEXT = b"specswarm-peer-record-1:"

_Text = Annotated[str, Meta(max_length=200)]
_Count = Annotated[int, Meta(ge=0, lt=2**53)]
_Seconds = Annotated[float, Meta(ge=0, le=3600)]


def sign_record(identity: Identity, record: PeerRecord) -> bytes:
    """The record with its signature, as it is stored for others.

    Raises:
        ValueError: the record is another peer's.
        ConfigError: others would refuse it; the message says why.
    """
    if record.peer != identity.peer_id:
        raise ValueError(f"{identity.peer_id} can't sign for {record.peer}")
    body = _encode(record)
    signed = msgspec.msgpack.encode(_Signed(body, identity.public_key, identity.sign(_SIGNING_CONTEXT + body)))
    try:
        open_record(signed)
    except WireError as error:
        raise ConfigError(f"others would refuse what we say of ourselves: {error}") from None
    return signed


def open_record(data: bytes) -> PeerRecord:
    """A stored record, its signature checked against the id that it names. Its expiry is the caller's business.

    Raises:
        WireError: malformed, too large, or signed by another key than the peer's own.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise WireError(f"a record of {len(data)} bytes is over the limit of {MAX_RECORD_BYTES}")
    try:
        signed = _signed_decoder.decode(data)
        record = _decode(_body_decoder.decode(signed.body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise WireError(f"malformed record: {error}") from None
    if peer_id_of(signed.public_key) != record.peer:
        raise WireError(f"a record of {record.peer} that another key has signed")
    if not is_signed(_SIGNING_CONTEXT + signed.body, signed.public_key, signed.signature):
        raise WireError(f"a record of {record.peer} whose signature is wrong")
    return record


class _Signed(Struct, frozen=True, array_like=True):
    body: bytes
    public_key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class _Body(Struct, frozen=True):
    """A record as a map by name: fields that a reader does not know are ignored."""

    model: _Text
    num_blocks: Annotated[int, Meta(ge=1, le=100_000)]
    start: _Count
    end: _Count
    peer: _Text
    addresses: Annotated[tuple[_Text, ...], Meta(max_length=MAX_ADDRESSES)]
    state: PeerState
    weights_class: _Text
    software: _Text
    protocol: _Count
    sequence: _Count
    expiry: Annotated[float, Meta(ge=0)]
    name: Annotated[str, Meta(max_length=64)] = ""
    num_free_kv_tokens: _Count = 0
    queue: _Count = 0
    step_seconds: Annotated[tuple[tuple[_Count, _Seconds], ...], Meta(max_length=32)] = ()
    features: Annotated[tuple[_Text, ...], Meta(max_length=32)] = ()


_signed_decoder = msgspec.msgpack.Decoder(_Signed)
_body_decoder = msgspec.msgpack.Decoder(_Body)


def _encode(record: PeerRecord) -> bytes:
    return msgspec.msgpack.encode(
        _Body(
            model=str(record.model),
            num_blocks=record.num_blocks,
            start=record.span.start,
            end=record.span.end,
            peer=record.peer,
            addresses=record.addresses,
            state=record.state,
            weights_class=record.weights_class,
            software=record.software,
            protocol=record.protocol,
            sequence=record.sequence,
            expiry=record.expiry,
            name=record.name,
            num_free_kv_tokens=record.num_free_kv_tokens,
            queue=record.queue,
            step_seconds=record.step_seconds,
            features=record.features,
        )
    )


def _decode(body: _Body) -> PeerRecord:
    span = Span(body.start, body.end)
    if span.end > body.num_blocks:
        raise ValueError(f"the span {span} of a model of {body.num_blocks} blocks")
    for text in (body.peer, body.weights_class, body.software, body.name, *body.addresses, *body.features):
        if not text.isprintable():
            raise ValueError(f"a text with control characters, {text[:40]!r}")
    return PeerRecord(
        model=ModelId.parse(body.model),
        num_blocks=body.num_blocks,
        span=span,
        peer=PeerId(body.peer),
        addresses=body.addresses,
        state=body.state,
        weights_class=body.weights_class,
        software=body.software,
        protocol=body.protocol,
        name=body.name,
        num_free_kv_tokens=body.num_free_kv_tokens,
        queue=body.queue,
        step_seconds=body.step_seconds,
        features=body.features,
        sequence=body.sequence,
        expiry=body.expiry,
    )
