"""What was seen of each peer: who answers, and who is left alone for a while. Pure.

A peer that fails is shunned for 2 s, then 4, 8 and so on up to a minute. An answer ends that at once, but the failure
is remembered for some minutes: a peer that answers pings and fails at work is shunned longer each time.
"""

from __future__ import annotations

from dataclasses import dataclass

from routing.domain import PeerId

FIRST_SECONDS = 2.0
MAX_SECONDS = 60.0
MEMORY_SECONDS = 300.0
MAX_PEERS = 4096


@dataclass(slots=True)
class _Seen:
    """One peer.

    Attributes:
        num_failures: in a row, but for answers between them.
        failed_at: the last time; times are seconds of whatever clock the caller has.
        is_answering: has it answered since?
        rtt_seconds: of its last answer, if there was one.
    """

    num_failures: int = 0
    failed_at: float = 0.0
    is_answering: bool = False
    rtt_seconds: float | None = None


class Health:
    """What one client has seen of its peers; of those seen longest ago nothing is known any more.

    Args:
        max_peers: how many are remembered.
    """

    def __init__(self, max_peers: int = MAX_PEERS) -> None:
        self._max_peers = max_peers
        self._seen: dict[PeerId, _Seen] = {}  # those seen last come last

    def __len__(self) -> int:
        return len(self._seen)

    def failed(self, peer: PeerId, now: float) -> None:
        """It did not answer, or not as it should."""
        seen = self._see(peer)
        seen.num_failures = self.num_failures(peer, now) + 1
        seen.failed_at, seen.is_answering = now, False

    def answered(self, peer: PeerId, now: float, rtt_seconds: float) -> None:
        """It answered as it should, after so many seconds."""
        seen = self._see(peer)
        seen.num_failures = self.num_failures(peer, now)
        seen.is_answering, seen.rtt_seconds = True, rtt_seconds

    def is_shunned(self, peer: PeerId, now: float) -> bool:
        """Is it too early to try this peer again?"""
        seen = self._seen.get(peer)
        if seen is None or seen.is_answering:
            return False
        num_doublings = min(seen.num_failures - 1, 16)  # long past the longest time
        return now - seen.failed_at < min(FIRST_SECONDS * 2.0**num_doublings, MAX_SECONDS)

    def is_answering(self, peer: PeerId) -> bool:
        """Did it answer the last time?"""
        return peer in self._seen and self._seen[peer].is_answering

    def num_failures(self, peer: PeerId, now: float) -> int:
        """Its failures, unless the last one is long ago."""
        seen = self._seen.get(peer)
        return seen.num_failures if seen is not None and now - seen.failed_at < MEMORY_SECONDS else 0

    def rtt_seconds(self, peer: PeerId) -> float | None:
        """How long its last answer took."""
        seen = self._seen.get(peer)
        return None if seen is None else seen.rtt_seconds

    def _see(self, peer: PeerId) -> _Seen:
        seen = self._seen.pop(peer, None) or _Seen()
        self._seen[peer] = seen
        if len(self._seen) > self._max_peers:
            del self._seen[next(iter(self._seen))]
        return seen
