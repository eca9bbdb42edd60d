"""Who a peer is, and how it signs what it says about itself.

A peer is an Ed25519 key. Its id is base58 of the libp2p "identity" multihash of the public key, so the id itself holds
the key: a record that is signed by the key of the peer it names needs no other proof. The key file is the one that the
libp2p daemon reads: a protobuf of key type 1 (Ed25519) and 64 bytes, seed and public key.

Source: libp2p's specification of peer ids, https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import base58
import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta, Struct

from routing.domain import ModelId, PeerId, PeerRecord, PeerState, Span
from routing.errors import ConfigError, WireError

_KEY_HEAD = bytes((0x08, 0x01, 0x12, 0x40))  # protobuf: key type 1, then 64 bytes
_ID_HEAD = bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20))  # multihash: identity, 36 bytes; protobuf: type 1, 32 bytes
_SIGNING_CONTEXT = b"specswarm-peer-record-1:"
MAX_RECORD_BYTES = 8 << 10

_Name = Annotated[str, Meta(max_length=200)]
_Count = Annotated[int, Meta(ge=0, lt=2**53)]
_Seconds = Annotated[float, Meta(ge=0)]


class Identity:
    """A peer's own key.

    Args:
        seed: 32 bytes; the key follows from them.
    """

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._public = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> Identity:
        """A new key that nobody else has."""
        return cls(os.urandom(32))

    @classmethod
    def load_or_create(cls, file: Path) -> Identity:
        """The key in ``file``; a new one is written there, readable by its owner alone, if there is none.

        Raises:
            ConfigError: the file is no key of this kind, or can't be read or written.
        """
        try:
            if not file.exists():
                identity = cls.generate()
                identity.save(file)
                return identity
            data = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"identity file {file}: {error.strerror}; its folder must be there already") from None
        if len(data) != 68 or not data.startswith(_KEY_HEAD):
            raise ConfigError(f"{file} is no Ed25519 key of libp2p: name a file that does not exist to get a new one")
        identity = cls(data[4:36])
        if identity._public != data[36:]:
            raise ConfigError(f"{file} is damaged: its two halves do not belong together")
        return identity

    def save(self, file: Path) -> None:
        """Write the key for ``load_or_create`` and the libp2p daemon; refuses to replace a file."""
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
        with os.fdopen(descriptor, "wb") as out:
            out.write(_KEY_HEAD + self._seed + self._public)

    @property
    def peer_id(self) -> PeerId:
        """The id that follows from the key."""
        return peer_id_of(self._public)

    def sign(self, record: PeerRecord) -> bytes:
        """The record with its signature, as it is stored for others.

        Raises:
            ValueError: the record is another peer's.
        """
        if record.peer != self.peer_id:
            raise ValueError(f"{self.peer_id} can't sign for {record.peer}")
        body = _encode_record(record)
        return msgspec.msgpack.encode(_Signed(body, self._public, self._key.sign(_SIGNING_CONTEXT + body)))


def peer_id_of(public_key: bytes) -> PeerId:
    """The peer id of a public Ed25519 key (32 bytes)."""
    return PeerId(base58.b58encode(_ID_HEAD + public_key).decode("ascii"))


def open_record(data: bytes) -> PeerRecord:
    """A stored record, its signature checked against the id that it names. Its expiry is the caller's business.

    Raises:
        WireError: malformed, too large, or signed by another key than the peer's own.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise WireError(f"a record of {len(data)} bytes is over the limit of {MAX_RECORD_BYTES}")
    try:
        signed = _signed_decoder.decode(data)
        body = _body_decoder.decode(signed.body)
        record = _decode_record(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise WireError(f"malformed record: {error}") from None
    if peer_id_of(signed.public_key) != record.peer:
        raise WireError(f"a record of {record.peer} that another key has signed")
    try:
        Ed25519PublicKey.from_public_bytes(signed.public_key).verify(signed.signature, _SIGNING_CONTEXT + signed.body)
    except (InvalidSignature, ValueError):
        raise WireError(f"a record of {record.peer} whose signature is wrong") from None
    return record


class _Signed(Struct, frozen=True, array_like=True):
    body: bytes
    public_key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class _Body(Struct, frozen=True):
    """A record as a map by name: fields that a reader does not know are ignored."""

    model: _Name
    num_blocks: Annotated[int, Meta(ge=1, le=100_000)]
    start: _Count
    end: _Count
    peer: _Name
    addresses: Annotated[tuple[_Name, ...], Meta(max_length=32)]
    state: PeerState
    weights_class: _Name
    software: _Name
    protocol: _Count
    sequence: _Count
    expiry: _Seconds
    name: Annotated[str, Meta(max_length=64)] = ""
    num_free_kv_tokens: _Count = 0
    queue: _Count = 0
    step_seconds: Annotated[tuple[tuple[_Count, _Seconds], ...], Meta(max_length=32)] = ()
    features: Annotated[tuple[_Name, ...], Meta(max_length=32)] = ()


_signed_decoder = msgspec.msgpack.Decoder(_Signed)
_body_decoder = msgspec.msgpack.Decoder(_Body)


def _encode_record(record: PeerRecord) -> bytes:
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


def _decode_record(body: _Body) -> PeerRecord:
    span = Span(body.start, body.end)
    if span.end > body.num_blocks:
        raise ValueError(f"the span {span} of a model of {body.num_blocks} blocks")
    if not body.name.isprintable():
        raise ValueError("a name with control characters")
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
