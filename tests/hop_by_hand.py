"""A hop by hand: what happens to it is said, and what it wants done comes back as plain values to compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from peer.admission import Served
from peer.hop import Hop
from peer.hop_events import (
    Command,
    Dial,
    Drop,
    Event,
    HangUp,
    NextHopReached,
    OpenCame,
    PassDone,
    RunPass,
    Send,
    StreamId,
    StreamOpened,
    WaveCame,
)
from peer.plan import Outcome, Walk
from peer.scheduler import CostModel, Scheduler
from routing.domain import Hop as RouteHop
from routing.domain import ModelId, PeerId, Route, SamplingParams, SessionId, Span
from routing.messages import Done, Fault, Open, Rows, Timing, Verdict, Wave
from routing.wire import open_message

MODEL = ModelId("tiny", "0" * 8, "1" * 8)
SPANS = (Span(0, 2), Span(2, 4), Span(4, 6))
PEERS = tuple(PeerId(f"hop-{index}") for index in range(3))
ADDRESSES = ("/memory/0",)
ROUTE = Route(tuple(RouteHop(peer, span, ADDRESSES) for peer, span in zip(PEERS, SPANS, strict=True)))
USER = PeerId("user")
WIDTH = 4
VOCABULARY = 100
KV_TOKENS = 1000
GRANTED = 300
SESSION, OTHER = SessionId(bytes([1] * 16)), SessionId(bytes([2] * 16))
CLIENT, BEFORE, NEXT = StreamId(1), StreamId(2), StreamId(3)
FIRST, MIDDLE, LAST = 0, 1, 2
WINDOW = 1 << 20
SECONDS = 0.5
"""That every pass takes."""

Nodes = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Part:
    """What a pass has to do for one session."""

    cache: int
    nodes: Nodes
    first: int = 0
    moves: tuple[int, ...] = ()
    num_committed: int = 0
    verify_from: int | None = None


@dataclass(frozen=True)
class Pass:
    """A ``RunPass``, so that two of them can be compared."""

    parts: tuple[Part, ...]


class HopByHand:
    """One hop of ``ROUTE``, with the streams of its client and of the hop before it."""

    def __init__(self, index: int, window: int | None = None, max_text: int | None = None) -> None:
        served = Served(PEERS[index], MODEL, 6, SPANS[index], WIDTH, VOCABULARY, "float32", KV_TOKENS, max_text)
        self.index = index
        self.hop = Hop(served, Scheduler(CostModel([(1, 0.01), (256, 0.5)])), window)
        assert self.happens(StreamOpened(CLIENT, USER)) == []
        if index:
            assert self.happens(StreamOpened(BEFORE, PEERS[index - 1])) == []

    @property
    def upstream(self) -> StreamId:
        """Where waves come from."""
        return BEFORE if self.index else CLIENT

    def happens(self, event: Event, now: float = 0.0) -> list[Command | Pass]:
        """What the hop wants done about it."""
        commands = self.hop.handle(event, now)
        self.hop.check()
        return [_as_pass(command) if isinstance(command, RunPass) else command for command in commands]

    def open_message(self, session: SessionId = SESSION, num_kv_tokens: int = GRANTED, **changes: object) -> Open:
        message = open_message(session, 0, str(MODEL), self.index, ROUTE, num_kv_tokens, SamplingParams())
        return replace(message, **changes)

    def opened(self, session: SessionId = SESSION, num_kv_tokens: int = GRANTED) -> None:
        """A session that is open here; its next hop has been reached."""
        commands = self.happens(OpenCame(CLIENT, self.open_message(session, num_kv_tokens)))
        if any(isinstance(command, Dial) for command in commands):
            self.happens(NextHopReached(PEERS[self.index + 1], NEXT))

    def comes(self, message: Wave, now: float = 0.0) -> list[Command | Pass]:
        """A wave from where it should come."""
        return self.happens(WaveCame(self.upstream, message), now)

    def is_computed(self, *outcomes: Outcome, now: float = SECONDS, failure: str | None = None) -> list[Command | Pass]:
        """The pass that runs has ended."""
        return self.happens(PassDone(outcomes, SECONDS, failure), now)


def opened_at(index: int, window: int | None = None) -> HopByHand:
    hand = HopByHand(index, window)
    hand.opened()
    return hand


def chain(num_nodes: int, first: int = 1, parent: int | None = None, token: int = 5) -> Nodes:
    """Nodes one below the other, the first one below ``parent``."""
    parents = [first - 1 if parent is None else parent, *range(first, first + num_nodes - 1)]
    return tuple((first + index, above, token) for index, above in enumerate(parents[:num_nodes]))


def rows_of(num_rows: int, seed: int = 1) -> Rows:
    """Rows as good as any others; a row's bytes say which one it is."""
    data = bytes((seed + row) % 256 for row in range(num_rows) for _ in range(4 * WIDTH))
    return Rows("float32", num_rows, WIDTH, memoryview(data))


def wave(
    index: int, number: int, nodes: Nodes, start: int = 0, commit: int = 0, session: SessionId = SESSION, **more: object
) -> Wave:
    """As it comes to the hop of this index."""
    rows = rows_of(len(nodes), nodes[0][0]) if index and nodes else None
    return replace(Wave(session, 0, number, commit, start, nodes, rows), **more)


def passed_on(came: Wave, outcome: Outcome, *timings: Timing, **changes: object) -> Send:
    """The wave as it goes to the next hop."""
    return Send(NEXT, replace(came, rows=outcome.rows, timings=(*came.timings, *timings), **changes))


def gave(num_rows: int, seed: int = 100) -> Outcome:
    """What blocks that are not the last ones give."""
    return Outcome(rows=rows_of(num_rows, seed))


def walked(*path: int, token: int = 7) -> Outcome:
    """What the last blocks give for a wave that is verified."""
    return Outcome(walk=Walk(path, token))


def timing(num_rows: int, queue_seconds: float = 0.0, num_passes: int = 1) -> Timing:
    return Timing(num_rows, queue_seconds, num_passes * SECONDS)


def verdict(number: int, path: tuple[int, ...], *timings: Timing, token: int = 7, session: SessionId = SESSION) -> Send:
    return Send(CLIENT, Verdict(session, 0, number, path, token, timings))


def done(number: int, *timings: Timing, session: SessionId = SESSION) -> Send:
    return Send(CLIENT, Done(session, 0, number, timings))


def fault(code: str, text: str, number: int = 0, stream: StreamId = CLIENT, session: SessionId = SESSION) -> Send:
    return Send(stream, Fault(code, text, session, 0, number))


def code_of(commands: Sequence[Command | Pass]) -> tuple[str, str]:
    """Code and text of the one fault that is all that is sent."""
    [command] = commands
    assert isinstance(command, Send | HangUp)
    message = command.message if isinstance(command, Send) else command.fault
    assert isinstance(message, Fault), message
    return message.code, message.text


def ended(code: str, text: str, number: int = 0, cache: int = 1) -> list[Command | Pass]:
    """A session's end at the last hop: its client hears why, its cache is freed."""
    return [fault(code, text, number), Drop((cache,))]


def _as_pass(command: RunPass) -> Pass:
    parts = []
    for part in command.plan.parts:
        table = np.stack([part.ids, part.parents, part.tokens], axis=1).tolist()
        nodes = tuple((node, parent, token) for node, parent, token in table)
        moves = tuple(part.moves.tolist())
        parts.append(Part(part.cache, nodes, part.first, moves, part.num_committed, part.verify_from))
    return Pass(tuple(parts))
