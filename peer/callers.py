"""The streams that others opened to us: whose they are, and which must end when there are too many. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from peer.hop_events import HangUp, StreamId
from peer.seat import Seat
from routing.domain import PeerId
from routing.messages import Fault

MAX_STREAMS_OF_A_PEER = 16
MAX_STREAMS = 512


class Callers:
    """See the module."""

    def __init__(self) -> None:
        self._peers: dict[StreamId, PeerId] = {}

    def __contains__(self, stream: StreamId) -> bool:
        return stream in self._peers

    def peer_of(self, stream: StreamId) -> PeerId | None:
        """Who opened a stream; None if it has ended, or is to end."""
        return self._peers.get(stream)

    def opened(self, stream: StreamId, peer: PeerId, seats: Collection[Seat]) -> list[HangUp]:
        """A peer has opened a stream: it, or one that no session needs, has to go if there are too many.

        Of those that are not needed, the oldest one goes of who has the most streams.
        """
        num_streams = Counter(self._peers.values())
        if num_streams[peer] >= MAX_STREAMS_OF_A_PEER:
            text = f"too many streams: {num_streams[peer]} of yours; use one for all sessions"
            return [HangUp(stream, Fault("busy", text))]
        self._peers[stream] = peer
        if len(self._peers) <= MAX_STREAMS:
            return []
        clients = {seat.client for seat in seats}
        hops = {seat.predecessor for seat in seats if seat.predecessor != seat.client_peer}
        idle = [other for other, its in self._peers.items() if other not in clients and its not in hops]
        leaving = max(idle, key=lambda other: num_streams[self._peers[other]], default=stream)
        self.lost(leaving)
        text = f"too many streams: {MAX_STREAMS} in all, and this one has no session; come back when you need it"
        return [HangUp(leaving, Fault("busy", text))]

    def lost(self, stream: StreamId) -> None:
        """A stream has ended."""
        self._peers.pop(stream, None)
