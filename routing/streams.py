"""A kept two-way stream of messages with one peer, over any pair of byte reader and writer."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Protocol

from routing.domain import PeerId
from routing.errors import PeerUnreachable, WireError
from routing.framing import Assembler, Outbox, lane_of
from routing.messages import Bye, Message, Wave
from routing.wire import decode, encode, session_of

READ_BYTES = 256 << 10
MAX_WAITING_BYTES = 4 << 20
"""Of messages that need no credit; who lets more than this wait does not read."""
MESSAGES_A_TURN = 64
"""Taken from one stream before the loop does something else."""
CLOSE_SECONDS = 2.0


class ByteReader(Protocol):
    """What is needed of ``asyncio.StreamReader``."""

    async def read(self, n: int, /) -> bytes:
        """Up to n bytes; ``b""`` at the end."""


class ByteWriter(Protocol):
    """What is needed of ``asyncio.StreamWriter``."""

    def write(self, data: bytes, /) -> None:
        """Take bytes to be sent."""

    async def drain(self) -> None:
        """Wait until there is room again."""

    def close(self) -> None:
        """Begin to close."""

    async def wait_closed(self) -> None:
        """Wait for the close."""


class MessageStream:
    """Sends and receives whole messages; one task writes, so that senders never wait for the network.

    Args:
        remote: who is at the other end; the transport has proved it.
        reader: bytes from there.
        writer: bytes to there.
        delay_seconds: hold every message back for so long, as a long line would.
        lost: what else, beyond ``OSError``, the reader and writer raise when the other end is gone.
    """

    def __init__(
        self,
        remote: PeerId,
        reader: ByteReader,
        writer: ByteWriter,
        *,
        delay_seconds: float = 0.0,
        lost: tuple[type[Exception], ...] = (),
    ) -> None:
        self.remote = remote
        self.num_bytes_sent = 0
        self.num_bytes_received = 0
        self._reader = reader
        self._writer = writer
        self._delay_seconds = delay_seconds
        self._lost_errors: tuple[type[Exception], ...] = (OSError, EOFError, *lost)
        self._outbox = Outbox()
        self._wake = asyncio.Event()
        self._assembler = Assembler()
        self._received: deque[bytearray] = deque()
        self._num_in_turn = 0
        self._reading: asyncio.Timeout | None = None
        self._lost: str | None = None
        self._is_closing = False
        self._pump = asyncio.create_task(self._write_chunks(), name=f"writes to {remote[-6:]}")

    @property
    def is_open(self) -> bool:
        """Can messages still be sent?"""
        return self._lost is None and not self._is_closing

    def send(self, message: Message) -> None:
        """Queue a message; it leaves as soon as the line is free.

        Waves are sent on credit of the other side, which bounds them; of everything else only so much may wait.

        Raises:
            PeerUnreachable: the stream has ended, or so much waits that the other end can't be reading.
            WireError: the message is too large.
        """
        if not self.is_open:
            raise PeerUnreachable(self.remote, self._lost or "the stream is closed")
        if self._outbox.num_uncredited_bytes > MAX_WAITING_BYTES:
            self._lose("it does not read what it is sent")
            raise PeerUnreachable(self.remote, "it does not read what it is sent")
        due = asyncio.get_running_loop().time() + self._delay_seconds if self._delay_seconds else 0.0
        self._outbox.put(lane_of(session_of(message)), encode(message), due, has_credit=isinstance(message, Wave))
        self._wake.set()

    async def receive(self) -> Message:
        """The next message.

        Raises:
            PeerUnreachable: the stream ended, or the other end said Bye.
            WireError: what came is no message. The stream is of no use after that; close it.
        """
        while not self._received:
            data = await self._read()
            self._num_in_turn = 0
            self.num_bytes_received += len(data)
            if data:
                self._received.extend(self._assembler.feed(data))
                continue
            self._lose("the connection was lost")
            if not self._assembler.is_between_messages:
                raise WireError("the stream ended in the middle of a message")
            raise PeerUnreachable(self.remote, "the connection was lost")
        self._num_in_turn += 1
        if self._num_in_turn % MESSAGES_A_TURN == 0:
            await asyncio.sleep(0)
        message = decode(self._received.popleft())
        if isinstance(message, Bye):
            self._lose("it said goodbye")
            raise PeerUnreachable(self.remote, "it said goodbye")
        return message

    async def _read(self) -> bytes:
        """Bytes from the other end. Half of a stream may be dead: one that can't be written to is not read on."""
        try:
            async with asyncio.timeout(None) as self._reading:
                if self._lost is not None:
                    raise TimeoutError
                return await self._reader.read(READ_BYTES)
        except TimeoutError:
            raise PeerUnreachable(self.remote, self._lost or "the connection was lost") from None
        except self._lost_errors as error:
            self._lose(f"the connection was lost ({type(error).__name__})")
            raise PeerUnreachable(self.remote, "the connection was lost") from None
        finally:
            self._reading = None

    async def close(self, last: Message | None = None) -> None:
        """Send what waits, then ``last`` and a Bye, and close. Never raises; a second call does nothing more."""
        if not self._is_closing:
            if self._lost is None:
                with contextlib.suppress(PeerUnreachable, WireError):
                    if last is not None:
                        self.send(last)
                    self.send(Bye())
            self._is_closing = True
            self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS + self._delay_seconds):
                await asyncio.shield(self._pump)
        self._pump.cancel()
        await asyncio.wait([self._pump])
        self._writer.close()
        with contextlib.suppress(TimeoutError, *self._lost_errors):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._writer.wait_closed()

    def _lose(self, reason: str) -> None:
        self._lost = self._lost or reason
        self._wake.set()
        if self._reading is not None and not self._reading.expired():
            self._reading.reschedule(0.0)

    async def _write_chunks(self) -> None:
        """The pump: ends when the stream is lost, or is closing and all is written."""
        clock = asyncio.get_running_loop().time
        while self._lost is None:
            due = self._outbox.due()
            if due is None:
                if self._is_closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            now = clock()
            if due > now:
                await asyncio.sleep(due - now)
                now = max(due, clock())
            chunk = self._outbox.pop(now)
            if chunk is None:
                continue
            try:
                self._writer.write(chunk)
                await self._writer.drain()
            except self._lost_errors as error:
                self._lose(f"the connection was lost ({type(error).__name__})")
                return
            self.num_bytes_sent += len(chunk)
