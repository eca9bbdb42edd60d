"""What a client makes of the records that it finds: which it believes, which variant it uses, whom it asks. Pure.

Whoever can sign can say anything, and ids cost nothing. So a record is held against what the client knows itself, the
variant of a model that is served in most places wins, and those who are asked are spread over places and spans; who
does not answer is not asked again soon. Equal records give equal choices, whatever their order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, takewhile

from routing.addresses import place_of
from routing.domain import ModelId, PeerRecord, PeerState, Span
from routing.health import Health

MAX_ASKED = 16
MAX_COVER = 64
"""More peers than ``MAX_ASKED`` are asked if it takes more to cover all blocks, but no more than these."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client knows of its model by itself.

    Attributes:
        name: what people call it.
        config: 8 hex digits over its config.json and tokenizer.json.
        num_blocks: of the whole model, from its config.json.
        protocol: the version of the wire that the client speaks.
    """

    name: str
    config: str
    num_blocks: int
    protocol: int


class Doubt(StrEnum):
    """Why a record is of no use; the first that is true counts."""

    OTHER_MODEL = "another model"
    OTHER_CONFIG = "another config or tokenizer"
    WRONG_BLOCKS = "another number of blocks than the model has"
    OTHER_PROTOCOL = "another version of the protocol"


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant of a model, and who serves it.

    Attributes:
        model: its identity.
        records: of its peers, in the order of their spans; not all of them need be online.
    """

    model: ModelId
    records: tuple[PeerRecord, ...]


def doubt(record: PeerRecord, wanted: Wanted) -> Doubt | None:
    """What is wrong with a record, or None if it may be believed."""
    if record.model.name != wanted.name:
        return Doubt.OTHER_MODEL
    if record.model.config != wanted.config:
        return Doubt.OTHER_CONFIG
    if record.num_blocks != wanted.num_blocks or record.span.end > wanted.num_blocks:
        return Doubt.WRONG_BLOCKS
    if record.protocol != wanted.protocol:
        return Doubt.OTHER_PROTOCOL
    return None


def choose_variant(records: Iterable[PeerRecord], wanted: Wanted, shunned: Collection[ModelId] = ()) -> Variant | None:
    """The variant of the model to use, or None if there is none.

    The one that lacks the fewest blocks wins, then the one in the most places, then the one with the most peers, then
    the first by name: one stranger with invented weights does not lead clients away from a swarm that is there.

    Args:
        records: what was found; those with a ``doubt`` are left out.
        wanted: what the client knows.
        shunned: variants whose peers did not answer.
    """
    variants: dict[ModelId, list[PeerRecord]] = {}
    for record in records:
        if record.model not in shunned and doubt(record, wanted) is None:
            variants.setdefault(record.model, []).append(record)

    def demerit(model: ModelId) -> tuple[int, int, int, ModelId]:
        online = [record for record in variants[model] if record.state is PeerState.ONLINE]
        missing = Span(0, wanted.num_blocks).missing(record.span for record in online)
        places = {place_of(record.addresses) for record in online}
        return sum(map(len, missing)), -len(places), -len(online), model

    if not variants:
        return None
    best = min(variants, key=demerit)
    return Variant(
        best, tuple(sorted(variants[best], key=lambda record: (record.span.start, record.span.end, record.peer)))
    )


def worth_asking(
    records: Sequence[PeerRecord],
    num_blocks: int,
    health: Health,
    now: float,
    num_kv_tokens: int = 0,
    limit: int = MAX_ASKED,
) -> list[PeerRecord]:
    """The peers to ask whether they are there: all blocks are covered, then the least covered ones again.

    Peers that answered the last time come first, then those that we know nothing of, then those that failed; a peer
    that is shunned is asked only where nobody else serves a block. Then counts what many strangers find hard: not to be
    like others that failed, or that are asked already, in place and span. Then enough free KV, the longer way, the
    shorter queue and round trip, the lower id.

    Args:
        records: of one variant.
        num_blocks: of the whole model.
        health: what was seen of them.
        now: seconds of the clock of ``health``.
        num_kv_tokens: tokens of KV cache that a session will want.
        limit: how many to ask, unless it takes more to cover all blocks.
    """
    online = [r for r in records if r.state is PeerState.ONLINE and r.span.end <= num_blocks]
    pool = _Pool(sorted(online, key=lambda record: record.peer), num_blocks, health, now, num_kv_tokens)
    picked = pool.cover(max(limit, min(pool.num_needed, MAX_COVER)))
    while len(picked) < limit:
        again = pool.again()
        if again is None:
            break
        picked.append(again)
    return picked


_HEALTHY, _FAILED, _SHUNNED = range(3)


@dataclass(slots=True, eq=False)
class _Candidate:
    """A peer that might be asked.

    Attributes:
        record: what it says.
        start: of its span.
        end: of its span.
        level: whether it is shunned, has failed, or neither.
        rank: level, is it not answering, failures: what was seen of it; lower is better.
        is_full: has it less room than a session will want?
        place: a number for its place.
        shape: a number for its span.
    """

    record: PeerRecord
    start: int
    end: int
    level: int
    rank: tuple[int, bool, int]
    is_full: bool
    place: int
    shape: int


class _Pool:
    """Peers that have not been picked, and how often what they have was picked."""

    def __init__(
        self, records: Sequence[PeerRecord], num_blocks: int, health: Health, now: float, num_kv_tokens: int
    ) -> None:
        self._num_blocks = num_blocks
        places: dict[str, int] = {}
        shapes: dict[tuple[int, int], int] = {}
        self._left: list[_Candidate] = []
        self._num_picked = 0
        self._num_failed_at, self._num_failed_shaped = [0] * len(records), [0] * len(records)
        for record in records:
            start, end = record.span.start, record.span.end
            num_failures = health.num_failures(record.peer, now)
            is_answering = health.is_answering(record.peer)
            if health.is_shunned(record.peer, now):
                level = _SHUNNED
            else:
                level = _FAILED if num_failures and not is_answering else _HEALTHY
            place = places.setdefault(place_of(record.addresses), len(places))
            shape = shapes.setdefault((start, end), len(shapes))
            is_full = record.num_free_kv_tokens < num_kv_tokens
            rank = (level, not is_answering, num_failures)
            self._left.append(_Candidate(record, start, end, level, rank, is_full, place, shape))
            self._num_failed_at[place] += level != _HEALTHY
            self._num_failed_shaped[shape] += level != _HEALTHY
        never = float("inf")
        rtts = {record.peer: health.rtt_seconds(record.peer) for record in records}

        def preference(candidate: _Candidate) -> tuple[tuple[int, bool, int], int, float, str]:
            rtt_seconds = rtts[candidate.record.peer]
            return (
                candidate.rank,
                candidate.record.queue,
                never if rtt_seconds is None else rtt_seconds,
                candidate.record.peer,
            )

        self._left.sort(key=preference)
        self._num_at, self._num_shaped = [0] * len(places), [0] * len(shapes)
        self._num_over = [0] * num_blocks  # picked peers that serve each block; one that answers counts for many
        self._supply = [0] * (num_blocks + 1)  # peers that may be picked once more for each block
        for candidate in self._left:
            if candidate.level != _SHUNNED:
                self._supply[candidate.start] += 1
                self._supply[candidate.end] -= 1
        self._supply = list(accumulate(self._supply))
        self._level_of, self._needed = self._plan()

    @property
    def num_needed(self) -> int:
        """The fewest peers that together serve all that is served, each block by one of the best that it has."""
        return self._needed[0]

    def cover(self, limit: int) -> list[PeerRecord]:
        """Pick peers that serve all blocks, as good ones as the limit allows."""
        picked: list[PeerRecord] = []
        block = 0
        while block < self._num_blocks and len(picked) < limit:
            level = self._level_of[block]
            if level is None:
                block += 1
                continue
            num_left = limit - len(picked) - 1
            options = [c for c in self._left if c.level == level and c.start <= block < c.end]
            best = self._best(block, [c for c in options if self._needed[c.end] <= num_left] or options)
            picked.append(self._pick(best))
            block = best.end
        return picked

    def again(self) -> PeerRecord | None:
        """Pick a peer for the block that is covered least, or None if nobody is left."""
        open_blocks = [block for block in range(self._num_blocks) if self._supply[block]]
        if not open_blocks:
            return None
        block = min(open_blocks, key=self._num_over.__getitem__)
        options = [c for c in self._left if c.level != _SHUNNED and c.start <= block < c.end]
        return self._pick(self._best(block, options))

    def _best(self, block: int, options: Sequence[_Candidate]) -> _Candidate:
        """The best of these for the blocks from ``block`` on; they come in the order of their rank."""
        rank = options[0].rank
        return min(
            takewhile(lambda candidate: candidate.rank == rank, options),
            key=lambda candidate: (
                *self._crowding(candidate),
                candidate.is_full,
                block - candidate.end,
            ),
        )

    def _crowding(self, candidate: _Candidate) -> tuple[int, int, int]:
        """How many are like this one. Place and span take turns: who claims the places of others can't hide them."""
        place, shape = candidate.place, candidate.shape
        if self._num_picked % 2:
            return self._num_failed_shaped[shape], self._num_shaped[shape], self._num_at[place]
        return self._num_failed_at[place], self._num_at[place], self._num_shaped[shape]

    def _pick(self, candidate: _Candidate) -> PeerRecord:
        self._num_picked += 1
        self._left.remove(candidate)
        self._num_at[candidate.place] += 1
        self._num_shaped[candidate.shape] += 1
        _, is_silent, _ = candidate.rank
        for block in range(candidate.start, candidate.end):
            self._num_over[block] += 1 if is_silent else MAX_COVER
            self._supply[block] -= candidate.level != _SHUNNED
        return candidate.record

    def _plan(self) -> tuple[list[int | None], list[int]]:
        """For each block the best level that serves it, and the fewest such peers from there to the end."""
        reaches = [[0] * self._num_blocks for _ in (_HEALTHY, _FAILED, _SHUNNED)]
        for candidate in self._left:
            reach = reaches[candidate.level]
            reach[candidate.start] = max(reach[candidate.start], candidate.end)
        reaches = [list(accumulate(reach, max)) for reach in reaches]
        levels: list[int | None] = [None] * self._num_blocks
        needed = [0] * (self._num_blocks + 1)
        for block in reversed(range(self._num_blocks)):
            levels[block] = next((level for level, reach in enumerate(reaches) if reach[block] > block), None)
            level = levels[block]
            needed[block] = needed[block + 1] if level is None else 1 + needed[reaches[level][block]]
        return levels, needed
