"""The streams of one peer, those that it opened and those that others did: none of them outlives it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from routing.domain import PeerId, short
from routing.errors import SwarmError
from routing.streams import MessageStream
from routing.transport import StreamHandler

INTRODUCE_SECONDS = 10.0

Introduce = Callable[[asyncio.StreamReader], Awaitable[PeerId]]
"""Reads from a stream that was just opened by whom it was; raises OSError or EOFError if it has already ended."""

logger = logging.getLogger(__name__)


class StreamPool:
    """Makes streams of messages from streams of bytes, and ends them all.

    Attributes:
        handler: serves the streams that others open; while there is none they are refused.

    Args:
        introduce: says who has opened a stream.
        delay_seconds: hold every message back for so long.
    """

    def __init__(self, introduce: Introduce, delay_seconds: float) -> None:
        self.handler: StreamHandler | None = None
        self._introduce = introduce
        self._delay_seconds = delay_seconds
        self._dialled: dict[MessageStream, asyncio.StreamWriter] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def dialled(self, remote: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> MessageStream:
        """A stream that we opened; who asked for it closes it, or else ``close`` does.

        Raises:
            ConnectionError: we are closed.
        """
        if self._is_closed:
            writer.close()
            raise ConnectionError("this node is closed")
        stream = MessageStream(remote, reader, writer, delay_seconds=self._delay_seconds)
        self._dialled = {old: its for old, its in self._dialled.items() if not its.is_closing()}
        self._dialled[stream] = writer
        return stream

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Give a stream that another peer opened to the handler, in a task of its own."""
        if self.handler is None or self._is_closed:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(self.handler, reader, writer), name="stream from a peer")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.transport.abort())  # also if it never began

    async def close(self) -> None:
        """End every stream: handlers are cancelled, the other ends hear a Bye. Never raises."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.gather(*(stream.close() for stream in self._dialled))
        for writer in self._dialled.values():
            writer.transport.abort()

    async def _serve(self, handler: StreamHandler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(INTRODUCE_SECONDS):
                remote = await self._introduce(reader)
        except (OSError, EOFError):  # a TimeoutError is an OSError
            return
        stream = MessageStream(remote, reader, writer, delay_seconds=self._delay_seconds)
        try:
            await handler(stream)
        except SwarmError as error:
            logger.info("stream from %s: ended: %s", short(remote), error)
        except Exception:
            logger.exception("stream from %s: ended by a mistake of ours", short(remote))
        finally:
            await stream.close()
