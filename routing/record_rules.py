"""Where records lie in the DHT, and which may lie there. Pure.

A peer's record lies under two keys: one of its model's name, so that a client finds the peers of a model, and one of
all models, so that it can say what else a swarm serves; the second is one of sixteen, by the peer's id, as one list of
all peers would be too long. The subkey is the peer's id, the value what the peer signed.

Every node asks ``refusal`` of each record that it is given to store or to read, so a stranger can neither replace nor
drop another's record: a check by the readers alone would not stop that. What depends on the clock or on other records
is decided elsewhere: by each node for what it keeps (``routing.record_shelf``), and by each reader (``read``).
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections import Counter
from collections.abc import Mapping

import msgspec

from routing.addresses import LOCAL, place_of
from routing.domain import PeerId, PeerRecord, PeerState
from routing.errors import WireError
from routing.records import open_record

MAX_LIFE_SECONDS = 600.0
"""How far ahead of our clock a record may expire: twice what honest ones live, so that no clock need be exact."""
CLOCK_SLACK_SECONDS = 90.0
"""How far a clock may be off and still do no harm."""
MAX_PER_KEY = 256
MAX_PER_PLACE = 8
_NUM_SHARDS = 16


def model_key(name: str) -> str:
    """The key of all peers that serve a model of this name."""
    return f"specswarm:model:{name}"


def models_keys() -> tuple[str, ...]:
    """The keys that together have the peers of all models."""
    return tuple(f"specswarm:models:{shard:x}" for shard in range(_NUM_SHARDS))


def models_key(peer: PeerId) -> str:
    """The one of ``models_keys`` that has this peer."""
    return models_keys()[hashlib.sha256(peer.encode()).digest()[0] % _NUM_SHARDS]


def keys_of(record: PeerRecord) -> tuple[str, str]:
    """The keys under which a record lies: its model's, and the one of all models."""
    return model_key(record.model.name), models_key(record.peer)


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
    record = unpack(value)
    if isinstance(record, str):
        return record
    if subkey != msgspec.msgpack.encode(record.peer):
        return "its subkey is not the peer that signed it"
    if key not in map(key_id, keys_of(record)):
        return "it lies under another model's key"
    if expiry != record.expiry or not math.isfinite(expiry):
        return f"it would be kept until {expiry}, signed was {record.expiry}"
    return None


def unpack(value: bytes) -> PeerRecord | str:
    """The record in a value as the DHT stores it, or why there is none."""
    try:
        data = msgspec.msgpack.decode(value, type=bytes)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
        return "its value is not bytes"
    try:
        record = _open(data)
    except WireError as error:
        return str(error)
    return record if value == msgspec.msgpack.encode(data) else "its value is not in the usual form"


def read(values: Mapping[object, object], key: str, now: float) -> tuple[list[PeerRecord], int]:
    """The records that a reader of a key may use, in the order of their peers, and how many others were none.

    Left out are goodbyes, expired records, those that claim to live for over ``MAX_LIFE_SECONDS``, and all but the
    first ``MAX_PER_PLACE`` of a place. Our clock may be ahead by ``CLOCK_SLACK_SECONDS``.

    Args:
        values: subkey to value, as they came out of the DHT.
        key: where they were found.
        now: seconds of the Unix clock.
    """
    records: list[PeerRecord] = []
    num_at: Counter[str] = Counter()
    num_bad = 0
    for subkey, data in values.items():
        try:
            record = _open(data if isinstance(data, bytes) else b"")
        except WireError:
            num_bad += 1
            continue
        if record.peer != subkey or key not in keys_of(record) or record.expiry > now + MAX_LIFE_SECONDS:
            num_bad += 1
        elif record.expiry > now - CLOCK_SLACK_SECONDS and record.state is not PeerState.GONE:
            place = place_of(record.addresses)
            num_at[place] += 1
            if place == LOCAL or num_at[place] <= MAX_PER_PLACE:
                records.append(record)
    return sorted(records, key=lambda record: record.peer), num_bad


@functools.lru_cache(maxsize=2048)
def _open(data: bytes) -> PeerRecord:
    """``open_record``; the same record comes from many nodes, and a signature takes long to check."""
    return open_record(data)
