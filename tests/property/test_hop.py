"""Hops against a naive model: a chain of them, over engines whose text is known, with links of any speed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

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
    Tick,
    WaveCame,
)
from peer.plan import PassPlan
from peer.scheduler import CostModel, Scheduler
from routing.domain import Hop as RouteHop
from routing.domain import ModelId, PeerId, Route, SamplingParams, SessionId, Span
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
from routing.wire import open_message

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


SHAPES = st.lists(st.tuples(st.integers(-1, 9), st.booleans()), max_size=12)
"""Of a draft: under which node, and is it what the target says there?"""


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


class HopMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.places: list[Place] = []
        self.lines: dict[tuple[object, object], deque[Message]] = {}
        self.clients: list[Client] = []

    @initialize(window=st.sampled_from([4700, 6000, 1 << 20]))
    def start(self, window: int) -> None:
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

    # --- what can happen

    @precondition(lambda self: len(self.clients) < 3)
    @rule()
    def open(self) -> None:
        client = Client(SessionId(bytes([len(self.clients)] * 16)))
        self.clients.append(client)
        route = Route(tuple(RouteHop(peer, span) for peer, span in zip(PEERS, SPANS, strict=True)))
        for index in range(len(SPANS)):
            self.send(index, open_message(client.session, 0, str(MODEL), index, route, KV_TOKENS, SamplingParams()))

    @precondition(lambda self: any(not client.outstanding for client in self.clients))
    @rule(
        pick=st.integers(0, 9),
        sizes=st.lists(st.sampled_from([1, 3, 20, 45]), min_size=1, max_size=4),
        seed=st.integers(0, 99),
    )
    def ask(self, pick: int, sizes: list[int], seed: int) -> None:
        client = self.idle(pick)
        if len(client.path) + sum(sizes) + 40 > KV_TOKENS:
            return
        client.keep = len(client.path)
        commit = client.tip
        first = [] if client.pending is None else [client.pending]
        client.pending = None
        for number, size in enumerate(sizes):
            entries = []
            for token in [*first, *((seed + i) % VOCABULARY for i in range(size))]:
                entries.append((client.next_node, client.tip, token))
                client.path.append((client.next_node, token))
                client.next_node += 1
            first = []
            is_last = number == len(sizes) - 1
            wave = Wave(
                client.session,
                0,
                client.next_wave,
                commit,
                entries[-1][0] if is_last else 0,
                tuple(entries),
                rewind=client.is_back,
            )
            self.send_wave(client, wave)
            commit = entries[-1][0]

    @precondition(lambda self: any(client.pending is not None and not client.outstanding for client in self.clients))
    @rule(pick=st.integers(0, 9), shapes=st.lists(SHAPES, min_size=1, max_size=4))
    def talk(self, pick: int, shapes: list[list[tuple[int, bool]]]) -> None:
        """Several rounds to their end."""
        for shape in shapes:
            if any(client.pending is not None and not client.outstanding for client in self.clients):
                self.draft(pick, shape)
                self.all_is_done()

    @precondition(lambda self: any(client.pending is not None and not client.outstanding for client in self.clients))
    @rule(pick=st.integers(0, 9), shape=SHAPES)
    def draft(self, pick: int, shape: list[tuple[int, bool]]) -> None:
        ready = [client for client in self.clients if client.pending is not None and not client.outstanding]
        client = ready[pick % len(ready)]
        if len(client.path) + 40 > KV_TOKENS:
            return
        client.keep = len(client.path)
        assert client.pending is not None
        entries = [(client.next_node, client.tip, client.pending)]
        texts = [[*client.text, client.pending]]
        for choice, is_right in shape:
            parent = len(entries) - 1 if choice < 0 else choice % len(entries)
            token = (target(texts[parent]) + (not is_right)) % VOCABULARY
            if any(above == entries[parent][0] and its == token for _, above, its in entries):
                continue
            entries.append((client.next_node + len(entries), entries[parent][0], token))
            texts.append([*texts[parent], token])
        wave = Wave(
            client.session,
            0,
            client.next_wave,
            client.tip,
            entries[0][0],
            tuple(entries),
            rewind=client.is_back,
        )
        client.path.append((entries[0][0], client.pending))
        client.pending = None
        client.next_node += len(entries)
        self.send_wave(client, wave)

    def send_wave(self, client: Client, wave: Wave) -> None:
        client.is_back = False
        client.next_wave += 1
        client.outstanding.append((wave, {node: (parent, token) for node, parent, token in wave.nodes}))
        self.send(0, wave)

    @precondition(lambda self: any(client.path and not client.outstanding for client in self.clients))
    @rule(pick=st.integers(0, 9), keep=st.integers(0, 400))
    def go_back(self, pick: int, keep: int) -> None:
        """Keep a part of the text; it is said with the next wave."""
        client = self.idle(pick)
        del client.path[keep % (len(client.path) + 1) :]
        client.pending, client.is_back = None, True

    @precondition(lambda self: any(client.outstanding and not client.is_cancelled for client in self.clients))
    @rule(pick=st.integers(0, 9))
    def cancel(self, pick: int) -> None:
        busy = [client for client in self.clients if client.outstanding and not client.is_cancelled]
        client = busy[pick % len(busy)]
        client.is_cancelled, client.pending = True, None
        first, last = client.outstanding[0][0].wave, client.outstanding[-1][0].wave
        for index in range(len(SPANS)):
            self.send(index, Cancel(client.session, 0, first, last))

    @rule(choices=st.lists(st.integers(0, 99), min_size=1, max_size=30))
    def go_on(self, choices: list[int]) -> None:
        for choice in choices:
            ready: list[object] = sorted((line for line, queue in self.lines.items() if queue), key=str)
            ready += [place for place in self.places if place.plan is not None]
            if not ready:
                return
            match ready[choice % len(ready)]:
                case Place() as place:
                    self.finish_pass(place)
                case (here, there):
                    self.deliver(here, there)

    @rule()
    def all_is_done(self) -> None:
        while any(self.lines.values()) or any(place.plan is not None for place in self.places):
            self.go_on_once()

    @rule()
    def time_passes(self) -> None:
        self.now += 0.5
        for place in self.places:
            self.happen(place, Tick())

    def idle(self, pick: int) -> Client:
        idle = [client for client in self.clients if not client.outstanding]
        return idle[pick % len(idle)]

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """When nothing is on its way and nothing is computed, every wave has been answered."""
        if not any(self.lines.values()) and all(place.plan is None for place in self.places):
            assert not any(client.outstanding for client in self.clients)

    def teardown(self) -> None:
        self.all_is_done()
        self.nobody_is_forgotten()
        for client in self.clients:
            assert client.num_opened == len(SPANS)
            self.send(0, Close(client.session))
        self.all_is_done()
        assert [place.hop.num_sessions for place in self.places] == [0] * len(self.places)

    def go_on_once(self) -> None:
        for line, queue in list(self.lines.items()):
            if queue:
                self.deliver(*line)
        for place in self.places:
            if place.plan is not None:
                self.finish_pass(place)


TestHop = HopMachine.TestCase
TestHop.settings = settings(max_examples=120, stateful_step_count=40)
