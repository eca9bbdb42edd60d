"""The session against a naive model: a target that is a plain function, and a verifier that compares whole texts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from routing.story import IllegalEvent
from routing.tree import Node
from routing.wire_types import MAX_WAVES_OUTSTANDING
from swarm.drafting import PENDING, DraftNode
from swarm.session import Session
from swarm.session_events import (
    Asked,
    CancelWaves,
    Command,
    Drafted,
    Dropped,
    Emit,
    Finish,
    FinishReason,
    Prefilled,
    Propose,
    SendWave,
    StopAsked,
    Verified,
)

VOCABULARY = 4
ROOM = 1500
Text = tuple[int, ...]

tokens = st.integers(0, VOCABULARY - 1)
questions = st.lists(tokens, min_size=1, max_size=6) | st.builds(
    lambda token, length: [(token * i + i // 3) % VOCABULARY for i in range(length)], tokens, st.integers(120, 700)
)
drafts = st.lists(
    st.tuples(st.just(-1) | st.integers(0, 1000), st.sampled_from(["right", "right", "right", "wrong"])), max_size=9
)


def target(text: Sequence[int]) -> int:
    """The next token: some function of the last few and of the length."""
    return sum((i + 2) * (token + 1) for i, token in enumerate(text[-5:])) * (len(text) + 3) % 11 % VOCABULARY


class SessionMachine(RuleBasedStateMachine):
    """Every node with its whole text is the naive model of what the hops hold."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(ROOM)
        self.text: list[int] = []  # questions and what was emitted
        self.texts: dict[int, Text] = {0: ()}  # by node, of those that the hops still hold
        self.path: dict[int, Text] = {0: ()}  # the committed ones, to which one can go back
        self.nodes: dict[int, Node] = {}
        self.num_committed = 0
        self.last_node = self.last_wave = 0
        self.outstanding: list[SendWave] = []
        self.num_left = 0
        self.stop_tokens: frozenset[int] = frozenset()
        self.state = "idle"
        self.is_stopping = self.must_rewind = False
        self.num_pending = self.num_restored = 0  # tokens at the text's end that no hop was sent; the same if cancelled
        self.num_sent: int | None = None  # drafts of the wave under way

    # --- what the hops do

    def hold(self, wave: SendWave) -> None:
        """Keep what is below the commit, add the nodes; nothing may be unknown."""
        self.last_wave += 1
        assert wave.wave == self.last_wave
        commit = self.texts[wave.commit]
        assert commit == tuple(self.text[: len(commit)]), "a commit is on the final text"
        alive = {wave.commit}
        for node in self.nodes.values():
            if node.parent in alive and not wave.rewind:
                alive.add(node.id)
        if not wave.rewind:
            assert len(commit) >= self.num_committed, "a commit goes back only where that is said"
        self.num_committed = len(commit)
        self.path = {n: text for n, text in (self.path | self.texts).items() if text == commit[: len(text)]}
        self.nodes = {n: node for n, node in self.nodes.items() if n in alive}
        self.texts = {n: text for n, text in self.texts.items() if n in alive} | self.path
        for node in wave.nodes:
            assert node.id > self.last_node
            self.last_node = node.id
            self.texts[node.id] = (*self.texts[node.parent], node.token)
            self.nodes[node.id] = node
        self.outstanding.append(wave)

    def walk(self, start: int) -> tuple[list[int], int]:
        path: list[int] = []
        at = start
        while True:
            token = target(self.texts[at])
            below = [node.id for node in self.nodes.values() if node.parent == at and node.token == token]
            if not below:
                return path, token
            at = below[0]
            path.append(at)

    # --- what the user and the driver do

    @precondition(lambda self: self.state == "idle")
    @rule(
        question=questions,
        max_tokens=st.integers(1, 12),
        stop_tokens=st.frozensets(tokens, max_size=1),
        back=st.none() | st.none() | st.integers(0, ROOM),
    )
    def ask(self, question: list[int], max_tokens: int, stop_tokens: frozenset[int], back: int | None) -> None:
        keep = None if back is None else back % (len(self.text) + 1)
        event = Asked(tuple(question), max_tokens, stop_tokens, keep)
        if (len(self.text) if keep is None else keep) + len(question) + max_tokens > ROOM:
            with pytest.raises(ValueError, match="more than the 1500"):
                self.session.handle(event, 0.0)
            return
        commands = self.session.handle(event, 0.0)
        if keep is not None:
            self.num_pending = max(0, self.num_pending - (len(self.text) - keep))
            del self.text[keep:]
        num_unsent = len(question) + self.num_pending
        self.text += question
        self.num_left, self.stop_tokens, self.is_stopping = max_tokens, stop_tokens, False
        self.num_restored, self.num_pending = num_unsent, 0
        self.state, self.num_sent = "answering", None
        assert isinstance(commands[0], SendWave)
        assert commands[0].commit == commands[0].nodes[0].parent
        assert len(self.texts[commands[0].commit]) == len(self.text) - num_unsent, "what was pending is sent, once"
        self.send(commands)

    @precondition(lambda self: self.outstanding)
    @rule()
    def answer(self) -> None:
        wave = self.outstanding.pop(0)
        if self.is_stopping:
            self.called_back(wave)
            return
        if not wave.start:
            self.send(self.session.handle(Prefilled(wave.wave), 0.0))
            return
        assert not self.outstanding
        assert self.texts[wave.start] == tuple(self.text), "the walk begins at the end of the text"
        path, next_token = self.walk(wave.start)
        commands = self.session.handle(Verified(wave.wave, tuple(path), next_token), 0.0)
        said = [*(self.nodes[node].token for node in path), next_token]
        self.check_answer(commands, said, len(path))

    def called_back(self, wave: SendWave) -> None:
        """A cancelled wave: let go, or computed before that was known."""
        events = [Dropped(wave.wave), Verified(wave.wave, (), 0) if wave.start else Prefilled(wave.wave)]
        commands = self.session.handle(events[wave.wave % 2], 0.0)
        if self.outstanding:
            assert commands == []
            return
        assert commands == [Finish(FinishReason.CANCELLED)]
        self.state, self.num_pending = "idle", self.num_restored
        self.must_rewind = True

    def check_answer(self, commands: list[Command], said: list[int], num_drafted: int) -> None:
        """Exactly the target's own continuation, cut where the answer ends."""
        expected: list[int] = []
        for _ in said:
            expected.append(target([*self.text, *expected]))
            if expected[-1] in self.stop_tokens or len(expected) == self.num_left:
                break
        self.text += expected
        self.num_left -= len(expected)
        self.num_pending = int(len(expected) > num_drafted)
        emit = Emit(tuple(expected), min(len(expected), num_drafted), self.num_sent, 0.0)
        if expected[-1] in self.stop_tokens:
            assert commands == [emit, Finish(FinishReason.STOP)]
        elif not self.num_left:
            assert commands == [emit, Finish(FinishReason.LENGTH)]
        else:
            assert commands == [emit, Propose(len(self.text), self.num_left - 1)]
        self.state = "idle" if isinstance(commands[1], Finish) else "drafting"

    @precondition(lambda self: self.state == "drafting")
    @rule(shape=drafts)
    def draft(self, shape: list[tuple[int, str]]) -> None:
        proposed: list[DraftNode] = []
        texts: list[Text] = []
        for choice, kind in shape:
            parent = len(proposed) - 1 if choice < 0 else choice % (len(proposed) + 1) - 1
            above = tuple(self.text) if parent == PENDING else texts[parent]
            token = (target(above) + (kind == "wrong")) % VOCABULARY
            texts.append((*above, token))
            proposed.append(DraftNode(parent, token, 0.5))
        [wave] = self.session.handle(Drafted(proposed, len(self.text)), 0.0)
        assert isinstance(wave, SendWave)
        assert wave.start == wave.nodes[0].id
        assert wave.nodes[0].parent == wave.commit
        assert self.texts[wave.commit] == tuple(self.text[:-1])
        assert wave.nodes[0].token == self.text[-1], "the pending token comes first"
        self.state, self.num_pending, self.num_restored, self.num_sent = "answering", 0, 1, len(proposed)
        self.send([wave])
        assert [self.texts[node.id] for node in wave.nodes[1:]] == texts

    @rule(really=st.integers(0, 5))
    def stop(self, really: int) -> None:
        if really:
            return  # else hardly an answer would come to its own end
        commands = self.session.handle(StopAsked(), 0.0)
        if self.state == "drafting":
            assert commands == [Finish(FinishReason.CANCELLED)]
            assert self.num_pending == 1
            self.state = "idle"
        elif self.outstanding and not self.is_stopping:
            assert commands == [CancelWaves(self.outstanding[0].wave, self.outstanding[-1].wave)]
            self.is_stopping = True
        else:
            assert commands == []

    @rule()
    def what_can_not_happen_now_changes_nothing(self) -> None:
        if self.state != "idle":
            with pytest.raises(IllegalEvent, match="Asked while"):
                self.session.handle(Asked((1,), 1), 0.0)
        assert self.session.handle(Drafted((), len(self.text) + 1), 0.0) == []
        assert self.session.handle(Dropped(1, 7), 0.0) == []

    # --- what always holds

    def send(self, commands: list[Command]) -> None:
        for command in commands:
            assert isinstance(command, SendWave)
            assert command.rewind or not self.must_rewind
            self.must_rewind = False
            self.hold(command)

    @invariant()
    def few_waves_are_under_way_and_never_none_in_an_answer(self) -> None:
        assert len(self.outstanding) <= MAX_WAVES_OUTSTANDING
        assert bool(self.outstanding) == (self.state == "answering")
        assert self.session.num_tokens == len(self.text) or self.state == "answering"


TestSession = SessionMachine.TestCase
TestSession.settings = settings(max_examples=200)
