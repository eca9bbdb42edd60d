"""What can happen to a session, and what it wants done about it. Plain data; see ``swarm.session``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from routing.tree import Node
from swarm.drafting import Draft


class FinishReason(Enum):
    """Why an answer ended, in the words of OpenAI's API."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Asked:
    """Continue the text after these tokens.

    Attributes:
        tokens: new text, at least one.
        max_tokens: of the answer.
        stop_tokens: that end it.
        keep: tokens of the text so far that stay, before the new ones; None for all of them.
    """

    tokens: tuple[int, ...]
    max_tokens: int
    stop_tokens: frozenset[int] = frozenset()
    keep: int | None = None


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A wave without a walk went through."""

    wave: int
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Verified:
    """The last hop's verdict on a wave."""

    wave: int
    path: tuple[int, ...]
    next_token: int
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Dropped:
    """The last hop has let a cancelled wave go."""

    wave: int
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Drafted:
    """What may come next; empty for plain autoregression. ``num_tokens``: the text's, for which it was drafted."""

    draft: Draft
    num_tokens: int


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The user has read enough."""


@dataclass(frozen=True, slots=True)
class RouteLost:
    """A hop is gone, or says what can't be true."""

    reason: str
    epoch: int = 0


Event = Asked | Prefilled | Verified | Dropped | Drafted | StopAsked | RouteLost


@dataclass(frozen=True, slots=True)
class Flight:
    """A wave under way.

    Attributes:
        wave: its number.
        start: where its walk begins; 0 for none.
        nodes: that it brings.
        sent_at: seconds on the driver's clock.
        num_drafted: nodes beyond the pending token; None for text that was given.
    """

    wave: int
    start: int
    nodes: tuple[Node, ...]
    sent_at: float
    num_drafted: int | None


@dataclass(frozen=True, slots=True)
class SendWave:
    """Send new nodes down the route. See ``routing.messages.Wave`` for the fields."""

    wave: int
    commit: int
    start: int
    nodes: tuple[Node, ...]
    rewind: bool = False


@dataclass(frozen=True, slots=True)
class CancelWaves:
    """The waves ``first`` to ``last`` are not wanted any more."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Emit:
    """The answer goes on.

    Attributes:
        tokens: the next ones.
        num_accepted: of them, those that had been drafted.
        num_drafted: that were sent for them; None if a given text was verified.
        seconds: from sending the wave to its verdict.
    """

    tokens: tuple[int, ...]
    num_accepted: int
    num_drafted: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Propose:
    """Draft what may follow, and say ``Drafted``, with ``num_tokens``.

    What lies deeper than ``max_depth`` could not be emitted.
    """

    num_tokens: int
    max_depth: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The answer is complete."""

    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Fail:
    """The answer can't go on."""

    reason: str


Command = SendWave | CancelWaves | Emit | Propose | Finish | Fail
