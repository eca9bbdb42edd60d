"""What one node keeps of the DHT for others, so that strangers can't fill it up. Pure.

Records are kept by key, and under a key by peer. Who is there may renew; when there is no room the longest-renewed
stay and a newcomer is refused. So strangers who come later, however many, push nobody out; and as few of one place
(see ``routing.addresses.place_of``) are kept, strangers at one place who came earlier leave room for all others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from routing.addresses import LOCAL, place_of
from routing.domain import PeerId, PeerRecord, PeerState
from routing.record_rules import CLOCK_SLACK_SECONDS, MAX_LIFE_SECONDS, MAX_PER_KEY, MAX_PER_PLACE

MAX_LOCAL_PER_KEY = MAX_PER_KEY // 2
"""A private address costs nothing and can't be told from an invented one, so it leaves half of the room to others."""
MAX_RECORDS = 16_384  # with 2 KiB each, 32 MiB
MAX_PER_PLACE_IN_ALL = 8 * MAX_PER_PLACE
SWEEP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Kept:
    """One record on the shelf.

    Attributes:
        value: what was stored, as it was.
        expiry: seconds of the Unix clock.
        place: where the peer says it is.
        is_goodbye: it only hides an older record.
    """

    value: bytes
    expiry: float
    place: str
    is_goodbye: bool


class RecordShelf:
    """All that a node keeps. Time is the Unix clock, in seconds; it may go back a little."""

    def __init__(self) -> None:
        self._shelves: dict[bytes, dict[PeerId, Kept]] = {}  # under each key the longest-renewed peers come first
        self._num_at: Counter[str] = Counter()
        self._num_records = 0
        self._swept = 0.0

    def __len__(self) -> int:
        return self._num_records

    def put(self, key: bytes, record: PeerRecord, value: bytes, now: float) -> bool:
        """Keep a record, in the place of its peer's older one; was there a reason and room to?

        Args:
            key: where it belongs; the caller has checked that it does.
            record: what ``value`` says.
            value: what readers get.
            now: seconds of the Unix clock.
        """
        if not now < record.expiry <= now + MAX_LIFE_SECONDS + CLOCK_SLACK_SECONDS:
            return False
        self._sweep(now)
        shelf = self._living(key, now)
        known = shelf.get(record.peer)
        kept = Kept(value, record.expiry, place_of(record.addresses), record.state is PeerState.GONE)
        if known is not None and known.expiry >= kept.expiry:
            return False
        if (known is None or known.place != kept.place) and not self._make_room(key, record.peer, kept.place, now):
            return False
        self._count(kept, 1)
        if known is not None:
            self._count(known, -1)
        self._shelves.setdefault(key, shelf)[record.peer] = kept  # a renewal leaves the order as it is
        return True

    def under(self, key: bytes, now: float) -> dict[PeerId, Kept]:
        """The records of a key that have not expired, the longest-renewed first. Not to be changed."""
        return self._living(key, now)

    def keys(self, now: float) -> Iterator[bytes]:
        """Every key under which something lies."""
        self._sweep(now, at_once=True)
        return iter(list(self._shelves))

    def _make_room(self, key: bytes, peer: PeerId, place: str, now: float) -> bool:
        """May a newcomer come? A goodbye that is in its way goes."""
        others = {other: kept for other, kept in self._living(key, now).items() if other != peer}
        neighbours = {other: kept for other, kept in others.items() if kept.place == place}
        max_at_place = MAX_LOCAL_PER_KEY if place == LOCAL else MAX_PER_PLACE
        for those, limit in ((neighbours, max_at_place), (others, MAX_PER_KEY)):
            if len(those) < limit:
                continue
            goodbye = next((other for other, kept in those.items() if kept.is_goodbye), None)
            if goodbye is None:
                return False
            self._drop(key, goodbye)
            others.pop(goodbye)
        max_in_all = MAX_RECORDS // 2 if place == LOCAL else MAX_PER_PLACE_IN_ALL
        return self._num_records < MAX_RECORDS and self._num_at[place] < max_in_all

    def _living(self, key: bytes, now: float) -> dict[PeerId, Kept]:
        shelf = self._shelves.get(key, {})
        for peer in [peer for peer, kept in shelf.items() if kept.expiry <= now]:
            self._drop(key, peer)
        return shelf

    def _sweep(self, now: float, *, at_once: bool = False) -> None:
        if at_once or abs(now - self._swept) >= SWEEP_SECONDS:
            self._swept = now
            for key in list(self._shelves):
                self._living(key, now)

    def _drop(self, key: bytes, peer: PeerId) -> None:
        shelf = self._shelves[key]
        self._count(shelf.pop(peer), -1)
        if not shelf:
            del self._shelves[key]

    def _count(self, kept: Kept, change: int) -> None:
        self._num_records += change
        self._num_at[kept.place] += change
        if not self._num_at[kept.place]:
            del self._num_at[kept.place]
