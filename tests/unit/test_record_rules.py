from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from routing.domain import PeerRecord, PeerState
from routing.identity import Identity
from routing.record_rules import (
    CLOCK_SLACK_SECONDS,
    MAX_LIFE_SECONDS,
    MAX_PER_PLACE,
    key_id,
    model_key,
    models_key,
    models_keys,
    read,
    refusal,
)
from routing.records import sign_record
from tests.peer_records import record_of

OWNER, STRANGER = Identity(bytes(32)), Identity(bytes([1]) * 32)
KEY = model_key("tiny")
NOW = 1000.0


def record_by(identity: Identity) -> PeerRecord:
    return record_of(identity.peer_id, expiry=NOW + 60)


RECORD = record_by(OWNER)
SIGNED = sign_record(OWNER, RECORD)
pack = msgspec.msgpack.encode
OTHER_SHARDS = [key for key in models_keys() if key != models_key(OWNER.peer_id)]


@pytest.mark.parametrize("key", [KEY, models_key(OWNER.peer_id)])
def test_a_record_may_lie_under_its_models_name_and_among_all_models(key: str) -> None:
    assert refusal(key_id(key), pack(OWNER.peer_id), pack(SIGNED), RECORD.expiry) is None


@pytest.mark.parametrize("subkey", [pack(None), b"", pack(STRANGER.peer_id), pack(7), pack(OWNER.peer_id) + b"\x00"])
def test_a_subkey_that_is_not_the_signer_is_refused(subkey: bytes) -> None:
    assert refusal(key_id(KEY), subkey, pack(SIGNED), RECORD.expiry) == "its subkey is not the peer that signed it"


def test_a_subkey_in_an_unusual_form_is_refused() -> None:
    name = OWNER.peer_id.encode()
    unusual = b"\xdb" + len(name).to_bytes(4, "big") + name
    assert msgspec.msgpack.decode(unusual) == OWNER.peer_id
    assert refusal(key_id(KEY), unusual, pack(SIGNED), RECORD.expiry) is not None


@pytest.mark.parametrize("value", [b"", b"\xc1", pack("text"), pack({"a": 1}), pack(None), pack([SIGNED]), SIGNED])
def test_a_value_that_is_not_bytes_is_refused(value: bytes) -> None:
    assert refusal(key_id(KEY), pack(OWNER.peer_id), value, RECORD.expiry) == "its value is not bytes"


def test_a_value_in_an_unusual_form_is_refused() -> None:
    unusual = b"\xc6" + len(SIGNED).to_bytes(4, "big") + SIGNED
    assert refusal(key_id(KEY), pack(OWNER.peer_id), unusual, RECORD.expiry) == "its value is not in the usual form"


def test_bytes_that_are_no_record_are_refused() -> None:
    assert "malformed" in (refusal(key_id(KEY), pack(OWNER.peer_id), pack(b"x"), RECORD.expiry) or "")


def test_what_another_key_has_signed_is_refused() -> None:
    claimed = sign_record(STRANGER, record_by(STRANGER)).replace(STRANGER.peer_id.encode(), OWNER.peer_id.encode())
    assert refusal(key_id(KEY), pack(OWNER.peer_id), pack(claimed), RECORD.expiry) is not None


@pytest.mark.parametrize("expiry", [RECORD.expiry + 0.001, RECORD.expiry - 10, float("inf"), float("nan")])
def test_another_expiry_than_the_signed_one_is_refused(expiry: float) -> None:
    assert "it would be kept until" in (refusal(key_id(KEY), pack(OWNER.peer_id), pack(SIGNED), expiry) or "")


def test_an_endless_life_is_refused_though_signed() -> None:
    endless = sign_record(OWNER, replace(RECORD, expiry=float("inf")))
    assert refusal(key_id(KEY), pack(OWNER.peer_id), pack(endless), float("inf")) is not None


@pytest.mark.parametrize("key", [model_key("other"), "specswarm", KEY + " ", *OTHER_SHARDS])
def test_another_key_is_refused(key: str) -> None:
    assert refusal(key_id(key), pack(OWNER.peer_id), pack(SIGNED), RECORD.expiry) == "it lies under another model's key"


def test_a_reader_gets_living_records_and_counts_what_is_none() -> None:
    other = replace(record_by(STRANGER), state=PeerState.GONE)
    values: dict[object, object] = {
        OWNER.peer_id: SIGNED,
        STRANGER.peer_id: sign_record(STRANGER, other),
        7: SIGNED,
        "x": 1,
    }
    assert read(values, KEY, NOW) == ([RECORD], 2)
    assert read(values, KEY, RECORD.expiry + CLOCK_SLACK_SECONDS) == ([], 2)


def test_a_readers_clock_may_be_ninety_seconds_off() -> None:
    assert read({OWNER.peer_id: SIGNED}, KEY, RECORD.expiry + CLOCK_SLACK_SECONDS - 1) == ([RECORD], 0)
    assert read({OWNER.peer_id: SIGNED}, KEY, NOW - CLOCK_SLACK_SECONDS) == ([RECORD], 0)


def test_a_goodbye_hides_a_peer_at_once_whatever_the_clock() -> None:
    goodbye = sign_record(OWNER, replace(RECORD, state=PeerState.GONE, expiry=RECORD.expiry + 1))
    for now in (NOW - CLOCK_SLACK_SECONDS, NOW, NOW + CLOCK_SLACK_SECONDS):
        assert read({OWNER.peer_id: goodbye}, KEY, now) == ([], 0)


def test_a_reader_takes_a_few_of_each_place_and_all_that_are_near() -> None:
    def signed(seed: int, address: str) -> tuple[object, object]:
        identity = Identity(seed.to_bytes(32, "big"))
        return identity.peer_id, sign_record(identity, replace(record_by(identity), addresses=(address,)))

    crowd = dict(signed(seed, f"/ip4/8.8.{seed}.1/tcp/4001") for seed in range(20))
    near = dict(signed(seed, f"/ip4/192.168.0.{seed}/tcp/4001") for seed in range(20, 40))
    records, num_bad = read({**crowd, **near}, KEY, NOW)
    assert num_bad == 0
    assert {record.peer for record in records} == {*list(crowd)[:MAX_PER_PLACE], *near}


def test_the_peers_of_all_models_lie_under_sixteen_keys() -> None:
    keys = {models_key(Identity(bytes([seed]) * 32).peer_id) for seed in range(200)}
    assert keys == set(models_keys())
    assert len(keys) == 16


def test_a_reader_leaves_out_a_life_that_is_too_long() -> None:
    endless = sign_record(OWNER, replace(RECORD, expiry=NOW + MAX_LIFE_SECONDS + 1))
    assert read({OWNER.peer_id: endless}, KEY, NOW) == ([], 1)
