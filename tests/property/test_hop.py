"""Hops against a naive model: a chain of them, over engines whose text is known, with links of any speed."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from peer.hop_events import (
    Tick,
)
from routing.domain import Hop as RouteHop
from routing.domain import Route, SamplingParams, SessionId
from routing.messages import (
    Cancel,
    Close,
    Wave,
)
from routing.wire import open_message
from tests.hop_chain import (
    KV_TOKENS,
    MODEL,
    PEERS,
    SPANS,
    VOCABULARY,
    Client,
    HopChain,
    Place,
    target,
)

SHAPES = st.lists(st.tuples(st.integers(-1, 9), st.booleans()), max_size=12)
"""Of a draft: under which node, and is it what the target says there?"""


class HopMachine(HopChain, RuleBasedStateMachine):
    def __init__(self) -> None:
        HopChain.__init__(self)
        RuleBasedStateMachine.__init__(self)

    @initialize(window=st.sampled_from([4700, 6000, 1 << 20]))
    def start(self, window: int) -> None:
        self.set_up(window)

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
        self.go_on_to_the_end()

    @rule()
    def time_passes(self) -> None:
        self.now += 0.5
        for place in self.places:
            self.happen(place, Tick())

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


TestHop = HopMachine.TestCase
TestHop.settings = settings(max_examples=120, stateful_step_count=40)
