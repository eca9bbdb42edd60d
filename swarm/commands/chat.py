"""``swarm chat``: questions and answers, line by line, in one session."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from pathlib import Path

from routing.domain import SamplingParams
from routing.errors import ConfigError
from swarm.answers import ask, describe
from swarm.commands.connecting import check_context, connect, longest_text
from swarm.commands.generate import write
from swarm.commands.running import find_model, require_peers, say
from swarm.conversation import Conversation
from swarm.speculation import Speculation
from swarm.tokenizer import Tokenizer
from swarm.turns import next_turn

DEFAULT_CONTEXT = 4096
MIN_CONTEXT = 16
"""Tokens of a chat that is still one, where the peers have little room."""


async def chat(
    model: str,
    *,
    initial_peers: list[str],
    params: SamplingParams,
    max_tokens: int,
    context: int | None,
    speculation: int | None,
    shows_stats: bool,
    cache_dir: Path | None,
    delay_ms: float,
) -> None:
    """Answer each line of standard input. Ctrl-C stops an answer, Ctrl-D ends the chat."""
    require_peers(initial_peers)
    folder = find_model(model, cache_dir)
    tokenizer = Tokenizer.load(folder.path)
    if context is None:
        context = min(DEFAULT_CONTEXT, longest_text(folder) or DEFAULT_CONTEXT)
    check_context(folder, context, "give a smaller --context")
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    async with (
        await connect(folder, initial_peers, delay_ms) as client,
        await client.open(
            context, params, min_tokens=MIN_CONTEXT, speculation=Speculation(speculation)
        ) as conversation,
    ):
        talk = _Talk(conversation, tokenizer, max_tokens)
        lines = _Lines("> " if is_terminal else "")
        if is_terminal:
            say(f"talking to {folder.name} over {conversation.route}; Ctrl-C stops an answer, Ctrl-D ends")
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, talk.interrupt)
        while (line := await lines.next()) is not None:
            if line.strip():
                await talk.answer(line)
                if shows_stats:
                    say(describe(conversation.stats))


class _Talk:
    """The turns so far, and what Ctrl-C means now."""

    def __init__(self, conversation: Conversation, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._conversation = conversation
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._messages: list[dict[str, str]] = []
        self._has_ended = False  # did the last answer end with its end token?
        self._is_answering = False
        self._is_stopping = False
        self._task = asyncio.current_task()

    async def answer(self, line: str) -> None:
        """Answer one line on standard output.

        Raises:
            ConfigError: the chat is full, or the chat template refuses it.
            GenerationFailed: a hop was lost.
        """
        self._messages.append({"role": "user", "content": line})
        tokens = next_turn(self._tokenizer, self._messages, has_ended=self._has_ended)
        context = self._conversation.max_tokens
        room = context - self._conversation.num_tokens - len(tokens)
        if room < 1:
            raise ConfigError(f"this chat has filled its {context} tokens: start a new one, or give a larger --context")
        self._is_answering = True
        try:
            answer = await ask(self._conversation, self._tokenizer, tokens, min(self._max_tokens, room), write)
        finally:
            self._is_answering = self._is_stopping = False
        self._has_ended = answer.has_ended
        self._messages.append({"role": "assistant", "content": answer.text})

    def interrupt(self) -> None:
        """Ctrl-C: stop the answer; a second time, when the swarm does not answer any more, end the chat."""
        if self._is_stopping and self._task is not None:
            self._task.cancel()
        elif self._is_answering:
            self._is_stopping = True
            self._conversation.stop()
        else:
            print("\nCtrl-D ends the chat\n> ", end="", file=sys.stderr, flush=True)


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
