"""What our node of the DHT believes, keeps, and answers to strangers: hivemind's own has no bounds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from hivemind.dht.crypto import DHTRecord, RecordValidatorBase
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.proto.dht_pb2 import NOT_FOUND, FindRequest, FindResponse, StoreRequest
from hivemind.utils.auth import AuthorizerBase
from hivemind.utils.timed_storage import ValueWithExpiration, get_dht_time

from routing.record_rules import CLOCK_SLACK_SECONDS, MAX_LIFE_SECONDS, MAX_PER_KEY, refusal, unpack
from routing.record_shelf import RecordShelf
from routing.records import MAX_RECORD_BYTES

MAX_FIND_KEYS = 4  # as an answer of over 4 MiB would hang who asked, and a key has half a MiB
MAX_STORE_KEYS = 256
MAX_NEIGHBOURS = 20
_MAX_VALUE_BYTES = MAX_PER_KEY * (MAX_RECORD_BYTES + 100)  # a key's records, each with its peer and expiry

logger = logging.getLogger(__name__)


class Validator(RecordValidatorBase):  # type: ignore[misc]
    """The rules of ``routing.record_rules``, on every node: for what it is given to store and for what it reads."""

    def __init__(self, records_bad: Callable[[], None] | None) -> None:
        self._records_bad = records_bad

    def validate(self, record: DHTRecord) -> bool:
        """See hivemind."""
        reason = refusal(record.key, record.subkey, record.value, record.expiration_time)
        if reason is not None:
            self.count(reason)
        return reason is None

    def count(self, reason: str) -> None:
        """One more bad record."""
        logger.debug("record refused: %s", reason)
        if self._records_bad is not None:
            self._records_bad()


class Storage(DHTLocalStorage):  # type: ignore[misc]
    """What this node keeps for others: hivemind's storage over ``routing.record_shelf``.

    What comes out of it is a copy, as hivemind puts what other nodes answer into what it got here.
    """

    def __init__(self, clock: Callable[[], float] = get_dht_time) -> None:
        super().__init__()
        self._shelf = RecordShelf()
        self._clock = clock

    def store(self, key: DHTID, value: bytes, expiration_time: float, subkey: object = None) -> bool:
        """See hivemind; without a subkey nothing is kept."""
        return subkey is not None and self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(self, key: DHTID, subkey: object, value: bytes, expiration_time: float) -> bool:
        """See hivemind; the record has gone through the validator."""
        record = unpack(value)
        if isinstance(record, str) or record.peer != subkey or record.expiry != expiration_time:
            return False
        return self._shelf.put(key.to_bytes(), record, value, self._clock())

    def get(self, key: DHTID) -> ValueWithExpiration[DictionaryDHTValue] | None:
        """See hivemind."""
        kept = self._shelf.under(key.to_bytes(), self._clock())
        if not kept:
            return None
        values = DictionaryDHTValue()
        with values.freeze():
            for peer, item in kept.items():
                values.store(peer, item.value, item.expiry)
        return ValueWithExpiration(values, values.latest_expiration_time)

    def items(self) -> Iterator[tuple[DHTID, ValueWithExpiration[DictionaryDHTValue]]]:
        """See hivemind."""
        for key in map(DHTID.from_bytes, self._shelf.keys(self._clock())):
            value = self.get(key)
            if value is not None:
                yield key, value

    def __contains__(self, key: DHTID) -> bool:
        return bool(self._shelf.under(key.to_bytes(), self._clock()))

    def __len__(self) -> int:
        return len(self._shelf)


class NoStorage(DHTLocalStorage):  # type: ignore[misc]
    """Takes nothing. Strangers may write to a node's cache, and what lies there hides what is stored."""

    def store(self, *_args: object, **_kwargs: object) -> bool:
        """See hivemind."""
        return False

    def store_subkey(self, *_args: object, **_kwargs: object) -> bool:
        """See hivemind."""
        return False


class Bounds(AuthorizerBase):  # type: ignore[misc]
    """Cuts what strangers ask and answer down to what honest nodes do: hivemind has no bounds of its own.

    It is asked about every call of the DHT before and after hivemind's own code, and authorizes everybody.
    """

    async def validate_request(self, request: object) -> bool:
        """A request that is too long becomes an empty one."""
        if isinstance(request, FindRequest) and len(request.keys) > MAX_FIND_KEYS:
            del request.keys[:]
        if isinstance(request, StoreRequest) and (
            len(request.keys) > MAX_STORE_KEYS or any(len(value) > _MAX_VALUE_BYTES for value in request.values)
        ):
            for field in (request.keys, request.subkeys, request.values, request.expiration_time, request.in_cache):
                del field[:]
        return True

    async def validate_response(self, response: object, _request: object) -> bool:
        """Of an answer that is too long only the other nodes that it names are used, and of those not all."""
        for result in response.results if isinstance(response, FindResponse) else ():
            if len(result.value) > _MAX_VALUE_BYTES:
                result.type, result.value = NOT_FOUND, b""
            # Something that never expires would end hivemind's search, with this answer alone.
            result.expiration_time = min(
                result.expiration_time, get_dht_time() + MAX_LIFE_SECONDS + CLOCK_SLACK_SECONDS
            )
            del result.nearest_node_ids[MAX_NEIGHBOURS:]
            del result.nearest_peer_ids[MAX_NEIGHBOURS:]
        return True

    async def sign_request(self, _request: object, _key: object) -> None:
        """Nothing is proved."""

    async def sign_response(self, _response: object, _request: object) -> None:
        """Nothing is proved."""
