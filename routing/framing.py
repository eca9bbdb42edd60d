"""Messages as chunks on a byte stream, so that a large one never holds up the others. Sans-IO.

A chunk is 8 bytes of head, then its data: the lane (4 bytes), and the data's length (4 bytes, big endian like the lane)
whose highest bit says that the message goes on in the lane's next chunk. Messages of one lane come out in the order
in which they went in; lanes take turns. Each session has its own lane.
"""

from __future__ import annotations

import struct
from collections import OrderedDict, deque

from routing.errors import WireError
from routing.wire import MAX_MESSAGE_BYTES

MAX_CHUNK_BYTES = 64 << 10
MAX_OPEN_LANES = 1024
_HEAD = struct.Struct(">II")
_MORE = 1 << 31


def lane_of(session: bytes) -> int:
    """The lane of a session; 0 is for what belongs to none."""
    return int.from_bytes(session[:4], "big") | 1 if session else 0


class Outbox:
    """Messages that wait to be written. First in, first out in a lane; lanes take turns, a chunk each."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[int, deque[tuple[float, memoryview]]] = OrderedDict()
        self.num_bytes = 0

    def put(self, lane: int, data: bytes, due: float = 0.0) -> None:
        """Queue one message, to be written no earlier than ``due`` (seconds, on the caller's clock)."""
        self._lanes.setdefault(lane, deque()).append((due, memoryview(data)))
        self.num_bytes += len(data)

    def due(self) -> float | None:
        """When the next chunk may be written, or None if nothing waits."""
        return min((queue[0][0] for queue in self._lanes.values()), default=None)

    def pop(self, now: float) -> bytes | None:
        """The next chunk with its head, or None if nothing is due."""
        lane = next((lane for lane, queue in self._lanes.items() if queue[0][0] <= now), None)
        if lane is None:
            return None
        queue = self._lanes[lane]
        due, data = queue.popleft()
        chunk, rest = data[:MAX_CHUNK_BYTES], data[MAX_CHUNK_BYTES:]
        if rest:
            queue.appendleft((due, rest))
        if queue:
            self._lanes.move_to_end(lane)
        else:
            del self._lanes[lane]
        self.num_bytes -= len(chunk)
        return _HEAD.pack(lane, len(chunk) | (_MORE if rest else 0)) + chunk


class Assembler:
    """Bytes as they come in, whole messages out. What arrives is not trusted: sizes are bounded."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._lanes: dict[int, bytearray] = {}
        self._num_partial_bytes = 0

    @property
    def is_between_messages(self) -> bool:
        """Would an end of the stream cut no message here?"""
        return not self._buffer and not self._lanes

    def feed(self, data: bytes) -> list[bytearray]:
        """The messages that ``data`` completes, in order.

        Raises:
            WireError: a chunk or a message is over its limit, or too many messages are open at once.
        """
        self._buffer += data
        messages: list[bytearray] = []
        while len(self._buffer) >= _HEAD.size:
            lane, word = _HEAD.unpack_from(self._buffer)
            length = word & ~_MORE
            if length > MAX_CHUNK_BYTES:
                raise WireError(f"a chunk of {length} bytes is over the limit of {MAX_CHUNK_BYTES}")
            if len(self._buffer) < _HEAD.size + length:
                break
            message = self._lanes.setdefault(lane, bytearray())
            message += self._buffer[_HEAD.size : _HEAD.size + length]
            del self._buffer[: _HEAD.size + length]
            self._num_partial_bytes += length
            if self._num_partial_bytes > MAX_MESSAGE_BYTES or len(self._lanes) > MAX_OPEN_LANES:
                raise WireError(f"messages of over {MAX_MESSAGE_BYTES} bytes, or over {MAX_OPEN_LANES} at once")
            if not word & _MORE:
                self._num_partial_bytes -= len(message)
                messages.append(self._lanes.pop(lane))
        return messages
