"""``swarm generate``: continue one text."""

from __future__ import annotations

import sys
from pathlib import Path

from routing.domain import SamplingParams
from routing.errors import ConfigError
from swarm.answers import ask, describe
from swarm.commands.connecting import check_context, connect
from swarm.commands.running import find_model, require_peers, say
from swarm.speculation import Speculation
from swarm.tokenizer import Tokenizer


async def generate(
    model: str,
    prompt: str,
    *,
    initial_peers: list[str],
    is_chat: bool,
    params: SamplingParams,
    max_tokens: int,
    speculation: int | None,
    shows_stats: bool,
    cache_dir: Path | None,
    delay_ms: float,
) -> None:
    """Write the continuation of a prompt to standard output, as it comes."""
    require_peers(initial_peers)
    folder = find_model(model, cache_dir)
    tokenizer = Tokenizer.load(folder.path)
    tokens = read_prompt(tokenizer, _read_standard_input() if prompt == "-" else prompt, is_chat=is_chat)
    check_context(folder, len(tokens) + max_tokens, "shorten the text, or ask for fewer with --max-tokens")
    async with (
        await connect(folder, initial_peers, delay_ms) as client,
        await client.open(len(tokens) + max_tokens, params, speculation=Speculation(speculation)) as conversation,
    ):
        answer = await ask(conversation, tokenizer, tokens, max_tokens, write)
        if shows_stats:
            say(describe(answer.stats))


def read_prompt(tokenizer: Tokenizer, text: str, *, is_chat: bool) -> list[int]:
    """The prompt's tokens, through the chat template if it is a question.

    Raises:
        ConfigError: it is empty, or can't be encoded.
    """
    try:
        tokens = tokenizer.chat([{"role": "user", "content": text}]) if is_chat else tokenizer.encode(text)
    except ValueError as error:
        raise ConfigError(f"the prompt: {error}") from None
    if not text or not tokens:
        raise ConfigError("the prompt is empty: give at least one word")
    return tokens


def _read_standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input is not UTF-8: {error.reason} at byte {error.start}") from None


def write(text: str) -> None:
    """A piece of an answer, to standard output at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
