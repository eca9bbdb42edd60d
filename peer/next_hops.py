"""The next hops of all sessions: which are reached, which are dialled and for whom. Pure.

Any client can name any peer at any address, so a dial that fails is the fault of the client that gave the addresses;
others who wait for the same peer have theirs tried after it.
"""

from __future__ import annotations

from dataclasses import dataclass

from peer.hop_events import Dial, StreamId
from peer.seat import Seat
from routing.domain import PeerId

MAX_DIALS_OF_A_CLIENT = 8
"""Next hops that one client may make us dial at once."""

Addresses = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Dialled:
    """A dial that is under way: whose addresses are tried, and who waits, each with its own."""

    client: PeerId
    waiting: dict[Seat, Addresses]


class NextHops:
    """See the module."""

    def __init__(self) -> None:
        self._reached: dict[PeerId, StreamId] = {}
        self._dialled: dict[PeerId, _Dialled] = {}

    def stream_to(self, peer: PeerId) -> StreamId | None:
        """The stream to a peer that is reached."""
        return self._reached.get(peer)

    def has_room(self, peer: PeerId, client: PeerId) -> bool:
        """May a client want this peer now? Not if it would be one dial too many."""
        if peer in self._reached or peer in self._dialled:
            return True
        return sum(dialled.client == client for dialled in self._dialled.values()) < MAX_DIALS_OF_A_CLIENT

    def wait(self, seat: Seat, peer: PeerId, addresses: Addresses) -> list[Dial]:
        """Let a seat wait for a peer that is not reached; the dial that this needs, if any."""
        if peer in self._dialled:
            self._dialled[peer].waiting[seat] = addresses
            return []
        self._dialled[peer] = _Dialled(seat.client_peer, {seat: addresses})
        return [Dial(peer, addresses)]

    def forget(self, seat: Seat) -> None:
        """The seat waits no more; the dial goes on."""
        if seat.next_peer in self._dialled:
            self._dialled[seat.next_peer].waiting.pop(seat, None)

    def reached(self, peer: PeerId, stream: StreamId) -> list[Seat]:
        """A peer has been reached: who waited for it."""
        self._reached[peer] = stream
        dialled = self._dialled.pop(peer, None)
        return list(dialled.waiting) if dialled else []

    def failed(self, peer: PeerId) -> tuple[list[Seat], list[Dial]]:
        """A dial has failed: the seats of the client that gave the addresses, and a dial for the others."""
        dialled = self._dialled.pop(peer, None)
        if dialled is None:
            return [], []
        failed = [seat for seat in dialled.waiting if seat.client_peer == dialled.client]
        others = {seat: addresses for seat, addresses in dialled.waiting.items() if seat not in failed}
        for seat, addresses in others.items():
            self._dialled[peer] = _Dialled(seat.client_peer, others)
            return failed, [Dial(peer, addresses)]
        return failed, []

    def lost(self, stream: StreamId) -> None:
        """A stream that we dialled has ended."""
        self._reached = {peer: number for peer, number in self._reached.items() if number != stream}
