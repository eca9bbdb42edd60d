"""The nouns of a swarm. Plain data: no I/O, no clock, no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

PeerId = NewType("PeerId", str)
"""A libp2p peer id in base58: of an Ed25519 key, so that the id proves the key (``12D3Koo...``)."""

SessionId = NewType("SessionId", bytes)
"""16 random bytes that the client chose."""

_SPAN_TEXT = re.compile(r"([0-9]{1,6}):([0-9]{1,6})")


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Transformer blocks [start, end) of a model, at least one. Spans sort by where they start.

    Raises:
        ValueError: the span is empty or starts below block 0.
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"span {self} has no blocks: 0 <= START < END must hold")

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"

    @classmethod
    def parse(cls, text: str) -> Span:
        """Read what people type and ``str`` writes: ``0:10`` is the blocks 0 to 9.

        Raises:
            ValueError: the text is no span; the message says how one is written.
        """
        match = _SPAN_TEXT.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is no span: write START:END, for example 0:10 for the blocks 0 to 9")
        return cls(int(match[1]), int(match[2]))

    def covers(self, other: Span) -> bool:
        """Is every block of ``other`` in this span?"""
        return self.start <= other.start and other.end <= self.end

    def missing(self, served: Iterable[Span]) -> tuple[Span, ...]:
        """The blocks of this span that none of ``served`` has, as the fewest spans, in order."""
        gaps: list[Span] = []
        reached = self.start
        for span in sorted(served, key=lambda span: span.start):
            if span.start >= self.end:
                break
            if span.start > reached:
                gaps.append(Span(reached, span.start))
            reached = max(reached, span.end)
        if reached < self.end:
            gaps.append(Span(reached, self.end))
        return tuple(gaps)


def short(peer: PeerId) -> str:
    """The end of a peer id, as people tell peers apart: ``..f3a9Xq``."""
    return f"..{peer[-6:]}"


_MODEL_TEXT = re.compile(r"([a-z0-9][a-z0-9._-]{0,95})@([0-9a-f]{8})-([0-9a-f]{8})")


@dataclass(frozen=True, slots=True, order=True)
class ModelId:
    """Which model, to the bit: ``name@config-weights``.

    Attributes:
        name: what people call it, in lower case.
        config: 8 hex digits over config.json and tokenizer.json: a client knows them without any weights.
        weights: 8 hex digits over the final norm's values: tells apart two models of the same shape.
    """

    name: str
    config: str
    weights: str

    def __str__(self) -> str:
        return f"{self.name}@{self.config}-{self.weights}"

    @classmethod
    def parse(cls, text: str) -> ModelId:
        """Read what ``str`` writes.

        Raises:
            ValueError: the text is no model identity.
        """
        match = _MODEL_TEXT.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{text[:140]!r} is no model identity: name@config-weights, the last two 8 hex digits each"
            )
        return cls(match[1], match[2], match[3])


class PeerState(StrEnum):
    """Where a peer is in its life, as it says itself."""

    JOINING = "joining"
    ONLINE = "online"
    DRAINING = "draining"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """What a peer says about itself, before it is signed.

    Attributes:
        model: the model that it serves blocks of.
        num_blocks: how many blocks the whole model has.
        span: the blocks that it serves.
        peer: its id; the signature must be by this id's key.
        addresses: multiaddrs where it can be dialled, without the ``/p2p/`` part.
        state: only ``online`` peers get new sessions; ``gone`` is a goodbye.
        weights_class: dtype and quantization of its weights, for example ``float32``.
        software: its version of this software.
        protocol: the version of the wire that it speaks.
        name: what its owner calls it; empty if nothing.
        num_free_kv_tokens: tokens of KV cache that no session has reserved.
        queue: waves that wait for a forward pass.
        step_seconds: (rows, seconds) pairs: how long a forward pass of so many rows takes.
        features: what it can do beyond the plain protocol, by name.
        sequence: goes up with every record of this peer; the higher one counts.
        expiry: seconds of the Unix clock after which the record is void.
    """

    model: ModelId
    num_blocks: int
    span: Span
    peer: PeerId
    addresses: tuple[str, ...]
    state: PeerState
    weights_class: str
    software: str
    protocol: int
    name: str
    num_free_kv_tokens: int
    queue: int
    step_seconds: tuple[tuple[int, float], ...]
    features: tuple[str, ...]
    sequence: int
    expiry: float


@dataclass(frozen=True, slots=True)
class Hop:
    """One peer's part in a route: it runs ``span``, which may be less than it serves."""

    peer: PeerId
    span: Span
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """Hops that together run every block of a model, in order.

    Raises:
        ValueError: the spans do not follow each other from block 0.
    """

    hops: tuple[Hop, ...]

    def __post_init__(self) -> None:
        reached = 0
        for hop in self.hops:
            if hop.span.start != reached:
                raise ValueError(f"a route must go on at block {reached}, not at {hop.span.start}")
            reached = hop.span.end
        if not self.hops:
            raise ValueError("a route needs at least one hop")

    def __len__(self) -> int:
        return len(self.hops)

    def __str__(self) -> str:
        return ", ".join(f"{hop.span} at {short(hop.peer)}" for hop in self.hops)

    @property
    def num_blocks(self) -> int:
        """The blocks of the whole route."""
        return self.hops[-1].span.end


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a token is drawn from the model's logits.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: only the k likeliest tokens; 0 for all.
        top_p: only the likeliest tokens that together have at least this probability.
        seed: of the keyed noise; the same seed and text give the same next token.

    Raises:
        ValueError: a number is out of its range; the message names it.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 100.0:
            raise ValueError(f"temperature {self.temperature} must be from 0 to 100")
        if not 0 <= self.top_k < 2**31:
            raise ValueError(f"top-k {self.top_k} must be 0 (all tokens) or more")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top-p {self.top_p} must be above 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed} must be from 0 to 2**63 - 1")
