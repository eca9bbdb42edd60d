"""Questions and answers on one route: the event loop of a session. What to do is the session's to say."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, assert_never

from routing.domain import Route
from routing.errors import ConfigError, GenerationFailed, PeerUnreachable
from routing.links import Links
from routing.messages import Timing
from swarm.chain import Chain
from swarm.drafting import Draft, Proposer
from swarm.session import Phase, Session
from swarm.session_events import (
    Asked,
    CancelWaves,
    Drafted,
    Emit,
    Event,
    Fail,
    Finish,
    FinishReason,
    Propose,
    SendWave,
    StopAsked,
)
from swarm.speculation import Speculation


@dataclass(slots=True)
class Stats:
    """Counts of one answer; ratios are left to who reads them.

    Attributes:
        num_prompt_tokens: new text that was prefilled.
        num_tokens: of the answer.
        num_round_trips: waves that were verified, the prompt's last one included; cancelled ones do not count.
        num_drafted: nodes that were sent beyond the pending token.
        num_accepted: of them, those that the target went through.
        first_token_seconds: from the question to the first token.
        seconds: from the question to the end.
        num_bytes: sent and received by the client for it.
        finish_reason: why the answer ended; None while it goes on.
    """

    num_prompt_tokens: int = 0
    num_tokens: int = 0
    num_round_trips: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    first_token_seconds: float = 0.0
    seconds: float = 0.0
    num_bytes: int = 0
    finish_reason: FinishReason | None = None

    @property
    def tokens_per_second(self) -> float:
        """After the first token, so that the prompt does not count."""
        if self.num_tokens < 2:
            return 0.0
        return (self.num_tokens - 1) / max(1e-9, self.seconds - self.first_token_seconds)

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens emitted per verification, the bonus token included; 0 without any."""
        return self.num_tokens / self.num_round_trips if self.num_round_trips else 0.0

    @property
    def bytes_per_token(self) -> float:
        """Of the client's own line."""
        return self.num_bytes / max(1, self.num_tokens)


class Conversation:
    """One session on one route: questions and answers that build on each other. Made by ``SwarmClient.open``."""

    def __init__(
        self, chain: Chain, session: Session, speculation: Speculation, proposer: Proposer, links: Links
    ) -> None:
        self.stats = Stats()
        self._chain = chain
        self._session = session
        self._speculation = speculation
        self._proposer = proposer
        self._links = links
        self._draft: Draft = ()
        self._drafting: asyncio.Task[None] | None = None
        self._emitted: deque[tuple[int, ...]] = deque()
        self._failure: str | None = None
        self._is_answering = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def route(self) -> Route:
        """The hops that compute it."""
        return self._chain.route

    @property
    def timings(self) -> tuple[Timing, ...]:
        """What each hop did for the last verdict, in the order of the route."""
        return self._chain.timings

    @property
    def max_tokens(self) -> int:
        """Tokens that the whole text may have."""
        return self._session.max_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens of the text so far."""
        return self._session.num_tokens

    def close(self) -> None:
        """Free it at every hop."""
        if self._drafting is not None:
            self._drafting.cancel()
        self._chain.close()

    def stop(self) -> None:
        """End the answer that is under way; its ``ask`` returns as soon as what is under way was called back."""
        self._chain.inbox.put(StopAsked())

    async def ask(
        self,
        tokens: Sequence[int],
        max_tokens: int,
        stop_tokens: frozenset[int] = frozenset(),
        *,
        keep: int | None = None,
    ) -> AsyncGenerator[tuple[int, ...]]:
        """Add tokens to the text, then yield the answer as it comes, a stop token included.

        Args:
            tokens: new text, at least one.
            max_tokens: of the answer.
            stop_tokens: that end it.
            keep: go back to so many tokens of the text first; what follows them is forgotten.

        Raises:
            ConfigError: it does not fit in what the conversation was opened for, or an answer is under way.
            GenerationFailed: a hop was lost; it has the tokens so far. The conversation is at its end.
        """
        if self._is_answering:
            raise ConfigError("one question at a time: read the answer before this one to its end, or close it")
        clock = asyncio.get_running_loop().time
        began, bytes_before = clock(), self._links.num_bytes
        stats = self.stats = Stats(num_prompt_tokens=len(tokens))
        answer: list[int] = []
        self._is_answering = True
        try:
            await self._come_to_rest()
            self._begin(Asked(tuple(tokens), max_tokens, stop_tokens, keep))
            while (emitted := await self._next_tokens(answer)) is not None:
                if not answer:
                    stats.first_token_seconds = clock() - began
                answer += emitted
                yield emitted
        finally:
            self._is_answering = False
            self._do(StopAsked())  # who reads may have left in the middle; else it changes nothing
            stats.seconds = clock() - began
            stats.num_bytes = self._links.num_bytes - bytes_before

    async def _come_to_rest(self) -> None:
        """Take in what was said since the last answer; what that had under way is called back already."""
        for event in self._chain.events_so_far():
            self._do(event)
        while self._session.phase is Phase.CANCELLING:
            self._do(await self._chain.event(self._session.num_rows_in_flight))
        self._emitted.clear()
        self._failure = None
        self.stats.finish_reason = None

    def _begin(self, question: Asked) -> None:
        if self._session.phase is Phase.CLOSED:
            reason = self._session.lost_reason
            raise GenerationFailed(f"this conversation lost its route: open a new one ({reason})", ())
        try:
            self._do(question)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self._proposer.extend(question.tokens)

    async def _next_tokens(self, answer: Sequence[int]) -> tuple[int, ...] | None:
        """What the answer goes on with; None at its end."""
        while not self._emitted:
            if self._failure is not None:
                raise GenerationFailed(f"the answer ended after {len(answer)} tokens: {self._failure}", answer)
            if self.stats.finish_reason is not None:
                return None
            self._do(await self._chain.event(self._session.num_rows_in_flight))
        return self._emitted.popleft()

    def _do(self, event: Event) -> None:
        """Tell the session of an event, and do what it wants."""
        for command in self._session.handle(event, asyncio.get_running_loop().time()):
            match command:
                case SendWave():
                    self._send(command)
                case CancelWaves():
                    self._chain.cancel(command)
                case Propose():
                    self._drafting = asyncio.create_task(self._propose(command), name="draft")
                case Emit():
                    self._emit(command)
                case Finish(reason):
                    self.stats.finish_reason = reason
                case Fail(reason):
                    self._failure = reason
                case other:
                    assert_never(other)

    def _send(self, wave: SendWave) -> None:
        try:
            self._chain.send(wave)
        except PeerUnreachable:
            return  # its end is in the inbox; that is where it is dealt with

    async def _propose(self, wanted: Propose) -> None:
        """Draft, and say so: an event like any other."""
        self._draft = self._proposer.propose(self._speculation.max_nodes, wanted.max_depth)
        self._chain.inbox.put(Drafted(self._speculation.cut(self._draft), wanted.num_tokens))

    def _emit(self, emit: Emit) -> None:
        """A round has ended: count it, and learn from it."""
        self.stats.num_round_trips += 1
        self.stats.num_tokens += len(emit.tokens)
        self.stats.num_accepted += emit.num_accepted
        if emit.num_drafted is not None:
            self.stats.num_drafted += emit.num_drafted
            self._speculation.observe(emit.num_drafted, emit.seconds)
            self._proposer.learn(self._draft, emit.tokens)
        self._proposer.extend(emit.tokens)
        self._emitted.append(emit.tokens)
