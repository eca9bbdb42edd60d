"""Where records lie in the DHT, and which may lie there. Pure.

A peer's record lies under two keys: one of its model's name, so that a client finds the peers of a model, and one of
all models, so that it can say what else a swarm serves. The subkey is the peer's id, the value what the peer signed.

Every node asks ``refusal`` of each record that it is given to store or to read, so a stranger can neither replace nor
drop another's record: a check by the readers alone would not stop that.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import msgspec

from routing.domain import ModelId, PeerRecord, PeerState
from routing.errors import WireError
from routing.records import open_record

MODELS_KEY = "specswarm:models"
MAX_LIFE_SECONDS = 3600.0


def model_key(name: str) -> str:
    """The key of all peers that serve a model of this name."""
    return f"specswarm:model:{name}"


def keys_of(model: ModelId) -> tuple[str, str]:
    """The keys under which a peer of this model is stored."""
    return model_key(model.name), MODELS_KEY


def key_id(key: str) -> bytes:
    """The 20 bytes that stand for a key on the wire of the DHT."""
    return hashlib.sha1(msgspec.msgpack.encode(key), usedforsecurity=False).digest()


def refusal(key: bytes, subkey: bytes, value: bytes, expiry: float) -> str | None:
    """Why a record must not be stored, or None if it may.

    The answer depends on the record alone, never on the clock: a node refuses a whole reply for one bad record in it,
    and a record that is good here and bad there would let a stranger blind the readers there.

    Args:
        key: 20 bytes, see ``key_id``.
        subkey: the peer's id as msgpack, in the one form that the DHT itself writes.
        value: the signed record as msgpack, likewise.
        expiry: seconds of the Unix clock when the DHT forgets the record.
    """
    try:
        data = msgspec.msgpack.decode(value, type=bytes)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
        return "its value is not bytes"
    try:
        record = open_record(data)
    except WireError as error:
        return str(error)
    if value != msgspec.msgpack.encode(data):
        return "its value is not in the usual form"
    if subkey != msgspec.msgpack.encode(record.peer):
        return "its subkey is not the peer that signed it"
    if key not in map(key_id, keys_of(record.model)):
        return "it lies under another model's key"
    if expiry != record.expiry or not math.isfinite(expiry):
        return f"it would be kept until {expiry}, signed was {record.expiry}"
    return None


def read(values: Mapping[object, object], key: str, now: float) -> tuple[list[PeerRecord], int]:
    """The records that a reader of a key may use, in the order of their peers, and how many others were none.

    Goodbyes, expired records and those that claim to live for over ``MAX_LIFE_SECONDS`` are left out.

    Args:
        values: subkey to value, as they came out of the DHT.
        key: where they were found.
        now: seconds of the Unix clock.
    """
    records: list[PeerRecord] = []
    num_bad = 0
    for subkey, data in values.items():
        try:
            record = open_record(data if isinstance(data, bytes) else b"")
        except WireError:
            num_bad += 1
            continue
        if record.peer != subkey or key not in keys_of(record.model) or record.expiry > now + MAX_LIFE_SECONDS:
            num_bad += 1
        elif record.expiry > now and record.state is not PeerState.GONE:
            records.append(record)
    return sorted(records, key=lambda record: record.peer), num_bad
