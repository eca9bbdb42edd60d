"""The public API: text through a swarm. A driver; every decision is made elsewhere.

    model = ModelName.of("smollm2-135m-instruct", folder)
    async with await SwarmClient.connect(model, ["/ip4/.../p2p/12D3KooW..."]) as client:
        async with await client.open(max_tokens=500) as conversation:
            async for tokens in conversation.ask(prompt_tokens, max_tokens=100):
                ...

Imports neither torch nor transformers; connecting loads torch, because hivemind does.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from routing.domain import ModelId, SamplingParams
from routing.errors import PeerError
from routing.links import Links
from routing.transport import Directory, Transport
from swarm.chain import Chain
from swarm.conversation import Conversation
from swarm.drafting import NGramProposer, Proposer
from swarm.models import ModelName
from swarm.session import Session
from swarm.speculation import MAX_TREE, Speculation
from swarm.view import SwarmView


class SwarmClient:
    """Opens conversations with a model. Close it, or use it as a context.

    Attributes:
        view: what is known of the swarm.

    Args:
        model: what to talk to.
        transport: how peers are dialled; closed with the client.
        directory: where they are found.
    """

    def __init__(self, model: ModelName, transport: Transport, directory: Directory) -> None:
        self._model = model
        self._transport = transport
        self._directory = directory
        self._links = Links(transport)
        self.view = SwarmView(model, self._links, directory)

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
        await self.view.close()
        await self._links.close()
        await self._transport.close()

    async def models(self) -> set[ModelId]:
        """Every model that a peer of this swarm serves."""
        return await self._directory.models()

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
        found = await self.view.route(max_tokens + beside)
        if min_tokens is not None:
            max_tokens = max(min_tokens, min(max_tokens, found.room - beside))
        try:
            chain = await Chain.open(
                self._links,
                str(found.model),
                found.route,
                max_tokens + beside,
                params or SamplingParams(),
                self.view.failed,
            )
        except PeerError as error:
            self.view.noticed(error)
            raise
        session = Session(max_tokens, self._model.vocab_size)
        return Conversation(chain, session, speculation or Speculation(), proposer or NGramProposer(), self._links)
