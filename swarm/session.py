"""One conversation with a route, as a state machine: events in, commands out. Pure.

    Asked -> SendWave...         the new text, in chunks; the last one is verified at its last node
    Prefilled -> SendWave...     a chunk went through, the next may go
    Verified -> Emit, then       the target's own tokens
                Propose          ... what may come next? answered by Drafted, some time
                Finish           ... or the answer is at its end
    Drafted -> SendWave          the pending token and the draft below it
    StopAsked -> CancelWaves     the waves under way are not wanted; when all are answered, Finish
    RouteLost -> Fail            nothing can come any more

The text is what is committed, and behind it what is *pending*: tokens that no hop has rows of. The last token of an
answer is pending until it is the first node of the next wave. Waves under way are flights in a ledger, which alone
remembers a round: what was sent, when, and how much of it was drafted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from routing.story import Story
from routing.tree import ROOT, Node, TokenTree
from routing.wire_types import MAX_WAVES_OUTSTANDING
from swarm.drafting import PENDING
from swarm.session_events import (
    Asked,
    CancelWaves,
    Command,
    Drafted,
    Dropped,
    Emit,
    Event,
    Fail,
    Finish,
    FinishReason,
    Flight,
    Prefilled,
    Propose,
    RouteLost,
    SendWave,
    StopAsked,
    Verified,
)

PREFILL_ROWS = 128


class Phase(Enum):
    """Where a session is in its life."""

    IDLE = auto()
    PREFILLING = auto()
    DRAFTING = auto()
    VERIFYING = auto()
    CANCELLING = auto()
    CLOSED = auto()


@dataclass(frozen=True, slots=True)
class _Unsent:
    """A wave that waits until fewer are under way."""

    commit: int
    start: int
    nodes: tuple[Node, ...]
    num_drafted: int | None


class Session:
    """See the module.

    Args:
        max_tokens: bounds the text; the hops have room for the drafts beside it.
        vocab_size: token ids of a verdict are below it; None if that is not known.
        epoch: which of the session's routes this is; what others say is not heard.
    """

    def __init__(self, max_tokens: int, vocab_size: int | None = None, epoch: int = 0) -> None:
        self.phase = Phase.IDLE
        self.max_tokens = max_tokens
        self.lost_reason = ""
        self._vocab_size = vocab_size
        self._epoch = epoch
        self._tree = TokenTree()
        self._pending: tuple[int, ...] = ()
        self._next_node = 1
        self._next_wave = 1
        self._must_rewind = False  # hops may hold what is no part of the text
        self._unsent: deque[_Unsent] = deque()
        self._flights: deque[Flight] = deque()
        self._restored: tuple[int, ...] = ()  # what is pending again when the flights are cancelled
        self._num_left = 0
        self._stop_tokens: frozenset[int] = frozenset()
        self._story = Story()

    @property
    def num_tokens(self) -> int:
        """Tokens of the text so far, the pending ones included."""
        return self._tree.num_committed + len(self._pending)

    @property
    def num_rows_in_flight(self) -> int:
        """Nodes of all waves under way."""
        return sum(len(flight.nodes) for flight in self._flights)

    def handle(self, event: Event, now: float) -> list[Command]:
        """What is to be done about an event. ``now``: seconds on any clock that only goes forward.

        Raises:
            IllegalEvent: it can't happen in this phase.
            ValueError: an ``Asked`` without tokens, or for more than the session has room for; nothing changes then.
        """
        if getattr(event, "epoch", self._epoch) != self._epoch:
            return []  # from a route that was left
        transition = _TRANSITIONS.get((self.phase, type(event)))
        if transition is None:
            raise self._story.illegal(f"{type(event).__name__} while {self.phase.name}")
        handler, phases = transition
        before = self.phase
        commands = handler(self, event, now)
        if self.phase not in phases:
            raise self._story.illegal(f"{type(event).__name__} led from {before.name} to {self.phase.name}")
        self._story.add(f"{type(event).__name__} -> {self.phase.name}")
        return commands

    # --- one method for each kind of event

    def _asked(self, event: Asked, now: float) -> list[Command]:
        keep = self.num_tokens if event.keep is None else event.keep
        self._check(event, keep)
        self._go_back_to(keep)
        self._num_left, self._stop_tokens = event.max_tokens, event.stop_tokens
        self._restored = tokens = (*self._pending, *event.tokens)
        self._pending = ()
        parent = commit = self._tree.tip
        for first in range(0, len(tokens), PREFILL_ROWS):
            nodes: list[Node] = []
            for token in tokens[first : first + PREFILL_ROWS]:
                nodes.append(self._node(parent, token))
                parent = nodes[-1].id
            is_last = first + PREFILL_ROWS >= len(tokens)
            self._unsent.append(_Unsent(commit, parent if is_last else ROOT, tuple(nodes), None))
            commit = parent
        self.phase = Phase.PREFILLING
        return self._send(now)

    def _prefilled(self, event: Prefilled, now: float) -> list[Command]:
        if not self._flights or self._flights[0].wave != event.wave or self._flights[0].start:
            return self._lost(RouteLost(f"wave {event.wave} was answered out of turn"), now)
        self._flights.popleft()
        return self._send(now)

    def _verified(self, event: Verified, now: float) -> list[Command]:
        flight = self._flights[0]
        path = self._checked_path(flight, event)
        if path is None:
            return self._lost(RouteLost("the verdict does not fit the wave: the last hop is broken or lies"), now)
        self._flights.popleft()
        tokens = [*(node.token for node in path), event.next_token]
        stops = [index for index, token in enumerate(tokens) if token in self._stop_tokens]
        tokens = tokens[: min(self._num_left, stops[0] + 1 if stops else len(tokens))]
        num_accepted = min(len(tokens), len(path))
        self._tree.commit(path[num_accepted - 1].id if num_accepted else flight.start)
        self._tree.prune()
        self._pending = (event.next_token,) if len(tokens) > len(path) else ()
        self._num_left -= len(tokens)
        emit = Emit(tuple(tokens), num_accepted, flight.num_drafted, now - flight.sent_at)
        if tokens[-1] in self._stop_tokens or self._num_left == 0:
            self.phase = Phase.IDLE
            is_stop = tokens[-1] in self._stop_tokens
            return [emit, Finish(FinishReason.STOP if is_stop else FinishReason.LENGTH)]
        self.phase = Phase.DRAFTING
        return [emit, Propose(self.num_tokens, self._num_left - 1)]

    def _drafted(self, event: Drafted, now: float) -> list[Command]:
        if event.num_tokens != self.num_tokens:
            return []  # for a text that was left meanwhile
        nodes = [self._node(self._tree.tip, self._pending[0])]
        for proposed in event.draft:
            parent = 0 if proposed.parent == PENDING else proposed.parent + 1
            nodes.append(self._node(nodes[parent].id, proposed.token))
        self._unsent.append(_Unsent(self._tree.tip, nodes[0].id, tuple(nodes), len(event.draft)))
        self._restored, self._pending = self._pending, ()
        self.phase = Phase.VERIFYING
        return self._send(now)

    def _stop_asked(self, _event: StopAsked, _now: float) -> list[Command]:
        """Nothing more is sent, and what is under way is called back."""
        self._unsent.clear()
        self._tree.prune()
        self.phase = Phase.CANCELLING
        return [CancelWaves(self._flights[0].wave, self._flights[-1].wave)]

    def _stop_asked_between(self, _event: StopAsked, _now: float) -> list[Command]:
        self.phase = Phase.IDLE
        return [Finish(FinishReason.CANCELLED)]

    def _called_back(self, event: Prefilled | Verified | Dropped, now: float) -> list[Command]:
        """One of the cancelled waves was answered; hops may differ in what they have computed of them."""
        if event.wave != self._flights[0].wave:
            return self._lost(RouteLost(f"wave {event.wave} was answered out of turn"), now)
        self._flights.popleft()
        if self._flights:
            return []
        self._pending, self._must_rewind = self._restored, True
        self.phase = Phase.IDLE
        return [Finish(FinishReason.CANCELLED)]

    def _lost(self, event: RouteLost, _now: float) -> list[Command]:
        was_answering = self.phase is not Phase.IDLE
        self.phase, self.lost_reason = Phase.CLOSED, event.reason
        self._unsent.clear()
        self._flights.clear()
        return [Fail(event.reason)] if was_answering else []

    def _unasked(self, _event: Prefilled | Verified | Dropped, now: float) -> list[Command]:
        return self._lost(RouteLost("an answer came that nobody had asked for: the last hop is broken or lies"), now)

    def _ignored(self, _event: Event, _now: float) -> list[Command]:
        return []

    # --- what they share

    def _check(self, event: Asked, keep: int) -> None:
        if not event.tokens:
            raise ValueError("there is nothing to continue: give at least one token")
        if event.max_tokens < 1:
            raise ValueError(f"an answer of {event.max_tokens} tokens: ask for at least 1")
        if not 0 <= keep <= self.num_tokens:
            raise ValueError(f"the text has {self.num_tokens} tokens, {keep} of them can't be kept")
        needed = keep + len(event.tokens) + event.max_tokens
        if needed > self.max_tokens:
            raise ValueError(
                f"{needed} tokens of text and answer are more than the {self.max_tokens} that this session has room for"
            )

    def _go_back_to(self, num_tokens: int) -> None:
        """The text ends after so many tokens. What is pending has never been sent; the rest is said with a wave."""
        num_committed = self._tree.num_committed
        self._pending = self._pending[: max(0, num_tokens - num_committed)]
        if num_tokens < num_committed:
            self._tree.rewind(self._tree.committed_at(num_tokens))
            self._must_rewind = True

    def _node(self, parent: int, token: int) -> Node:
        node = Node(self._next_node, parent, token)
        self._next_node += 1
        self._tree.add(node)
        return node

    def _send(self, now: float) -> list[Command]:
        """As many waves as may be under way."""
        commands: list[Command] = []
        while self._unsent and len(self._flights) < MAX_WAVES_OUTSTANDING:
            wave = self._unsent.popleft()
            flight = Flight(self._next_wave, wave.start, wave.nodes, now, wave.num_drafted)
            self._next_wave += 1
            self._flights.append(flight)
            commands.append(SendWave(flight.wave, wave.commit, wave.start, wave.nodes, self._must_rewind))
            self._must_rewind = False
        return commands

    def _checked_path(self, flight: Flight, event: Verified) -> list[Node] | None:
        """The verdict's path as nodes, or None if it is none in our tree."""
        if event.wave != flight.wave or not flight.start:
            return None
        if self._vocab_size is not None and event.next_token >= self._vocab_size:
            return None
        path: list[Node] = []
        above = flight.start
        for node_id in event.path:
            node = self._tree.get(node_id)
            if node is None or node.parent != above:
                return None
            path.append(node)
            above = node_id
        if any(child.token == event.next_token for child in self._tree.children(above)):
            return None  # it should have gone down
        return path


_Handler = Callable[..., list[Command]]
_ANSWERED = frozenset({Phase.IDLE, Phase.DRAFTING, Phase.CLOSED})
_SAME_OR_LOST = {phase: frozenset({phase, Phase.CLOSED}) for phase in Phase}
_CLOSED = frozenset({Phase.CLOSED})

_TRANSITIONS: dict[tuple[Phase, type[Event]], tuple[_Handler, frozenset[Phase]]] = {
    (Phase.IDLE, Asked): (Session._asked, frozenset({Phase.PREFILLING})),
    (Phase.PREFILLING, Prefilled): (Session._prefilled, _SAME_OR_LOST[Phase.PREFILLING]),
    (Phase.PREFILLING, Verified): (Session._verified, _ANSWERED),
    (Phase.DRAFTING, Drafted): (Session._drafted, frozenset({Phase.DRAFTING, Phase.VERIFYING})),
    (Phase.VERIFYING, Verified): (Session._verified, _ANSWERED),
    (Phase.VERIFYING, Prefilled): (Session._prefilled, _SAME_OR_LOST[Phase.VERIFYING]),
    (Phase.IDLE, StopAsked): (Session._ignored, frozenset({Phase.IDLE})),
    (Phase.PREFILLING, StopAsked): (Session._stop_asked, frozenset({Phase.CANCELLING})),
    (Phase.DRAFTING, StopAsked): (Session._stop_asked_between, frozenset({Phase.IDLE})),
    (Phase.VERIFYING, StopAsked): (Session._stop_asked, frozenset({Phase.CANCELLING})),
    (Phase.CANCELLING, StopAsked): (Session._ignored, frozenset({Phase.CANCELLING})),
    **{
        (Phase.CANCELLING, answer): (Session._called_back, frozenset({Phase.CANCELLING, Phase.IDLE, Phase.CLOSED}))
        for answer in (Prefilled, Verified, Dropped)
    },
    # Nobody asked for these: who says them is broken or lies.
    **{(phase, Dropped): (Session._unasked, _CLOSED) for phase in Phase if phase is not Phase.CANCELLING},
    **{
        (phase, answer): (Session._unasked, _CLOSED)
        for phase in (Phase.IDLE, Phase.DRAFTING)
        for answer in (Prefilled, Verified)
    },
    # A draft may come when it is not wanted any more.
    **{(phase, Drafted): (Session._ignored, frozenset({phase})) for phase in Phase if phase is not Phase.DRAFTING},
    **{(phase, RouteLost): (Session._lost, _CLOSED) for phase in Phase},
    # When the route is lost, nothing follows.
    **{
        (Phase.CLOSED, kind): (Session._ignored, _CLOSED)
        for kind in (Prefilled, Verified, Dropped, StopAsked, RouteLost)
    },
}
