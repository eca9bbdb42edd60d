from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.errors import ConfigError, WireError
from routing.identity import Identity
from routing.records import MAX_ADDRESSES, MAX_RECORD_BYTES, open_record, sign_record
from tests.peer_records import record_of

IDENTITY = Identity(bytes(range(32)))
CONTEXT = b"specswarm-peer-record-1:"
RECORD = record_of(
    IDENTITY.peer_id,
    addresses=("/ip4/127.0.0.1/tcp/4001",),
    name="attic",
    queue=2,
    step_seconds=((1, 0.01), (8, 0.02)),
    features=("verify",),
    sequence=3,
    expiry=1_800_000_000.5,
)


def test_a_record_survives_signing() -> None:
    assert open_record(sign_record(IDENTITY, RECORD)) == RECORD


def test_nobody_signs_for_another_peer() -> None:
    with pytest.raises(ValueError, match="can't sign for"):
        sign_record(Identity.generate(), RECORD)


def test_a_record_signed_by_another_key_is_refused() -> None:
    body, _, _ = msgspec.msgpack.decode(sign_record(IDENTITY, RECORD))
    forger = Identity(bytes(32))
    forged = [body, forger.public_key, forger.sign(CONTEXT + body)]
    with pytest.raises(WireError, match="another key has signed"):
        open_record(msgspec.msgpack.encode(forged))


def test_a_record_with_the_owners_key_and_anothers_signature_is_refused() -> None:
    body, key, _ = msgspec.msgpack.decode(sign_record(IDENTITY, RECORD))
    _, _, signature = msgspec.msgpack.decode(sign_record(IDENTITY, replace(RECORD, sequence=4)))
    with pytest.raises(WireError, match="signature is wrong"):
        open_record(msgspec.msgpack.encode([body, key, signature]))


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_noticed(place: int, change: int) -> None:
    data = bytearray(sign_record(IDENTITY, RECORD))
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
    body, _, _ = msgspec.msgpack.decode(sign_record(IDENTITY, RECORD))
    fields = {**msgspec.msgpack.decode(body), **changes}
    raw = msgspec.msgpack.encode(fields)
    return msgspec.msgpack.encode([raw, IDENTITY.public_key, IDENTITY.sign(CONTEXT + raw)])


def test_fields_that_a_reader_does_not_know_are_ignored() -> None:
    assert open_record(sign_raw(colour="green")) == RECORD


@pytest.mark.parametrize(
    "changes",
    [
        {"end": 31},
        {"end": 0},
        {"model": "tiny"},
        {"state": "sleepy"},
        {"expiry": -1.0},
        {"addresses": ["/ip4/192.0.2.1/tcp/1"] * (MAX_ADDRESSES + 1)},
        {"step_seconds": [[1, float("inf")]]},
        {"step_seconds": [[1, float("nan")]]},
        {"queue": -1},
        {"peer": 5},
    ],
    ids=str,
)
def test_a_signed_record_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(WireError):
        open_record(sign_raw(**changes))


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\x00", "\u202egnp", "\u2028"], ids=ascii)
@pytest.mark.parametrize("field", ["model", "peer", "weights_class", "software", "name", "addresses", "features"])
def test_a_text_with_control_characters_is_refused_in_every_field(field: str, text: str) -> None:
    with pytest.raises(WireError, match="malformed"):
        open_record(sign_raw(**{field: [text] if field in ("addresses", "features") else text}))


@pytest.mark.parametrize(
    "changes",
    [{"name": "\x1b[2J"}, {"addresses": ("/ip4/192.0.2.1/tcp/1",) * 9}, {"features": ("f" * 150,) * 20}],
    ids=["control characters", "many addresses", "over two KiB"],
)
def test_what_others_would_refuse_is_not_signed(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="others would refuse what we say of ourselves"):
        sign_record(IDENTITY, replace(RECORD, **changes))  # type: ignore[arg-type]


def test_a_huge_record_is_refused_before_it_is_read() -> None:
    with pytest.raises(WireError, match="over the limit"):
        open_record(bytes(MAX_RECORD_BYTES + 1))
