"""The DHT's storage, validator and bounds in this process, with signed records: no sockets."""

from __future__ import annotations

from collections.abc import Sequence

from hivemind.dht.crypto import DHTRecord
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.proto.dht_pb2 import FOUND_DICTIONARY, NOT_FOUND, FindRequest, FindResponse, FindResult, StoreRequest
from hivemind.utils import MSGPackSerializer
from hivemind.utils.timed_storage import get_dht_time

from routing.identity import Identity
from routing.p2p.storage import MAX_FIND_KEYS, MAX_STORE_KEYS, Bounds, Storage, Validator
from routing.record_rules import model_key, read
from routing.records import sign_record
from tests.peer_records import record_of

NOW = 4e9  # ahead of any clock: hivemind looks at one by itself
KEY = DHTID.generate(model_key("tiny"))


def identities(first: int, number: int) -> list[Identity]:
    return [Identity(seed.to_bytes(32, "big")) for seed in range(first, first + number)]


HONEST = identities(0, 10)
STRANGERS = identities(10, 1000)


def place(number: int) -> str:
    return f"/ip4/{20 + number // 250}.{number % 250}.1.1/tcp/4001"


def store(storage: Storage, identity: Identity, address: str, expiry: float = NOW + 300) -> bool:
    """As a stranger's call comes in: through the validator, then into the storage."""
    signed = sign_record(identity, record_of(identity.peer_id, addresses=(address,), expiry=expiry))
    dumps = MSGPackSerializer.dumps
    assert Validator(None).validate(DHTRecord(KEY.to_bytes(), dumps(identity.peer_id), dumps(signed), expiry))
    return bool(storage.store(KEY, dumps(signed), expiry, subkey=identity.peer_id))


def found(storage: Storage) -> set[str]:
    """The peers that a reader gets from this node alone."""
    item = storage.get(KEY)
    assert item is not None
    answer = MSGPackSerializer.loads(MSGPackSerializer.dumps(item.value))
    with answer.freeze():
        values = {subkey: MSGPackSerializer.loads(value) for subkey, (value, _) in answer.items()}
    records, num_bad = read(values, model_key("tiny"), NOW)
    assert num_bad == 0
    return {record.peer for record in records}


def of_one_place(storage: Storage, strangers: Sequence[Identity]) -> None:
    for number, stranger in enumerate(strangers):
        store(storage, stranger, f"/ip4/8.8.{number % 250}.1/tcp/1")


def test_all_honest_peers_are_read_among_a_thousand_strangers_of_one_place() -> None:
    storage = Storage(lambda: NOW)
    of_one_place(storage, STRANGERS[:500])
    assert all(store(storage, peer, place(number)) for number, peer in enumerate(HONEST))
    of_one_place(storage, STRANGERS[500:])
    assert found(storage) > {peer.peer_id for peer in HONEST}
    assert len(found(storage)) == len(HONEST) + 8


def test_all_honest_peers_are_read_when_a_thousand_strangers_of_all_places_come_later() -> None:
    storage = Storage(lambda: NOW)
    assert all(store(storage, peer, place(number)) for number, peer in enumerate(HONEST))
    for number, stranger in enumerate(STRANGERS):
        store(storage, stranger, place(100 + number))
    assert found(storage) > {peer.peer_id for peer in HONEST}


def test_a_record_that_never_expires_is_not_kept() -> None:
    storage = Storage(lambda: NOW)
    assert not store(storage, HONEST[0], place(0), expiry=1e300)
    assert storage.get(KEY) is None
    assert KEY not in storage


def test_what_comes_out_of_the_storage_is_a_copy() -> None:
    storage = Storage(lambda: NOW)
    assert store(storage, HONEST[0], place(0))
    [(key, item)] = storage.items()
    assert key == KEY
    with item.value.freeze():
        item.value.store("stranger", b"x", NOW + 300)
    assert found(storage) == {HONEST[0].peer_id}
    assert len(storage) == 1


def test_only_a_peers_own_record_is_kept() -> None:
    storage = Storage(lambda: NOW)
    assert not storage.store(KEY, b"x", NOW + 300)
    assert not storage.store(KEY, b"x", NOW + 300, subkey="x")
    assert len(storage) == 0


async def test_a_request_over_the_bounds_is_answered_with_nothing() -> None:
    keys = [bytes(20)] * MAX_STORE_KEYS
    find = FindRequest(keys=keys[:MAX_FIND_KEYS])
    assert await Bounds().validate_request(find)
    assert len(find.keys) == MAX_FIND_KEYS
    find = FindRequest(keys=keys)
    assert await Bounds().validate_request(find)
    assert list(find.keys) == []
    for value, number in ((b"", MAX_STORE_KEYS + 1), (bytes(1 << 20), 1)):
        store = StoreRequest(
            keys=[bytes(20)] * number, subkeys=[b""] * number, values=[value] * number,
            expiration_time=[1.0] * number, in_cache=[False] * number,
        )  # fmt: skip
        assert await Bounds().validate_request(store)
        assert store == StoreRequest()
    ping = StoreRequest()
    assert await Bounds().validate_request(ping)


async def test_an_answer_that_never_expires_does_not_end_a_search_and_one_that_is_huge_is_none() -> None:
    small = DictionaryDHTValue()
    small.store("peer", b"record", 1e300)
    dumps = MSGPackSerializer.dumps
    response = FindResponse(
        results=[
            FindResult(type=FOUND_DICTIONARY, value=dumps(small), expiration_time=float("inf")),
            FindResult(type=FOUND_DICTIONARY, value=bytes(1 << 20), expiration_time=1.0),
            FindResult(type=NOT_FOUND, nearest_node_ids=[b"n"] * 100, nearest_peer_ids=[b"p"] * 100),
        ]
    )
    assert await Bounds().validate_response(response, FindRequest())
    endless, huge, named = response.results
    assert endless.type == FOUND_DICTIONARY
    assert endless.expiration_time < get_dht_time() + 1000
    assert (huge.type, huge.value) == (NOT_FOUND, b"")
    assert len(named.nearest_node_ids) == len(named.nearest_peer_ids) == 20


def test_a_validator_counts_what_it_refuses() -> None:
    refused: list[None] = []
    validator = Validator(lambda: refused.append(None))
    assert not validator.validate(DHTRecord(KEY.to_bytes(), b"", b"", 0.0))
    assert len(refused) == 1
