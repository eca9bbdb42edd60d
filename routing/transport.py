"""The two seams to the network: how peers are dialled, and how they are found.

``routing.p2p`` has both over libp2p and a DHT, ``routing.in_memory`` both inside one process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from routing.domain import ModelId, PeerId, PeerRecord
from routing.streams import MessageStream

StreamHandler = Callable[[MessageStream], Awaitable[None]]
"""Serves one stream that a peer opened; the transport closes the stream when it returns."""


class Transport(Protocol):
    """Dials peers and is dialled by them. The other end's id is proved by the transport."""

    @property
    def peer_id(self) -> PeerId:
        """Our own id."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs where others can dial us, without the ``/p2p/`` part."""

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> MessageStream:
        """Open a stream; the caller closes it.

        Raises:
            PeerUnreachable: nobody answers there, or not as this peer.
        """

    async def serve(self, handler: StreamHandler) -> None:
        """From now on give every stream that others open to ``handler``."""

    async def close(self) -> None:
        """End every stream and stop. A second call does nothing."""


class Directory(Protocol):
    """Where peers say what they serve. Readers get only records whose signature is good."""

    async def publish(self, record: PeerRecord) -> None:
        """Sign and store our own record, in the place of the one before.

        Raises:
            SwarmError: nobody took it.
        """

    async def lookup(self, name: str) -> list[PeerRecord]:
        """The records of every peer that serves a model of this name, goodbyes and expired ones left out."""

    async def models(self) -> set[ModelId]:
        """Every model that a peer of this swarm serves."""
