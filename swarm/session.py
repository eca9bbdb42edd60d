"""One conversation with a route, as a state machine: events in, commands out. Pure.

    Asked -> SendWave...         the new text, in chunks; the last one is verified at its last node
    Prefilled -> SendWave...     a chunk went through, the next may go
    Verified -> Emit, then       the target's own tokens
                Propose          ... what may come next? answered by Drafted
                Finish           ... or the answer is at its end
    Drafted -> SendWave          the pending token and the draft below it
    StopAsked -> nothing         the outstanding wave is waited for, then Finish
    RouteLost -> Fail            nothing can come any more

The last token of a text has no rows yet: it is *pending*, and is the first node of the next wave.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from routing.tree import ROOT, Node, TokenTree
from routing.wire_types import MAX_WAVES_OUTSTANDING
from swarm.drafting import PENDING, Draft

PREFILL_ROWS = 128


class Phase(Enum):
    """Where a session is in its life."""

    IDLE = auto()
    PREFILLING = auto()
    DRAFTING = auto()
    VERIFYING = auto()
    CLOSED = auto()


class FinishReason(Enum):
    """Why an answer ended, in the words of OpenAI's API."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Asked:
    """Continue the text after these tokens."""

    tokens: tuple[int, ...]
    max_tokens: int
    stop_tokens: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A wave without a walk went through."""

    wave: int


@dataclass(frozen=True, slots=True)
class Verified:
    """The last hop's verdict on a wave."""

    wave: int
    path: tuple[int, ...]
    next_token: int


@dataclass(frozen=True, slots=True)
class Drafted:
    """What may come next; empty for plain autoregression."""

    draft: Draft


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The user has read enough."""


@dataclass(frozen=True, slots=True)
class RouteLost:
    """A hop is gone, or says what can't be true."""

    reason: str


Event = Asked | Prefilled | Verified | Drafted | StopAsked | RouteLost


@dataclass(frozen=True, slots=True)
class SendWave:
    """Send new nodes down the route. See ``routing.wire.Wave`` for the fields."""

    wave: int
    commit: int
    start: int
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Emit:
    """The answer goes on with these tokens; ``num_accepted`` of them had been drafted."""

    tokens: tuple[int, ...]
    num_accepted: int


@dataclass(frozen=True, slots=True)
class Propose:
    """Draft what may follow, and say ``Drafted``; what lies deeper than ``max_depth`` could not be emitted."""

    max_depth: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The answer is complete."""

    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Fail:
    """The answer can't go on."""

    reason: str


Command = SendWave | Emit | Propose | Finish | Fail


class IllegalEvent(Exception):
    """An event that can't happen now: a mistake in the driver. The text tells the session's story."""


class Session:
    """See the module. ``max_tokens`` bounds the text; the hops have room for the drafts beside it."""

    def __init__(self, max_tokens: int) -> None:
        self.phase = Phase.IDLE
        self.max_tokens = max_tokens
        self._tree = TokenTree()
        self._pending: int | None = None
        self._next_node = 1
        self._next_wave = 1
        self._unsent: deque[SendWave] = deque()
        self._outstanding: deque[SendWave] = deque()
        self._num_left = 0
        self._stop_tokens: frozenset[int] = frozenset()
        self._is_stopping = False
        self._story: deque[str] = deque(maxlen=12)

    @property
    def num_tokens(self) -> int:
        """Tokens of the text so far, the pending one included."""
        return self._tree.num_committed + (self._pending is not None)

    def handle(self, event: Event) -> list[Command]:
        """What is to be done about an event.

        Raises:
            IllegalEvent: it can't happen in this phase.
            ValueError: an ``Asked`` without tokens, or for more than the session has room for; nothing changes then.
        """
        handler = _TRANSITIONS.get((self.phase, type(event)))
        if handler is None:
            raise IllegalEvent(f"{type(event).__name__} while {self.phase.name}; before it: {', '.join(self._story)}")
        commands = handler(self, event)
        self._story.append(f"{type(event).__name__} -> {self.phase.name}")
        return commands

    # --- one method for each kind of event

    def _asked(self, event: Asked) -> list[Command]:
        if not event.tokens:
            raise ValueError("there is nothing to continue: give at least one token")
        if event.max_tokens < 1:
            raise ValueError(f"an answer of {event.max_tokens} tokens: ask for at least 1")
        needed = self.num_tokens + len(event.tokens) + event.max_tokens
        if needed > self.max_tokens:
            raise ValueError(
                f"{needed} tokens of text and answer are more than the {self.max_tokens} that this session has room for"
            )
        self._num_left, self._stop_tokens, self._is_stopping = event.max_tokens, event.stop_tokens, False
        tokens = event.tokens if self._pending is None else (self._pending, *event.tokens)
        self._pending = None
        parent = commit = self._tree.tip
        for first in range(0, len(tokens), PREFILL_ROWS):
            nodes: list[Node] = []
            for token in tokens[first : first + PREFILL_ROWS]:
                nodes.append(self._node(parent, token))
                parent = nodes[-1].id
            is_last = first + PREFILL_ROWS >= len(tokens)
            self._unsent.append(self._wave(commit, parent if is_last else ROOT, nodes))
            commit = parent
        self.phase = Phase.PREFILLING
        return self._send()

    def _prefilled(self, event: Prefilled) -> list[Command]:
        if not self._outstanding or self._outstanding[0].wave != event.wave or self._outstanding[0].start:
            return self._lost(RouteLost(f"wave {event.wave} was answered out of turn"))
        self._outstanding.popleft()
        return self._send()

    def _verified(self, event: Verified) -> list[Command]:
        wave = self._outstanding[0]
        path = self._checked_path(wave, event)
        if path is None:
            return self._lost(RouteLost("the verdict does not fit the wave: the last hop is broken or lies"))
        self._outstanding.popleft()
        if self._is_stopping:
            self._settle(wave.start, None)
            return [Finish(FinishReason.CANCELLED)]
        tokens = [*(node.token for node in path), event.next_token]
        stops = [index for index, token in enumerate(tokens) if token in self._stop_tokens]
        tokens = tokens[: min(self._num_left, stops[0] + 1 if stops else len(tokens))]
        num_accepted = min(len(tokens), len(path))
        tip = path[num_accepted - 1].id if num_accepted else wave.start
        self._settle(tip, event.next_token if len(tokens) > len(path) else None)
        self._num_left -= len(tokens)
        emit = Emit(tuple(tokens), num_accepted)
        if tokens[-1] in self._stop_tokens:
            return [emit, Finish(FinishReason.STOP)]
        if self._num_left == 0:
            return [emit, Finish(FinishReason.LENGTH)]
        self.phase = Phase.DRAFTING
        return [emit, self._propose()]

    def _drafted(self, event: Drafted) -> list[Command]:
        assert self._pending is not None  # noqa: S101
        nodes = [self._node(self._tree.tip, self._pending)]
        for proposed in event.draft:
            parent = 0 if proposed.parent == PENDING else proposed.parent + 1
            nodes.append(self._node(nodes[parent].id, proposed.token))
        self._unsent.append(self._wave(self._tree.tip, nodes[0].id, nodes))
        self._pending = None
        self.phase = Phase.VERIFYING
        return self._send()

    def _stop_asked(self, _event: StopAsked) -> list[Command]:
        self._is_stopping = True
        return []

    def _stop_asked_between(self, _event: StopAsked) -> list[Command]:
        self.phase = Phase.IDLE
        return [Finish(FinishReason.CANCELLED)]

    def _lost(self, event: RouteLost) -> list[Command]:
        was_answering = self.phase is not Phase.IDLE
        self.phase = Phase.CLOSED
        self._unsent.clear()
        self._outstanding.clear()
        return [Fail(event.reason)] if was_answering else []

    def _unasked(self, _event: Prefilled | Verified) -> list[Command]:
        return self._lost(RouteLost("an answer came that nobody had asked for: the last hop is broken or lies"))

    def _ignored(self, _event: Event) -> list[Command]:
        return []

    # --- what they share

    def _node(self, parent: int, token: int) -> Node:
        node = Node(self._next_node, parent, token)
        self._next_node += 1
        self._tree.add(node)
        return node

    def _wave(self, commit: int, start: int, nodes: Sequence[Node]) -> SendWave:
        wave = SendWave(self._next_wave, commit, start, tuple(nodes))
        self._next_wave += 1
        return wave

    def _send(self) -> list[Command]:
        """As many waves as may be under way."""
        commands: list[Command] = []
        while self._unsent and len(self._outstanding) < MAX_WAVES_OUTSTANDING:
            self._outstanding.append(self._unsent.popleft())
            commands.append(self._outstanding[-1])
        return commands

    def _settle(self, tip: int, pending: int | None) -> None:
        """The text now ends at a node, and maybe one token more; what else was drafted is forgotten."""
        self._tree.commit(tip)
        self._tree.prune()
        self._pending = pending
        self.phase = Phase.IDLE

    def _propose(self) -> Propose:
        """The next token comes in any case; a draft is for what else may be emitted."""
        return Propose(self._num_left - 1)

    def _checked_path(self, wave: SendWave, event: Verified) -> list[Node] | None:
        """The verdict's path as nodes, or None if it is none in our tree."""
        if event.wave != wave.wave or not wave.start:
            return None
        path: list[Node] = []
        above = wave.start
        for node_id in event.path:
            node = self._tree.get(node_id)
            if node is None or node.parent != above:
                return None
            path.append(node)
            above = node_id
        if any(child.token == event.next_token for child in self._tree.children(above)):
            return None  # it should have gone down
        return path


_TRANSITIONS: dict[tuple[Phase, type[Event]], Callable[..., list[Command]]] = {
    (Phase.IDLE, Asked): Session._asked,
    (Phase.IDLE, StopAsked): Session._ignored,
    (Phase.IDLE, Prefilled): Session._unasked,
    (Phase.IDLE, Verified): Session._unasked,
    (Phase.IDLE, RouteLost): Session._lost,
    (Phase.PREFILLING, Prefilled): Session._prefilled,
    (Phase.PREFILLING, Verified): Session._verified,
    (Phase.PREFILLING, StopAsked): Session._stop_asked,
    (Phase.PREFILLING, RouteLost): Session._lost,
    (Phase.DRAFTING, Drafted): Session._drafted,
    (Phase.DRAFTING, StopAsked): Session._stop_asked_between,
    (Phase.DRAFTING, Prefilled): Session._unasked,
    (Phase.DRAFTING, Verified): Session._unasked,
    (Phase.DRAFTING, RouteLost): Session._lost,
    (Phase.VERIFYING, Verified): Session._verified,
    (Phase.VERIFYING, Prefilled): Session._prefilled,
    (Phase.VERIFYING, StopAsked): Session._stop_asked,
    (Phase.VERIFYING, RouteLost): Session._lost,
    (Phase.CLOSED, Prefilled): Session._ignored,
    (Phase.CLOSED, Verified): Session._ignored,
    (Phase.CLOSED, Drafted): Session._ignored,
    (Phase.CLOSED, StopAsked): Session._ignored,
    (Phase.CLOSED, RouteLost): Session._ignored,
}
