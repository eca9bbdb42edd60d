"""What can happen to a hop, and what it wants done about it. Plain data; see ``peer.hop``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType

from peer.plan import Outcome, PassPlan
from routing.domain import PeerId
from routing.messages import Cancel, Close, Fault, Grant, Message, Open, Ping, Wave

StreamId = NewType("StreamId", int)
"""A stream, by a number that the driver gives it: one that a peer opened to us, or one that we dialled."""


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """A peer has opened a stream to us."""

    stream: StreamId
    peer: PeerId


@dataclass(frozen=True, slots=True)
class StreamLost:
    """A stream of either kind has ended."""

    stream: StreamId
    reason: str


@dataclass(frozen=True, slots=True)
class PingCame:
    """Somebody asks whether we are there."""

    stream: StreamId
    message: Ping


@dataclass(frozen=True, slots=True)
class OpenCame:
    """A client wants a session."""

    stream: StreamId
    message: Open


@dataclass(frozen=True, slots=True)
class WaveCame:
    """A wave of a session, or a part of one."""

    stream: StreamId
    message: Wave


@dataclass(frozen=True, slots=True)
class CancelCame:
    """A client does not want some waves any more."""

    stream: StreamId
    message: Cancel


@dataclass(frozen=True, slots=True)
class CloseCame:
    """A session is over."""

    stream: StreamId
    message: Close


@dataclass(frozen=True, slots=True)
class CreditCame:
    """The next hop takes more of a session."""

    stream: StreamId
    message: Grant


@dataclass(frozen=True, slots=True)
class FaultCame:
    """The next hop can't go on with a session."""

    stream: StreamId
    message: Fault


@dataclass(frozen=True, slots=True)
class NextHopReached:
    """What ``Dial`` asked for is there."""

    peer: PeerId
    stream: StreamId


@dataclass(frozen=True, slots=True)
class DialFailed:
    """What ``Dial`` asked for can't be had."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class PassDone:
    """The pass that ``RunPass`` asked for has ended.

    Attributes:
        outcomes: one for each part of the plan, in order; empty if the whole pass failed.
        seconds: that it took.
        failure: why the whole pass failed.
    """

    outcomes: Sequence[Outcome]
    seconds: float
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    StreamOpened
    | StreamLost
    | PingCame
    | OpenCame
    | WaveCame
    | CancelCame
    | CloseCame
    | CreditCame
    | FaultCame
    | NextHopReached
    | DialFailed
    | PassDone
    | Tick
)


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message; that the stream is gone is said by a ``StreamLost``."""

    stream: StreamId
    message: Message


@dataclass(frozen=True, slots=True)
class Dial:
    """Reach a next hop; answered by ``NextHopReached`` or ``DialFailed``."""

    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunPass:
    """Give the plan to the engine; answered by ``PassDone``. Never asked while another pass runs."""

    plan: PassPlan


@dataclass(frozen=True, slots=True)
class Drop:
    """Free the engine's caches of these numbers, after the pass that runs now."""

    caches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class HangUp:
    """End a stream that a peer opened, with a last word."""

    stream: StreamId
    fault: Fault


Command = Send | Dial | RunPass | Drop | HangUp
