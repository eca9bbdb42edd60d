"""The real ``swarm`` command, run as people run it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WAIT_SECONDS = 120.0
SWARM = str(Path(sys.executable).with_name("swarm"))


@dataclass(frozen=True, slots=True)
class Result:
    status: int
    out: str
    err: str


def environment(initial_peers: Sequence[str] = ()) -> dict[str, str]:
    return {**os.environ, "SWARM_INITIAL_PEERS": " ".join(initial_peers)}


async def swarm(*arguments: str, initial_peers: Sequence[str] = (), stdin: str = "") -> Result:
    """Run a command to its end."""
    process = await asyncio.create_subprocess_exec(
        SWARM,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(initial_peers),
    )
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            out, err = await process.communicate(stdin.encode())
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        raise AssertionError(f"swarm {' '.join(arguments)} did not end; it said {out!r} and {err!r}") from None
    assert "Traceback" not in err.decode(), err.decode()
    return Result(process.returncode or 0, out.decode(), err.decode())


class Serving:
    """A ``swarm serve`` or ``swarm bootstrap`` that runs."""

    def __init__(self, process: asyncio.subprocess.Process, lines: list[str]) -> None:
        self.process = process
        self.lines = lines

    @classmethod
    async def start(cls, *arguments: str, initial_peers: Sequence[str] = ()) -> Serving:
        """Run it and wait until it says how to join it."""
        process = await asyncio.create_subprocess_exec(
            SWARM,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment(initial_peers),
            start_new_session=True,
        )
        assert process.stdout is not None
        lines: list[str] = []
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not (lines and "--initial-peers /ip4/" in lines[-1]):
                    line = await process.stdout.readline()
                    assert line, f"swarm {' '.join(arguments)} ended; it said {lines}"
                    lines.append(line.decode())
        except TimeoutError:
            process.kill()
            raise AssertionError(f"swarm {' '.join(arguments)} is not up; it said {lines}") from None
        return cls(process, lines)

    @property
    def address(self) -> str:
        """Where others join it."""
        return self.lines[-1].split()[-1]

    async def end(self, number: int) -> tuple[int, str]:
        """Send a signal; the exit status, and what it said from then on."""
        self.process.send_signal(number)
        async with asyncio.timeout(WAIT_SECONDS):
            out, _ = await self.process.communicate()
        return self.process.returncode or 0, out.decode()

    async def close(self) -> None:
        """End it if it still runs."""
        if self.process.returncode is None:
            self.process.kill()
            await self.process.communicate()
