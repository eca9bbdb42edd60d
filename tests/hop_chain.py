"""A chain of hops over engines whose text is known, the lines between them, and clients that know texts only."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from peer.admission import Served
from peer.engines.stand_in import StandInEngine
from peer.hop import Hop
from peer.hop_events import (
    CancelCame,
    CloseCame,
    CreditCame,
    Dial,
    Drop,
    Event,
    FaultCame,
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
from peer.plan import PassPlan
from peer.scheduler import CostModel, Scheduler
from routing.domain import ModelId, PeerId, SessionId, Span
from routing.messages import (
    Cancel,
    Close,
    Done,
    Fault,
    Grant,
    Message,
    Open,
    Opened,
    Stale,
    Verdict,
    Wave,
)

MODEL = ModelId("tiny", "0" * 8, "1" * 8)
SPANS = (Span(0, 2), Span(2, 3), Span(3, 6))
WIDTH = 4
VOCABULARY = 5
KV_TOKENS = 400
CLIENT, UPSTREAM, DOWNSTREAM = StreamId(1), StreamId(2), StreamId(3)
USER = "user"
PEERS = [PeerId(f"hop-{index}") for index in range(len(SPANS))]


def target(text: Sequence[int]) -> int:
    return sum((i + 2) * (token + 1) for i, token in enumerate(text[-4:])) * (len(text) + 3) % 11 % VOCABULARY


class Place:
    """One hop with its engine, and what it has to do."""

    def __init__(self, index: int, window: int) -> None:
        served = Served(PEERS[index], MODEL, 6, SPANS[index], WIDTH, VOCABULARY, "float32", 3 * KV_TOKENS)
        self.index = index
        self.hop = Hop(served, Scheduler(CostModel([(1, 0.01), (256, 0.5)])), window)
        self.engine = StandInEngine(6, target, width=WIDTH)
        self.plan: PassPlan | None = None
        self.num_rows: int = 0


class Client:
    """One session as its client knows it: texts, not trees."""

    def __init__(self, session: SessionId) -> None:
        self.session = session
        self.path: list[tuple[int, int]] = []  # (node, token) of the text, without the pending token
        self.pending: int | None = None
        self.next_node = self.next_wave = 1
        self.outstanding: deque[tuple[Wave, dict[int, tuple[int, int]]]] = deque()
        self.is_cancelled = self.is_back = False
        self.keep = 0  # length of the path if what is outstanding is cancelled
        self.num_opened = 0

    @property
    def text(self) -> list[int]:
        return [token for _, token in self.path]

    @property
    def tip(self) -> int:
        return self.path[-1][0] if self.path else 0


class HopChain:
    """The hops of one route, and all that is on its way between them and their clients."""

    def __init__(self) -> None:
        self.now = 0.0
        self.places: list[Place] = []
        self.lines: dict[tuple[object, object], deque[Message]] = {}
        self.clients: list[Client] = []

    def set_up(self, window: int) -> None:
        self.places = [Place(index, window) for index in range(len(SPANS))]
        for place in self.places:
            self.happen(place, StreamOpened(CLIENT, PeerId(USER)))
            if place.index:
                self.happen(place, StreamOpened(UPSTREAM, PEERS[place.index - 1]))

    # --- the network

    def happen(self, place: Place, event: Event) -> None:
        for command in place.hop.handle(event, self.now):
            match command:
                case Send(stream, message):
                    there: object = {CLIENT: USER, UPSTREAM: place.index - 1, DOWNSTREAM: place.index + 1}[stream]
                    self.lines.setdefault((place.index, there), deque()).append(message)
                case Dial(peer, _):
                    assert peer == PEERS[place.index + 1]
                    self.happen(place, NextHopReached(peer, DOWNSTREAM))
                case RunPass(plan):
                    assert place.plan is None
                    place.plan = plan
                case Drop(caches):
                    if place.plan is None:
                        place.engine.forget(caches)
                case HangUp():
                    raise AssertionError(command)
        place.hop.check()

    def send(self, index: int, message: Message) -> None:
        self.lines.setdefault((USER, index), deque()).append(message)

    def deliver(self, here: object, there: object) -> None:
        message = self.lines[here, there].popleft()
        if there == USER:
            self.hear(message)
            return
        assert isinstance(there, int)
        stream = CLIENT if here == USER else UPSTREAM if here == there - 1 else DOWNSTREAM
        match message:
            case Wave():
                event: Event = WaveCame(stream, message)
            case Open():
                event = OpenCame(stream, message)
            case Cancel():
                event = CancelCame(stream, message)
            case Close():
                event = CloseCame(stream, message)
            case Grant():
                event = CreditCame(stream, message)
            case Fault():
                event = FaultCame(stream, message)
            case other:
                raise AssertionError(other)
        self.happen(self.places[there], event)

    def finish_pass(self, place: Place) -> None:
        plan, place.plan = place.plan, None
        assert plan is not None
        self.now += 0.01
        outcomes = place.engine.run(plan)
        assert all(outcome.failure is None for outcome in outcomes), outcomes
        place.num_rows += plan.num_rows
        self.happen(place, PassDone(outcomes, 0.01))

    # --- the client

    def hear(self, message: Message) -> None:
        if isinstance(message, Opened):
            self.client_of(message.session).num_opened += 1
            return
        if isinstance(message, Grant):
            return
        assert isinstance(message, Verdict | Done | Stale), message
        client = self.client_of(message.session)
        wave, nodes = client.outstanding.popleft()
        assert message.wave == wave.wave, "every wave is answered, in order"
        if client.is_cancelled:
            if not client.outstanding:
                del client.path[client.keep :]
                client.is_cancelled, client.is_back = False, True
            return
        if not wave.start:
            assert isinstance(message, Done)
            return
        assert isinstance(message, Verdict)
        self.judge(client, wave, nodes, message)

    def judge(self, client: Client, wave: Wave, nodes: dict[int, tuple[int, int]], verdict: Verdict) -> None:
        """The naive walk: whole texts, no tree."""
        at, text = wave.start, client.text
        expected: list[int] = []
        while True:
            token = target(text)
            below = [node for node, (parent, its) in nodes.items() if parent == at and its == token]
            if not below:
                break
            at = below[0]
            expected.append(at)
            text.append(token)
            client.path.append((at, token))
        assert (list(verdict.path), verdict.next_token) == (expected, token)
        assert len(verdict.timings) == len(SPANS)
        client.pending = token

    def client_of(self, session: bytes) -> Client:
        return next(client for client in self.clients if client.session == session)

    def send_wave(self, client: Client, wave: Wave) -> None:
        client.is_back = False
        client.next_wave += 1
        client.outstanding.append((wave, {node: (parent, token) for node, parent, token in wave.nodes}))
        self.send(0, wave)

    def idle(self, pick: int) -> Client:
        idle = [client for client in self.clients if not client.outstanding]
        return idle[pick % len(idle)]

    @property
    def is_quiet(self) -> bool:
        """Is nothing on its way, and nothing computed?"""
        return not any(self.lines.values()) and all(place.plan is None for place in self.places)

    def go_on_to_the_end(self) -> None:
        while not self.is_quiet:
            self.go_on_once()

    def go_on_once(self) -> None:
        for line, queue in list(self.lines.items()):
            if queue:
                self.deliver(*line)
        for place in self.places:
            if place.plan is not None:
                self.finish_pass(place)
