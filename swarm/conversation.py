"""Questions and answers on one route: the driver of a session. What to do is the session's to say."""

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
from swarm.session import (
    Asked,
    Command,
    Drafted,
    Emit,
    Fail,
    Finish,
    FinishReason,
    Phase,
    Prefilled,
    Propose,
    RouteLost,
    SendWave,
    Session,
    StopAsked,
    Verified,
)
from swarm.speculation import Speculation


@dataclass(slots=True)
class Stats:
    """Counts of one answer; ratios are left to who reads them.

    Attributes:
        num_prompt_tokens: new text that was prefilled.
        num_tokens: of the answer.
        num_round_trips: waves that were verified, the prompt's last one included.
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
        return (
            (self.num_tokens - 1) / max(1e-9, self.seconds - self.first_token_seconds) if self.num_tokens > 1 else 0.0
        )

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens emitted per verification, the bonus token included; 0 without any."""
        return self.num_tokens / self.num_round_trips if self.num_round_trips else 0.0


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
        self._commands: deque[Command] = deque()
        self._draft: Draft = ()
        self._is_answering = False
        self._round: tuple[int, int, float] = (0, 0, 0.0)  # wave, drafted nodes, when it was sent

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
        self._chain.close()

    def stop(self) -> None:
        """End the answer that is under way; its ``ask`` returns as soon as the outstanding wave is back."""
        self._commands.extend(self._session.handle(StopAsked()))

    async def ask(
        self, tokens: Sequence[int], max_tokens: int, stop_tokens: frozenset[int] = frozenset()
    ) -> AsyncGenerator[tuple[int, ...]]:
        """Add tokens to the text, then yield the answer as it comes, a stop token included.

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
            await self._settle()
            self._begin(Asked(tuple(tokens), max_tokens, stop_tokens))
            while (emitted := await self._next_tokens(answer)) is not None:
                if not answer:
                    stats.first_token_seconds = clock() - began
                answer += emitted
                yield emitted
        finally:
            self._is_answering = False
            stats.seconds = clock() - began
            stats.num_bytes = self._links.num_bytes - bytes_before

    def _begin(self, question: Asked) -> None:
        if self._session.phase is Phase.CLOSED:
            raise GenerationFailed("this conversation lost its route: open a new one", ())
        try:
            self._commands.extend(self._session.handle(question))
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self._proposer.extend(question.tokens)
        self._draft = ()

    async def _next_tokens(self, answer: Sequence[int]) -> tuple[int, ...] | None:
        """Do what the session wants until it emits; None at the end of the answer."""
        while True:
            if not self._commands:
                self._commands.extend(self._session.handle(await self._next_event()))
                continue
            match self._commands.popleft():
                case SendWave() as wave:
                    self._send(wave)
                case Propose(max_depth):
                    self._propose(max_depth)
                case Emit(tokens, num_accepted):
                    self._learn(tokens, num_accepted)
                    return tokens
                case Finish(reason):
                    self.stats.finish_reason = reason
                    return None
                case Fail(reason):
                    raise GenerationFailed(f"the answer ended after {len(answer)} tokens: {reason}", answer)
                case other:
                    assert_never(other)

    def _learn(self, tokens: tuple[int, ...], num_accepted: int) -> None:
        self.stats.num_tokens += len(tokens)
        self.stats.num_accepted += num_accepted
        self._proposer.learn(self._draft, tokens)
        self._proposer.extend(tokens)

    def _send(self, wave: SendWave) -> None:
        try:
            self._chain.send(wave)
        except PeerUnreachable:
            return  # the link has put it into the inbox too; that is where it is dealt with
        is_round = wave.start == wave.nodes[0].id
        self._round = (wave.wave, len(wave.nodes) - 1 if is_round else -1, asyncio.get_running_loop().time())

    def _propose(self, max_depth: int) -> None:
        if self._session.phase is not Phase.DRAFTING:
            return  # stopped meanwhile
        self._draft = self._proposer.propose(self._speculation.max_nodes, max_depth)
        sent = self._speculation.cut(self._draft)
        self.stats.num_drafted += len(sent)
        self._commands.extend(self._session.handle(Drafted(sent)))

    async def _next_event(self) -> Prefilled | Verified | RouteLost:
        """What the hops say next, measured."""
        event = await self._chain.answer()
        if isinstance(event, Verified):
            self.stats.num_round_trips += 1
            wave, num_drafted, sent = self._round
            if event.wave == wave and num_drafted >= 0:
                self._speculation.observe(num_drafted, asyncio.get_running_loop().time() - sent)
        return event

    async def _settle(self) -> None:
        """The reader of the answer before may have gone away in its middle: wait for what is outstanding."""
        self._commands.clear()
        self._commands.extend(self._session.handle(StopAsked()))
        while self._session.phase not in (Phase.IDLE, Phase.CLOSED):
            self._commands.extend(self._session.handle(await self._chain.answer()))
        self._commands.clear()
