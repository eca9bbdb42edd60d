"""An answer as people read it: text as it comes, and what it took. Shared by every front."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from routing.errors import GenerationFailed
from swarm.conversation import Conversation, Stats
from swarm.session_events import FinishReason
from swarm.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Answer:
    """What came.

    Attributes:
        tokens: a stop token included.
        text: of them.
        stats: what it took.
    """

    tokens: tuple[int, ...]
    text: str
    stats: Stats

    @property
    def has_ended(self) -> bool:
        """Did it come to its own end, with an end token?"""
        return self.stats.finish_reason is FinishReason.STOP


async def ask(
    conversation: Conversation,
    tokenizer: Tokenizer,
    tokens: Sequence[int],
    max_tokens: int,
    write: Callable[[str], object],
) -> Answer:
    """Ask, and write the answer's text as it comes; it ends with a line break, also when it fails.

    Args:
        conversation: where it is asked.
        tokenizer: of the model; its end tokens end the answer.
        tokens: new text.
        max_tokens: of the answer.
        write: gets each piece of text.

    Raises:
        ConfigError: it does not fit in the conversation.
        GenerationFailed: a hop was lost.
    """
    stream = tokenizer.stream()
    answer: list[int] = []
    pieces: list[str] = []
    try:
        async for emitted in conversation.ask(tokens, max_tokens, tokenizer.eos_ids):
            answer += emitted
            pieces.append(stream.push(emitted))
            write(pieces[-1])
    except (GenerationFailed, asyncio.CancelledError):
        write(stream.finish() + "\n")
        raise
    pieces.append(stream.finish())
    write(pieces[-1] + "\n")
    return Answer(tuple(answer), "".join(pieces), conversation.stats)


def describe(stats: Stats) -> str:
    """What an answer took, as one line."""
    return (
        f"{stats.num_tokens} tokens, {stats.tokens_per_second:.1f} tok/s, "
        f"first after {stats.first_token_seconds:.2f} s, {stats.num_round_trips} round trips, "
        f"{stats.mean_acceptance_length:.2f} tokens each, "
        f"{stats.num_accepted} of {stats.num_drafted} drafts accepted, "
        f"{stats.bytes_per_token:.0f} bytes a token"
    )
