"""Says to the peers of a swarm in memory whatever a test wants, and hears what they answer."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence

import pytest
from msgspec.structs import replace

from peer.plan import Outcome
from routing.domain import Hop, Route, SamplingParams
from routing.domain import SessionId as Id
from routing.errors import GenerationFailed
from routing.handshake import dial
from routing.identity import Identity
from routing.in_memory import MemoryTransport
from routing.messages import (
    Fault,
    Message,
    Open,
    Opened,
    Rows,
    Verdict,
    Wave,
)
from routing.streams import MessageStream
from routing.wire import encode, open_message
from swarm.conversation import Conversation
from tests.memory_swarm import MemorySwarm, collect

PROMPT = list(b"A swarm answers.")
SESSION = Id(bytes(range(16)))
OTHER = Id(bytes(range(16, 32)))
HIDDEN = 64
Run = Callable[[], Sequence[Outcome]]
WIDE = Rows("float32", 1, HIDDEN, memoryview(bytes(4 * HIDDEN)))
LAST = len(PROMPT)


class Hand:
    """Says to the peers of a swarm whatever a test wants."""

    def __init__(self, swarm: MemorySwarm, seed: int = 77) -> None:
        self.swarm = swarm
        identity = Identity(bytes([seed] * 32))
        self.id = identity.peer_id
        self.transport: MemoryTransport = swarm.network.join(identity)
        self.streams: list[MessageStream] = []
        self.model = str(swarm.peers[0].model)
        self.route = Route(tuple(Hop(peer.identity.peer_id, peer.record.span) for peer in swarm.peers))

    async def dial(self) -> None:
        self.streams = [await dial(self.transport, peer.identity.peer_id, ()) for peer in self.swarm.peers]

    def open_message(self, index: int, session: Id = SESSION, num_kv_tokens: int = 500) -> Open:
        return open_message(session, 0, self.model, index, self.route, num_kv_tokens, SamplingParams())

    async def open(self, session: Id = SESSION, num_kv_tokens: int = 500) -> None:
        """A session at every real hop of the route."""
        if not self.streams:
            await self.dial()
        for index, stream in enumerate(self.streams):
            if self.route.hops[index].peer != self.id:
                stream.send(self.open_message(index, session, num_kv_tokens))
                opened = await self.hear(index)
                assert isinstance(opened, Opened), opened
                assert (opened.session, opened.num_kv_tokens) == (session, num_kv_tokens)

    async def hear(self, index: int) -> Message:
        async with asyncio.timeout(100):
            return await self.streams[index].receive()

    async def hear_fault(self, index: int) -> Fault:
        message = await self.hear(index)
        assert isinstance(message, Fault), message
        return message

    async def hear_verdict(self) -> tuple[int, tuple[int, ...], int]:
        message = await self.hear(-1)
        assert isinstance(message, Verdict), message
        return message.wave, message.path, message.next_token

    async def raw(self, data: bytes, index: int = 0) -> None:
        """Bytes as they are."""
        self.streams[index]._writer.write(data)


def nodes(tokens: Sequence[int], first: int = 1) -> tuple[tuple[int, int, int], ...]:
    """A chain."""
    return tuple((first + i, first + i - 1, token) for i, token in enumerate(tokens))


def prompt_wave(session: Id = SESSION) -> Wave:
    return Wave(session, 0, 1, 0, len(PROMPT), nodes(PROMPT))


def next_wave(**changes: object) -> Wave:
    """A good second wave, but for the changes."""
    last = len(PROMPT)
    return replace(Wave(SESSION, 0, 2, last, last + 1, ((last + 1, last, 5),)), **changes)


def chunk(message: Message, lane: int = 0) -> bytes:
    data = encode(message)
    return struct.pack(">II", lane, len(data)) + data


def num_sessions(swarm: MemorySwarm) -> list[int]:
    return [peer.hop.num_sessions for peer in swarm.peers]


def free_kv_tokens(swarm: MemorySwarm) -> list[int]:
    return [peer.hop.num_free_kv_tokens for peer in swarm.peers]


class Listener:
    """Reads an answer in a task of its own."""

    def __init__(self, conversation: Conversation, prompt: Sequence[int], max_tokens: int) -> None:
        self.heard: list[int] = []
        self._enough = asyncio.Event()
        self.task = asyncio.create_task(self._listen(conversation, prompt, max_tokens))

    async def five_tokens(self) -> None:
        await self._enough.wait()

    async def _listen(self, conversation: Conversation, prompt: Sequence[int], max_tokens: int) -> None:
        async for tokens in conversation.ask(prompt, max_tokens):
            self.heard += tokens
            if len(self.heard) >= 5:
                self._enough.set()


async def assert_failed(listener: Listener, reference: list[int], text: str, conversation: Conversation) -> None:
    with pytest.raises(GenerationFailed) as raised:
        await listener.task
    assert 5 <= len(listener.heard) < 48
    assert listener.heard == list(raised.value.tokens) == reference[: len(listener.heard)]
    assert f"after {len(listener.heard)} tokens" in str(raised.value)
    assert text in str(raised.value)
    with pytest.raises(GenerationFailed, match="lost its route: open a new one"):
        await collect(conversation, PROMPT, 5)
