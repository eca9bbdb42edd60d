"""Everything that can go wrong, as one tree.

    SwarmError
      ConfigError                 what a person gave us: an argument, a file, a folder
      WireError                   bytes that are not our protocol
        VersionMismatch           our protocol, another version
      PeerError(peer)
        PeerUnreachable           it can't be dialled, or its stream ended
        PeerTimeout               it is there and says nothing
        PeerBusy(retry_after)     it has no room now
        PeerUntrusted             it says what can't be true
        PeerRefused               it answered with a fault
      NoRoute(missing)            blocks that nobody serves
      NotAuthorized               the swarm wants a key that we do not have
      GenerationFailed(text so far)

A message names the peer or the span, what was expected, and what to do. Foreign errors are mapped to these at one door
each: hivemind's in ``routing.p2p``, the file system's where a file is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from routing.domain import PeerId, Span, short


class SwarmError(Exception):
    """Anything that this software raises on purpose. Its text is fit for a person."""


class ConfigError(SwarmError):
    """An argument, a file or a folder can't be used; the text says what would do."""


class WireError(SwarmError):
    """Bytes from a peer are not our protocol: malformed, too large, or not allowed now."""


class VersionMismatch(WireError):
    """The other side speaks another version of the protocol."""


class PeerError(SwarmError):
    """Something went wrong with one peer; ``reason`` is the text without its name."""

    def __init__(self, peer: PeerId, message: str) -> None:
        super().__init__(f"peer {short(peer)}: {message}")
        self.peer = peer
        self.reason = message


class PeerUnreachable(PeerError):
    """The peer can't be dialled, or its stream has ended."""


class PeerTimeout(PeerError):
    """The peer took longer than the deadline that the message names."""


class PeerBusy(PeerError):
    """The peer has no room for what was asked; ``retry_after_seconds`` is its own guess."""

    def __init__(self, peer: PeerId, retry_after_seconds: float) -> None:
        super().__init__(peer, f"is full; try again in {retry_after_seconds:.0f} s, or with a shorter context")
        self.retry_after_seconds = retry_after_seconds


class PeerUntrusted(PeerError):
    """The peer says what can't be true."""


class PeerRefused(PeerError):
    """The peer answered with a fault."""


class NoRoute(SwarmError):
    """Some blocks of the model are served by nobody."""

    def __init__(self, model: str, missing: Sequence[Span]) -> None:
        self.missing = tuple(missing)
        blocks = ", ".join(map(str, self.missing))
        super().__init__(
            f"no peer serves the blocks {blocks} of {model}: "
            f"start one with `swarm serve MODEL --blocks {self.missing[0]}`, or wait for one to come back"
        )


class NotAuthorized(SwarmError):
    """The swarm is private and we do not hold its key."""


class GenerationFailed(SwarmError):
    """An answer ended before its end. ``tokens`` is what had been emitted."""

    def __init__(self, message: str, tokens: Sequence[int]) -> None:
        super().__init__(message)
        self.tokens = tuple(tokens)
