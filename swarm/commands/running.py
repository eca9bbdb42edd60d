"""How every command runs: one event loop, signals, and errors as one clear line."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path

import typer

from routing.domain import SamplingParams
from routing.errors import ConfigError, SwarmError
from swarm.models import ModelFolder, resolve
from swarm.speculation import MAX_TREE, Speculation


def say(text: str) -> None:
    """A line for the person, on standard error, so that standard output has the result alone."""
    print(text, file=sys.stderr, flush=True)


def run(main: Callable[[], Coroutine[object, object, int | None]], *, is_verbose: bool = False) -> None:
    """Run a command to its end and leave with its exit status.

    Ctrl-C and SIGTERM cancel it, so that it cleans up; an error of ours is one line, with status 1.
    """
    logging.basicConfig(
        level=logging.INFO if is_verbose else logging.ERROR,
        format="%(asctime)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        status = asyncio.run(_cancel_on_signals(main))
    except SwarmError as error:
        say(f"swarm: {error}")
        status = 1
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BrokenPipeError:  # who read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would fail too
        status = 1
    raise typer.Exit(status)


async def _cancel_on_signals(main: Callable[[], Coroutine[object, object, int | None]]) -> int:
    task = asyncio.create_task(main(), name="command")
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task or 0
    except asyncio.CancelledError:
        return 128 + (received[0] if received else signal.SIGINT)


async def wait_for_signal(until: Awaitable[None]) -> None:
    """Wait for Ctrl-C or SIGTERM, which for a server is the usual end; or for ``until`` to raise."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    waiting = asyncio.ensure_future(until)
    stopping = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait([waiting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            waiting.result()
    finally:
        for task in (waiting, stopping):
            task.cancel()
        await asyncio.wait([waiting, stopping])


def find_model(model: str, cache_dir: Path | None) -> ModelFolder:
    """The folder of the model that was named; says so when it takes a while.

    Raises:
        ConfigError: there is no such model.
    """
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # an import holds up the loop for seconds
    try:
        return resolve(model, cache_dir, say)
    finally:
        signal.signal(signal.SIGINT, handler)


def require_peers(initial_peers: list[str]) -> list[str]:
    """The addresses of peers to join, checked.

    Raises:
        ConfigError: there are none, or one of them is no address of a peer.
    """
    from routing.addresses import check_peer

    if not initial_peers:
        raise ConfigError(
            "which swarm? give --initial-peers ADDRESS (a peer prints its own when it starts), "
            "or set SWARM_INITIAL_PEERS"
        )
    return [check_peer(address) for address in initial_peers]


def read_speculation(text: str) -> int | None:
    """What ``--speculation`` says: None for auto, 0 for off, else the number of drafts.

    Raises:
        ConfigError: it is none of these.
    """
    if text == "auto":
        return None
    if text == "off":
        return 0
    if not text.isascii() or not text.isdigit() or not 0 <= int(text) <= MAX_TREE:
        raise ConfigError(f"--speculation {text}: give auto, off, or a number from 0 to {MAX_TREE}")
    return int(text)


def sampling(temperature: float, top_k: int, top_p: float, seed: int | None) -> SamplingParams:
    """The sampling options, checked.

    Raises:
        ConfigError: one of them is out of range.
    """
    import secrets

    try:
        return SamplingParams(temperature, top_k, top_p, secrets.randbits(63) if seed is None else seed)
    except ValueError as error:
        raise ConfigError(str(error)) from None


__all__ = [
    "Speculation",
    "find_model",
    "read_speculation",
    "require_peers",
    "run",
    "sampling",
    "say",
    "wait_for_signal",
]
