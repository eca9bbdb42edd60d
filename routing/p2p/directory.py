"""The directory of a swarm: signed records in hivemind's DHT. Times are seconds of the Unix clock.

What hivemind 1.1.12 does not do well is done by hand here: joining with a deadline, and in ``routing.p2p.storage`` all
that keeps strangers from misusing our node of the DHT.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Self

from hivemind.dht.node import DHTNode
from hivemind.p2p import PeerID
from hivemind.utils.timed_storage import get_dht_time

from routing.domain import ModelId, PeerId, PeerRecord
from routing.errors import SwarmError
from routing.identity import Identity
from routing.p2p.daemon import DAEMON_ERRORS, STOP_SECONDS, Daemon, id_bytes
from routing.p2p.storage import MAX_NEIGHBOURS, Bounds, NoStorage, Storage, Validator
from routing.record_rules import MAX_PER_PLACE, keys_of, model_key, models_keys, read
from routing.records import sign_record

__all__ = ["DHTDirectory", "get_dht_time"]

RPC_SECONDS = 2.0
RETRY_SECONDS = 0.5
GRACE_SECONDS = 1.0


class DHTDirectory:
    """See ``routing.transport.Directory``. Made by ``create``.

    Args:
        identity: signs what is published.
        daemon: carries the DHT's calls.
        dht: our node of it.
    """

    def __init__(self, identity: Identity, daemon: Daemon, dht: DHTNode) -> None:
        self.dht = dht
        self._identity = identity
        self._daemon = daemon
        self._is_closed = False

    @classmethod
    async def create(
        cls, identity: Identity, daemon: Daemon, *, client_only: bool, records_bad: Callable[[], None] | None
    ) -> Self:
        """Start a node of the DHT that knows nobody yet.

        Args:
            identity: signs what is published.
            daemon: carries the DHT's calls.
            client_only: keep no records for others.
            records_bad: called for every record that is refused.
        """
        dht = await DHTNode.create(
            p2p=daemon.p2p,
            client_mode=client_only,
            record_validator=Validator(records_bad),
            authorizer=Bounds(),
            bucket_size=MAX_NEIGHBOURS,
            wait_timeout=RPC_SECONDS,
            cache_locally=False,
            cache_nearest=0,
            cache_on_store=False,
            reuse_get_requests=False,
        )
        dht.protocol.storage, dht.protocol.cache = Storage(), NoStorage()
        return cls(identity, daemon, dht)

    async def join(self, peers: Sequence[tuple[PeerId, str]], seconds: float) -> None:
        """Meet at least one of the peers, then our neighbours in the DHT.

        Raises:
            SwarmError: nobody answered in time.
        """
        if not peers:
            return
        try:
            async with asyncio.timeout(seconds):
                while True:
                    if await self._greet(peers):
                        break
                    await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            tried = ", ".join(f"{address}/p2p/{peer}" for peer, address in peers)
            raise SwarmError(
                f"no peer answered within {seconds:.0f} s at {tried}: check that it runs and that the address is right"
            ) from None
        await self.dht.find_nearest_nodes([self.dht.node_id])

    async def _greet(self, peers: Sequence[tuple[PeerId, str]]) -> bool:
        """Greet all at once; when one has answered, the others have a moment more. Did any answer?"""

        async def greet(peer: PeerId, address: str) -> bool:
            try:
                await self._daemon.dial(peer, [address])
            except DAEMON_ERRORS:
                return False
            return await self.dht.protocol.call_ping(PeerID(id_bytes(peer))) is not None

        tasks = {asyncio.create_task(greet(peer, address)) for peer, address in peers}
        waiting, num_met = tasks, 0
        try:
            while waiting:
                moment = GRACE_SECONDS if num_met else None
                done, waiting = await asyncio.wait(waiting, timeout=moment, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                num_met += sum(task.result() for task in done)
            return num_met > 0
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def publish(self, record: PeerRecord) -> None:
        """Sign and store our own record, in the place of the one before; its expiry must be later than that one's.

        Raises:
            SwarmError: nobody took it.
            ConfigError: others would refuse it.
            ValueError: it is another peer's.
        """
        self._check_alive()
        signed = sign_record(self._identity, record)
        keys = keys_of(record)
        stored = await self.dht.store_many(
            list(keys), [signed] * len(keys), [float(record.expiry)] * len(keys), subkeys=[record.peer] * len(keys)
        )
        for key in keys:
            # A node that has it already, from another node, says no: look before complaining.
            if not stored[key, record.peer] and (await self._values(key)).get(record.peer) != signed:
                ahead = record.expiry - get_dht_time()
                raise SwarmError(
                    f"nobody took our record: its expiry must be in the future (it is {ahead:+.1f} s ahead) and later "
                    f"than the last one's, and others keep at most {MAX_PER_PLACE} of one network"
                )

    async def lookup(self, name: str) -> list[PeerRecord]:
        """The records of every peer that serves a model of this name, goodbyes and expired ones left out.

        Raises:
            SwarmError: the libp2p daemon has ended.
        """
        return await self._records(model_key(name))

    async def models(self) -> set[ModelId]:
        """Every model that a peer of this swarm serves.

        Raises:
            SwarmError: the libp2p daemon has ended.
        """
        found = await asyncio.gather(*map(self._records, models_keys()))
        return {record.model for records in found for record in records}

    async def close(self) -> None:
        """Leave, while the daemon still runs; never raises."""
        self._is_closed = True
        if self._daemon.ended.done():
            return
        ending = asyncio.create_task(self.dht.shutdown())
        await asyncio.wait([ending, self._daemon.ended], timeout=STOP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)

    def _check_alive(self) -> None:
        if self._is_closed or self._daemon.ended.done():
            raise SwarmError("this node has no libp2p daemon any more: start it again")

    async def _values(self, key: str) -> dict[object, object]:
        self._check_alive()
        found = await self.dht.get(key, latest=True)
        if found is None or not isinstance(found.value, dict):
            return {}
        return {subkey: item.value for subkey, item in found.value.items()}

    async def _records(self, key: str) -> list[PeerRecord]:
        records, num_bad = read(await self._values(key), key, get_dht_time())
        for _ in range(num_bad):
            self.dht.protocol.record_validator.count("it is of no use to a reader")
        return records
