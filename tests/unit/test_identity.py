from __future__ import annotations

import dataclasses
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.domain import ModelId, PeerRecord, PeerState, Span
from routing.errors import ConfigError, WireError
from routing.identity import MAX_RECORD_BYTES, Identity, open_record

IDENTITY = Identity(bytes(range(32)))
RECORD = PeerRecord(
    model=ModelId("tiny", "0123abcd", "89abcdef"),
    num_blocks=30,
    span=Span(0, 10),
    peer=IDENTITY.peer_id,
    addresses=("/ip4/127.0.0.1/tcp/4001",),
    state=PeerState.ONLINE,
    weights_class="float32",
    software="0.1.0",
    protocol=1,
    name="attic",
    num_free_kv_tokens=4096,
    queue=2,
    step_seconds=((1, 0.01), (8, 0.02)),
    features=("verify",),
    sequence=3,
    expiry=1_800_000_000.5,
)


def test_a_peer_id_is_libp2ps() -> None:
    """The id that go-libp2p gives to the key whose seed is 32 zero bytes."""
    assert Identity(bytes(32)).peer_id == "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


def test_a_record_survives_signing() -> None:
    assert open_record(IDENTITY.sign(RECORD)) == RECORD


def test_nobody_signs_for_another_peer() -> None:
    with pytest.raises(ValueError, match="can't sign for"):
        Identity.generate().sign(RECORD)


def test_a_record_signed_by_another_key_is_refused() -> None:
    class Forger(Identity):
        peer_id = IDENTITY.peer_id

    forged = Forger(bytes(32)).sign(RECORD)
    with pytest.raises(WireError, match="another key has signed"):
        open_record(forged)


def test_a_record_with_the_owners_key_and_anothers_signature_is_refused() -> None:
    body, key, _ = msgspec.msgpack.decode(IDENTITY.sign(RECORD))
    _, _, signature = msgspec.msgpack.decode(IDENTITY.sign(dataclasses.replace(RECORD, sequence=4)))
    with pytest.raises(WireError, match="signature is wrong"):
        open_record(msgspec.msgpack.encode([body, key, signature]))


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_noticed(place: int, change: int) -> None:
    data = bytearray(IDENTITY.sign(RECORD))
    data[place % len(data)] ^= change
    try:
        record = open_record(bytes(data))
    except WireError:
        return
    pytest.fail(f"opened as {record}")


@given(st.binary(max_size=300))
def test_random_bytes_are_no_record(data: bytes) -> None:
    with pytest.raises(WireError):
        open_record(data)


def sign_raw(**changes: object) -> bytes:
    body, _, _ = msgspec.msgpack.decode(IDENTITY.sign(RECORD))
    fields = {**msgspec.msgpack.decode(body), **changes}
    raw = msgspec.msgpack.encode(fields)
    signature = IDENTITY._key.sign(b"specswarm-peer-record-1:" + raw)
    return msgspec.msgpack.encode([raw, IDENTITY._public, signature])


def test_fields_that_a_reader_does_not_know_are_ignored() -> None:
    assert open_record(sign_raw(colour="green")) == RECORD


@pytest.mark.parametrize(
    "changes",
    [
        {"end": 31},
        {"end": 0},
        {"model": "tiny"},
        {"state": "sleepy"},
        {"name": "\x1b[2J"},
        {"expiry": -1.0},
        {"peer": 5},
    ],
    ids=str,
)
def test_a_signed_record_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(WireError):
        open_record(sign_raw(**changes))


def test_a_huge_record_is_refused_before_it_is_read() -> None:
    with pytest.raises(WireError, match="over the limit"):
        open_record(bytes(MAX_RECORD_BYTES + 1))


def test_a_key_file_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "peer.key"
    first = Identity.load_or_create(file)
    assert Identity.load_or_create(file).peer_id == first.peer_id
    assert stat.S_IMODE(file.stat().st_mode) == 0o400
    assert file.read_bytes()[:4] == bytes((8, 1, 18, 64))


def test_a_folder_that_is_not_there_is_taken_for_a_typing_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder must be there"):
        Identity.load_or_create(tmp_path / "keys" / "peer.key")


@pytest.mark.parametrize("content", [b"", b"hello", bytes((8, 1, 18, 64)) + bytes(64)], ids=repr)
def test_a_file_that_is_no_key_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "peer.key"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"peer\.key"):
        Identity.load_or_create(file)
    assert file.read_bytes() == content
