"""The public API: text through a swarm. The driver; every decision is made elsewhere.

    model = ModelName.of("smollm2-135m-instruct", folder)
    async with await SwarmClient.connect(model, ["/ip4/.../p2p/12D3KooW..."]) as client:
        async with await client.open(max_tokens=500) as conversation:
            async for tokens in conversation.ask(prompt_tokens, max_tokens=100):
                ...

Imports neither torch nor transformers; connecting loads torch, because hivemind does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from peer.checkpoint import Checkpoint
from routing.domain import ModelId, PeerId, PeerRecord, PeerState, Route, SamplingParams, Span
from routing.errors import ConfigError, NoRoute, PeerError
from routing.links import Links
from routing.messages import PROTOCOL_VERSION, Pong
from routing.planner import best_route
from routing.transport import Directory, Transport
from swarm.chain import Chain
from swarm.conversation import Conversation
from swarm.drafting import NGramProposer, Proposer
from swarm.session import Session
from swarm.speculation import MAX_TREE, Speculation

log = logging.getLogger(__name__)

PING_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ModelName:
    """What a client knows of a model without any weights.

    Attributes:
        name: what people call it.
        config: 8 hex digits over its config.json and tokenizer.json.
    """

    name: str
    config: str

    @classmethod
    def of(cls, name: str, folder: Path) -> Self:
        """Read it from the model's folder; config.json and tokenizer.json are enough.

        Raises:
            ConfigError: a file is missing or malformed.
        """
        return cls(name, Checkpoint.open(folder).config_hash())


class SwarmClient:
    """Finds routes and opens conversations on them. Close it, or use it as a context.

    Args:
        model: what to talk to.
        transport: how peers are dialled; closed with the client.
        directory: where they are found.
    """

    def __init__(self, model: ModelName, transport: Transport, directory: Directory) -> None:
        self.model = model
        self.links = Links(transport)
        self._transport = transport
        self._directory = directory

    @classmethod
    async def connect(cls, model: ModelName, initial_peers: Sequence[str], *, delay_seconds: float = 0.0) -> Self:
        """Join the swarm that these peers belong to, as a client that serves nothing.

        Args:
            model: what to talk to.
            initial_peers: multiaddrs that end in /p2p/ID.
            delay_seconds: hold back everything that is sent for so long; to try out long lines.

        Raises:
            SwarmError: none of the peers answers.
        """
        from routing.identity import Identity
        from routing.p2p.node import P2PNode

        node = await P2PNode.create(
            Identity.generate(), initial_peers=initial_peers, client_only=True, delay_seconds=delay_seconds
        )
        return cls(model, node, node)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End every link and leave the swarm."""
        await self.links.close()
        await self._transport.close()

    async def peers(self) -> tuple[ModelId | None, list[PeerRecord]]:
        """The best served variant of the model, and the records of its peers in the order of their spans.

        Raises:
            ConfigError: the swarm has a model of this name, but not with our config or tokenizer.
        """
        found = await self._directory.lookup(self.model.name)
        ours = [record for record in found if record.model.config == self.model.config]
        if found and not ours:
            others = ", ".join(sorted({str(record.model) for record in found}))
            raise ConfigError(
                f"this swarm serves {others}, and our files of {self.model.name} have the config {self.model.config}: "
                "use the model folder that its peers use"
            )
        variants: dict[ModelId, list[PeerRecord]] = {}
        for record in ours:
            variants.setdefault(record.model, []).append(record)
        if not variants:
            return None, []

        def merit(model: ModelId) -> tuple[int, int, ModelId]:
            records = variants[model]
            missing = Span(0, records[0].num_blocks).missing(record.span for record in records)
            return -sum(map(len, missing)), len(records), model

        best = max(variants, key=merit)
        return best, sorted(variants[best], key=lambda record: (record.span, record.peer))

    async def models(self) -> set[ModelId]:
        """Every model that a peer of this swarm serves."""
        return await self._directory.models()

    async def find_route(self, num_kv_tokens: int = 0) -> tuple[ModelId, Route, int]:
        """The best route now, by measured round trips and what the peers say of themselves.

        Args:
            num_kv_tokens: peers with less room than this are taken only where there are no others.

        Returns:
            The model, the route, and the tokens of KV cache that its fullest hop has room for.

        Raises:
            NoRoute: some blocks are served by nobody who answers.
            ConfigError: the swarm serves another model.
        """
        model, records = await self.peers()
        if model is None:
            others = ", ".join(sorted(str(other) for other in await self._directory.models()))
            raise ConfigError(
                f"no peer of this swarm serves {self.model.name}; it serves {others}: name that model, or another swarm"
                if others
                else f"no peer of this swarm serves {self.model.name}: start one with `swarm serve MODEL`"
            )
        usable = [r for r in records if r.state is PeerState.ONLINE and r.protocol == PROTOCOL_VERSION]
        answers = await asyncio.gather(*map(self._ping, usable))
        pongs = {record.peer: answer for record, answer in zip(usable, answers, strict=True) if answer is not None}

        def latency(here: PeerId | None, there: PeerId | None) -> float:
            ends = [pongs[peer][1] / 2 for peer in (here, there) if peer is not None]
            return sum(ends) / len(ends)

        reached = [record for record in usable if record.peer in pongs]
        roomy = [record for record in reached if pongs[record.peer][0].num_free_kv_tokens >= num_kv_tokens]
        num_blocks = records[0].num_blocks
        try:
            route = best_route(roomy, num_blocks, latency)
        except NoRoute:
            route = best_route(reached, num_blocks, latency)
        log.info("route: %s", route)
        return model, route, min(pongs[hop.peer][0].num_free_kv_tokens for hop in route.hops)

    async def open(
        self,
        max_tokens: int,
        params: SamplingParams | None = None,
        *,
        min_tokens: int | None = None,
        speculation: Speculation | None = None,
        proposer: Proposer | None = None,
    ) -> Conversation:
        """Open a conversation of at most so many tokens, questions and answers together.

        Args:
            max_tokens: the hops keep so much KV cache for it.
            params: how tokens are drawn; greedily by default.
            min_tokens: where the peers have less room, a conversation that is no shorter than this will do.
            speculation: how many drafts to send; by measurement by default.
            proposer: what drafts; n-grams of the text by default.

        Raises:
            NoRoute: some blocks are served by nobody.
            PeerError, ConfigError: a hop can't or does not want to.
        """
        beside = 2 * MAX_TREE  # drafts, and those of the answer before
        model, route, room = await self.find_route(max_tokens + beside)
        if min_tokens is not None:
            max_tokens = max(min_tokens, min(max_tokens, room - beside))
        chain = await Chain.open(self.links, str(model), route, max_tokens + beside, params or SamplingParams())
        return Conversation(
            chain, Session(max_tokens), speculation or Speculation(), proposer or NGramProposer(), self.links
        )

    async def _ping(self, record: PeerRecord) -> tuple[Pong, float] | None:
        """A peer's Pong and the seconds of the round trip, or None if it does not answer."""
        try:
            link = await self.links.get(record.peer, record.addresses, PING_SECONDS)
            return await link.ping(PING_SECONDS)
        except PeerError as error:
            log.info("%s", error)
            return None
