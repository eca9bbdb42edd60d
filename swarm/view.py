"""The swarm as a client sees it: who serves what, who answers, how far away. Kept over conversations.

Records come from the directory, round trips and free room from pings, what failed from whoever noticed. What to make of
it all is decided in ``routing.choice`` and ``routing.planner``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from routing.choice import Doubt, Variant, choose_variant, doubt, worth_asking
from routing.domain import ModelId, PeerId, PeerRecord, PeerState, Route, Span
from routing.errors import ConfigError, NoRoute, PeerBusy, PeerError, PeerRefused, SwarmError
from routing.health import Health
from routing.links import Links
from routing.messages import Pong
from routing.planner import best_route
from routing.transport import Directory
from swarm.models import ModelName

log = logging.getLogger(__name__)

PING_SECONDS = 10.0
FRESH_SECONDS = 30.0
"""Records and pings that are older are asked for again."""
GRACE_SECONDS = 0.3
"""For those who have not answered yet when enough others have; at least: it grows with the round trips of those."""
MAX_TRIES = 24


@dataclass(frozen=True, slots=True)
class Seen:
    """One peer, as it answered a ping.

    Attributes:
        record: what it says in the directory.
        pong: what it answered; None if it did not.
        rtt_seconds: of the round trip.
        at: when, on the loop's clock.
    """

    record: PeerRecord
    pong: Pong | None
    rtt_seconds: float | None
    at: float

    @property
    def state(self) -> str:
        """As it says itself now; unreachable if it says nothing."""
        return self.pong.state if self.pong is not None else "unreachable"


@dataclass(frozen=True, slots=True)
class Found:
    """A way through the model.

    Attributes:
        model: its identity.
        route: the hops.
        room: tokens of KV cache that the fullest of them has.
    """

    model: ModelId
    route: Route
    room: int


class SwarmView:
    """See the module. ``close`` it before its links.

    Args:
        model: what the client wants to talk to.
        links: how peers are asked.
        directory: where they are found.
    """

    def __init__(self, model: ModelName, links: Links, directory: Directory) -> None:
        self.model = model
        self.health = Health()
        self._links = links
        self._directory = directory
        self._records: list[PeerRecord] = []
        self._read_at: float | None = None
        self._seen: dict[PeerId, Seen] = {}
        self._tasks: set[asyncio.Task[Seen]] = set()
        self._refreshing: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Stop looking."""
        tasks: list[asyncio.Task[Seen] | asyncio.Task[None]] = [*self._tasks]
        if self._refreshing is not None:
            tasks.append(self._refreshing)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def variant(self) -> Variant | None:
        """The variant of the model that is served best, by the directory alone; None if nobody serves the model.

        Raises:
            ConfigError: the swarm has a model of this name, but not with our config or tokenizer.
        """
        await self._read()
        return self._choose(())

    async def ask(self, record: PeerRecord) -> Seen:
        """Ping a peer, and remember what came of it."""
        clock = asyncio.get_running_loop().time
        try:
            link = await self._links.get(record.peer, record.addresses, PING_SECONDS)
            pong, seconds = await link.ping(PING_SECONDS)
            self.health.answered(record.peer, clock(), seconds)
            seen = Seen(record, pong, seconds, clock())
        except PeerError as error:
            log.info("%s", error)
            self.health.failed(record.peer, clock())
            seen = Seen(record, None, None, clock())
        self._seen[record.peer] = seen
        return seen

    def failed(self, peer: PeerId) -> None:
        """A peer did not do what it should, at work."""
        self.health.failed(peer, asyncio.get_running_loop().time())
        self._seen.pop(peer, None)

    def noticed(self, error: PeerError) -> None:
        """Something came up with a peer. That it is full, or refuses what it can't do, is no failure."""
        if not isinstance(error, PeerBusy | PeerRefused):
            self.failed(error.peer)

    async def route(self, num_kv_tokens: int = 0) -> Found:
        """The best route now, by measured round trips and what the peers say of themselves.

        Args:
            num_kv_tokens: peers with less room than this are taken only where there are no others.

        Raises:
            NoRoute: some blocks are served by nobody who answers.
            ConfigError: the swarm serves another model.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        await self._read()
        shunned: set[ModelId] = set()
        failure: NoRoute | None = None
        for _ in range(MAX_TRIES):
            variant = self._choose(shunned)
            if variant is None:
                break
            asked = worth_asking(variant.records, self.model.num_blocks, self.health, clock(), num_kv_tokens)
            was_news = await self._ask_all(asked)
            try:
                found = self._plan(variant, num_kv_tokens)
            except NoRoute as error:
                failure = failure or error
                if self._read_at is not None and self._read_at < began:  # it was another swarm then
                    self._read_at = None
                    await self._read()
                elif not was_news:  # nobody else is worth asking
                    shunned.add(variant.model)
                continue
            for hop in found.route.hops:
                self._seen.pop(hop.peer, None)  # its room will be another one
            log.info("route: %s", found.route)
            self._keep_fresh()
            return found
        self._read_at = None
        raise failure or await self._nobody()

    def _choose(self, shunned: Sequence[ModelId] | set[ModelId]) -> Variant | None:
        variant = choose_variant(self._records, self.model.wanted, shunned)
        if variant is None and not shunned:
            doubts = {doubt(record, self.model.wanted): record for record in self._records}
            if Doubt.OTHER_CONFIG in doubts:
                others = ", ".join(sorted({str(record.model) for record in self._records}))
                raise ConfigError(
                    f"this swarm serves {others}, and our files of {self.model.name} have the config "
                    f"{self.model.config}: use the model folder that its peers use"
                )
            if Doubt.OTHER_PROTOCOL in doubts:
                spoken = doubts[Doubt.OTHER_PROTOCOL].protocol
                raise ConfigError(
                    f"the peers of this swarm speak protocol version {spoken}, this software "
                    f"{self.model.wanted.protocol}: update the older one"
                )
        return variant

    async def _ask_all(self, records: Sequence[PeerRecord]) -> bool:
        """Ask those that were not asked lately. Who is slow is not waited for when the others are enough.

        Returns:
            Was anybody asked?
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        fresh = {peer for peer, seen in self._seen.items() if seen.at > began - FRESH_SECONDS}
        waiting = {asyncio.create_task(self.ask(record)) for record in records if record.peer not in fresh}
        was_news = bool(waiting)
        for task in waiting:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        patience: float | None = None
        while waiting:
            _, waiting = await asyncio.wait(waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if patience is not None and clock() - began > patience:
                break
            if patience is None and self._covers_all(records):
                patience = GRACE_SECONDS + 2 * (clock() - began)
        return was_news

    def _covers_all(self, records: Sequence[PeerRecord]) -> bool:
        spans = [record.span for record in records if self._is_there(record)]
        return not Span(0, self.model.num_blocks).missing(spans)

    def _is_there(self, record: PeerRecord) -> bool:
        seen = self._seen.get(record.peer)
        return seen is not None and seen.state == PeerState.ONLINE

    def _plan(self, variant: Variant, num_kv_tokens: int) -> Found:
        """The best route over those that answered.

        Raises:
            NoRoute: some blocks are served by nobody of them.
        """
        reached = [record for record in variant.records if self._is_there(record)]
        rooms: dict[PeerId, int] = {}
        rtts: dict[PeerId, float] = {}
        for record in reached:
            seen = self._seen[record.peer]
            rooms[record.peer] = seen.pong.num_free_kv_tokens if seen.pong is not None else 0
            rtts[record.peer] = seen.rtt_seconds or 0.0

        def latency(here: PeerId | None, there: PeerId | None) -> float:
            ends = [rtts[peer] / 2 for peer in (here, there) if peer is not None]
            return sum(ends) / len(ends)

        roomy = [record for record in reached if rooms[record.peer] >= num_kv_tokens]
        try:
            route = best_route(roomy, self.model.num_blocks, latency)
        except NoRoute:
            route = best_route(reached, self.model.num_blocks, latency)
        return Found(variant.model, route, min(rooms[hop.peer] for hop in route.hops))

    async def _read(self) -> None:
        """The records, unless they are fresh."""
        now = asyncio.get_running_loop().time()
        if self._read_at is None or now - self._read_at > FRESH_SECONDS:
            self._take(await self._directory.lookup(self.model.name), now)

    def _take(self, records: list[PeerRecord], now: float) -> None:
        self._records, self._read_at = records, now
        there = {record.peer for record in records}
        self._seen = {peer: seen for peer, seen in self._seen.items() if peer in there}

    def _keep_fresh(self) -> None:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh(), name="view of the swarm")

    async def _refresh(self) -> None:
        """Read records and ask peers now and then, so that the next conversation finds its route at once; for ever."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(FRESH_SECONDS * 0.9)
            try:
                self._take(await self._directory.lookup(self.model.name), clock())
                variant = self._choose(())
            except SwarmError as error:
                log.info("%s", error)
                continue
            if variant is not None:
                asked = worth_asking(variant.records, self.model.num_blocks, self.health, clock())
                await asyncio.gather(*map(self.ask, asked))

    async def _nobody(self) -> ConfigError:
        name = self.model.name
        others = ", ".join(sorted(str(other) for other in await self._directory.models()))
        return ConfigError(
            f"no peer of this swarm serves {name}; it serves {others}: name that model, or another swarm"
            if others
            else f"no peer of this swarm serves {name}: start one with `swarm serve MODEL`"
        )
