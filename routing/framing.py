"""Messages as chunks on a byte stream, so that a large one never holds up the others. Sans-IO.

A chunk is 8 bytes of head, then its data: the lane (4 bytes), and the data's length (4 bytes, big endian like the lane)
whose highest bit says that the message goes on in the lane's next chunk. Messages of one lane come out in the order
in which they went in; lanes take turns. Each session has its own lane.
"""

from __future__ import annotations

import struct
from collections import OrderedDict, deque
from heapq import heappop, heappush

from routing.errors import WireError
from routing.wire_types import MAX_MESSAGE_BYTES

MAX_CHUNK_BYTES = 64 << 10
MAX_OPEN_LANES = 1024
MESSAGE_COST_BYTES = 256
"""What a waiting message takes besides its bytes."""
_HEAD = struct.Struct(">II")
_MORE = 1 << 31
_Item = tuple[memoryview, int]  # what is left of a message, and what it counts without credit


def lane_of(session: bytes) -> int:
    """The lane of a session; 0 is for what belongs to none."""
    return int.from_bytes(session[:4], "big") | 1 if session else 0


class Outbox:
    """Messages that wait to be written. First in, first out in a lane; lanes take turns, a chunk each.

    A message of several chunks is begun only when all that are begun and not ended come to at most
    ``MAX_MESSAGE_BYTES`` with it: the receiver, which holds their beginnings, allows no more.
    """

    def __init__(self) -> None:
        self._early: list[tuple[float, int, int, _Item]] = []  # a heap of what is not due: due, order, lane, message
        self._num_put = 0
        self._lanes: dict[int, deque[_Item]] = {}  # what is due
        self._turns: OrderedDict[int, None] = OrderedDict()  # lanes that may write a chunk
        self._held: OrderedDict[int, None] = OrderedDict()  # lanes whose next message is too large to begin now
        self._begun: dict[int, int] = {}  # lane -> bytes of its message that is begun
        self._num_begun_bytes = 0
        self.num_bytes = 0
        self.num_uncredited_bytes = 0

    def put(self, lane: int, data: bytes, due: float = 0.0, *, has_credit: bool = False) -> None:
        """Queue one message, to be written no earlier than ``due`` (seconds, on the caller's clock).

        Without credit of the receiver it is counted in ``num_uncredited_bytes`` until it is written, with what it
        takes in memory besides its bytes.
        """
        self._num_put += 1
        self.num_bytes += len(data)
        cost = 0 if has_credit else len(data) + MESSAGE_COST_BYTES
        self.num_uncredited_bytes += cost
        if due:
            heappush(self._early, (due, self._num_put, lane, (memoryview(data), cost)))
        else:
            self._enter(lane, (memoryview(data), cost))

    def due(self) -> float | None:
        """When the next chunk may be written, or None if nothing waits."""
        if self._turns:
            return 0.0
        return self._early[0][0] if self._early else None

    def pop(self, now: float) -> bytes | None:
        """The next chunk with its head, or None if nothing is due."""
        while self._early and self._early[0][0] <= now:
            _, _, lane, item = heappop(self._early)
            self._enter(lane, item)
        while self._turns:
            lane, _ = self._turns.popitem(last=False)
            if self._may_go_on(lane):
                return self._chunk(lane)
            self._held[lane] = None
        return None

    def _enter(self, lane: int, item: _Item) -> None:
        queue = self._lanes.get(lane)
        if queue is None:
            self._lanes[lane] = deque([item])
            self._turns[lane] = None
        else:
            queue.append(item)

    def _may_go_on(self, lane: int) -> bool:
        size = len(self._lanes[lane][0][0])
        is_small = size <= MAX_CHUNK_BYTES
        return lane in self._begun or is_small or not self._begun or self._num_begun_bytes + size <= MAX_MESSAGE_BYTES

    def _chunk(self, lane: int) -> bytes:
        queue = self._lanes[lane]
        data, cost = queue.popleft()
        chunk, rest = data[:MAX_CHUNK_BYTES], data[MAX_CHUNK_BYTES:]
        if rest:
            queue.appendleft((rest, cost))
            if lane not in self._begun:
                self._begun[lane] = len(data)
                self._num_begun_bytes += len(data)
        else:
            self.num_uncredited_bytes -= cost
            if lane in self._begun:
                self._num_begun_bytes -= self._begun.pop(lane)
                self._turns |= self._held
                self._held.clear()
        if queue:
            self._turns[lane] = None
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
        at = 0
        while len(self._buffer) - at >= _HEAD.size:
            lane, word = _HEAD.unpack_from(self._buffer, at)
            length = word & ~_MORE
            if length > MAX_CHUNK_BYTES:
                raise WireError(f"a chunk of {length} bytes is over the limit of {MAX_CHUNK_BYTES}")
            end = at + _HEAD.size + length
            if len(self._buffer) < end:
                break
            message = self._lanes.setdefault(lane, bytearray())
            message += self._buffer[at + _HEAD.size : end]
            at = end
            if not word & _MORE:
                self._num_partial_bytes -= len(message) - length
                messages.append(self._lanes.pop(lane))
                continue
            self._num_partial_bytes += length
            if self._num_partial_bytes > MAX_MESSAGE_BYTES or len(self._lanes) > MAX_OPEN_LANES:
                raise WireError(f"messages of over {MAX_MESSAGE_BYTES} bytes, or over {MAX_OPEN_LANES} at once")
        del self._buffer[:at]
        return messages
