"""``swarm chat``: questions and answers, line by line, in one session."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from pathlib import Path

from routing.domain import SamplingParams
from routing.errors import ConfigError
from swarm.commands.connecting import check_context, connect
from swarm.commands.generate import describe, write_answer
from swarm.commands.running import find_model, require_peers, say
from swarm.conversation import Conversation
from swarm.session import FinishReason
from swarm.speculation import Speculation
from swarm.tokenizer import Tokenizer
from swarm.turns import next_turn


async def chat(
    model: str,
    *,
    initial_peers: list[str],
    params: SamplingParams,
    max_tokens: int,
    context: int,
    speculation: int | None,
    shows_stats: bool,
    cache_dir: Path | None,
    delay_ms: float,
) -> None:
    """Answer each line of standard input. Ctrl-C stops an answer, Ctrl-D ends the chat."""
    require_peers(initial_peers)
    folder = find_model(model, cache_dir)
    tokenizer = Tokenizer.load(folder.path)
    check_context(folder, context)
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    async with (
        await connect(folder, initial_peers, delay_ms) as client,
        await client.open(context, params, speculation=Speculation(speculation)) as conversation,
    ):
        if is_terminal:
            say(f"talking to {folder.name} over {conversation.route}; Ctrl-C stops an answer, Ctrl-D ends")
        await _talk(conversation, tokenizer, max_tokens, is_terminal=is_terminal, shows_stats=shows_stats)


async def _talk(
    conversation: Conversation, tokenizer: Tokenizer, max_tokens: int, *, is_terminal: bool, shows_stats: bool
) -> None:
    lines = _Lines("> " if is_terminal else "")
    messages: list[dict[str, str]] = []
    has_ended = False  # did the last answer end with its end token?
    is_answering = False

    def interrupt() -> None:
        if is_answering:
            conversation.stop()
        else:
            say("\nCtrl-D ends the chat")

    if is_terminal:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
    while (line := await lines.next()) is not None:
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        try:
            tokens = next_turn(tokenizer, messages, has_ended=has_ended)
            is_answering = True
            answer = await write_answer(conversation, tokenizer, tokens, max_tokens)
        except ConfigError as error:
            if not is_terminal:
                raise
            say(f"swarm: {error}")
            messages.pop()
            continue
        finally:
            is_answering = False
        has_ended = conversation.stats.finish_reason is FinishReason.STOP
        messages.append({"role": "assistant", "content": answer})
        if shows_stats:
            say(describe(conversation.stats))


class _Lines:
    """Lines of standard input, read by a thread that nobody has to wait for."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._loop = asyncio.get_running_loop()
        self._wanted = threading.Semaphore(0)
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        threading.Thread(target=self._read, name="standard input", daemon=True).start()

    async def next(self) -> str | None:
        """The next line without its end, or None at the end of the input."""
        self._wanted.release()
        return await self._lines.get()

    def _read(self) -> None:
        while True:
            self._wanted.acquire()
            try:
                line = input(self._prompt) if self._prompt else sys.stdin.readline()
            except EOFError:
                line = ""
            else:
                line += "\n" if self._prompt else ""
            try:
                self._loop.call_soon_threadsafe(self._lines.put_nowait, line.rstrip("\n") if line else None)
            except RuntimeError:  # the loop has ended meanwhile
                return
