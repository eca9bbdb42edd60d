"""Who sits at a hop: sessions come and go, each with its tree, its share of the KV cache, and a way to the next hop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from peer.engine import Engine, SpanSession
from peer.spans import SpanModel
from routing.domain import Hop, ModelId, PeerId, Route, SessionId, Span, short
from routing.errors import PeerError, PeerUnreachable, SwarmError, WireError
from routing.handshake import dial
from routing.messages import Busy, Close, Fault, Message, Open, Opened, Wave
from routing.streams import MessageStream
from routing.transport import Transport
from routing.wire import route_of, sampling_of, session_of

log = logging.getLogger(__name__)

IDLE_SECONDS = 600.0
RETRY_AFTER_SECONDS = 10.0


class Refused(SwarmError):
    """What was asked can't be done here. ``code`` is for programs."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(slots=True, eq=False)
class Seat:
    """A session's place at this hop.

    Attributes:
        id: the session's.
        epoch: which of the session's routes this is.
        client: the stream on which it was opened; answers go there.
        predecessor: the only peer whose waves are taken.
        engine: runs the blocks that the route wants of us.
        session: tree and caches.
        num_granted: tokens of KV cache that it may use.
        next_hop: the stream that rows go down; None at the last hop.
        waiting: waves with the time of their arrival.
        num_received: the last wave that came in.
        num_passed_on: the last wave that went to the next hop.
        answers: the last answers that were given, by wave.
        last_active: when it was last heard of, on the loop's clock.
    """

    id: SessionId
    epoch: int
    client: MessageStream
    predecessor: PeerId
    engine: Engine
    session: SpanSession
    num_granted: int
    last_active: float
    next_hop: MessageStream | None = None
    waiting: deque[tuple[Wave, float]] = field(default_factory=deque)
    num_received: int = 0
    num_passed_on: int = 0
    answers: dict[int, Message] = field(default_factory=dict)


class Seats:
    """The sessions of one peer.

    Args:
        span_model: the blocks that it serves.
        model: which model they are of.
        transport: how next hops are dialled.
        num_kv_tokens: KV cache for all sessions together, in tokens of the whole span.
    """

    def __init__(self, span_model: SpanModel, model: ModelId, transport: Transport, num_kv_tokens: int) -> None:
        self.num_kv_tokens = num_kv_tokens
        self._span_model = span_model
        self._model = model
        self._transport = transport
        self._engines = {span_model.span: Engine(span_model)}
        self._seats: dict[bytes, Seat] = {}
        self._links: dict[PeerId, MessageStream] = {}
        self._link_locks: dict[PeerId, asyncio.Lock] = {}
        self._readers: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._seats)

    def __iter__(self) -> Iterator[Seat]:
        return iter(list(self._seats.values()))

    def get(self, session: bytes) -> Seat | None:
        """The seat of a session, if it has one."""
        return self._seats.get(session)

    @property
    def num_free_kv_tokens(self) -> int:
        """Tokens of KV cache that no session was granted."""
        return self.num_kv_tokens - sum(seat.num_granted for seat in self._seats.values())

    def open(self, stream: MessageStream, message: Open, opening: set[asyncio.Task[None]]) -> None:
        """Give a session a seat, at once: a Close right behind must find it. The answer may take a while."""
        session = SessionId(message.session)
        try:
            seat = self._new_seat(stream, session, message)
            if seat is None:
                stream.send(Busy(session, message.epoch, RETRY_AFTER_SECONDS))
                return
            task = asyncio.create_task(self._reach_next(seat, route_of(message), message.index), name="open")
            opening.add(task)
            task.add_done_callback(opening.discard)
        except (Refused, WireError) as error:
            code = error.code if isinstance(error, Refused) else "malformed"
            stream.send(Fault(code, str(error)[:500], session, message.epoch))

    async def _reach_next(self, seat: Seat, route: Route, index: int) -> None:
        """Reach the next hop, then say that the session is open here."""
        try:
            if index + 1 < len(route):
                seat.next_hop = await self._link(route.hops[index + 1])
            if self._seats.get(seat.id) is seat:
                seat.client.send(Opened(seat.id, seat.epoch, seat.num_granted))
        except PeerError as error:
            self.fail(seat, "hop-lost", str(error))

    def _new_seat(self, stream: MessageStream, session: SessionId, message: Open) -> Seat | None:
        """The seat, or None if there is no room for it now.

        Raises:
            Refused: it could never be had here.
            WireError: the Open makes no sense.
        """
        route, params = route_of(message), sampling_of(message)
        hop = route.hops[message.index]
        if message.model != str(self._model):
            raise Refused("wrong-model", f"this peer serves {self._model}, not {message.model}")
        if hop.peer != self._transport.peer_id:
            raise Refused("wrong-peer", f"hop {message.index} of the route is {short(hop.peer)}, this is another peer")
        if not self._span_model.span.covers(hop.span) or route.num_blocks != self._span_model.num_blocks:
            raise Refused("wrong-span", f"this peer serves the blocks {self._span_model.span}, not {hop.span}")
        if session in self._seats:
            raise Refused("unsupported", "the session is open here already; changing its route is not in this version")
        if not 0 < message.num_kv_tokens <= self.num_kv_tokens:
            text = (
                f"{message.num_kv_tokens} tokens are more than all the {self.num_kv_tokens} that this peer has room for"
            )
            raise Refused("too-long", text)
        if message.num_kv_tokens > self.num_free_kv_tokens:
            return None
        engine = self._engine(hop.span)
        seat = Seat(
            id=session,
            epoch=message.epoch,
            client=stream,
            predecessor=route.hops[message.index - 1].peer if message.index else stream.remote,
            engine=engine,
            session=engine.new_session(params, message.num_kv_tokens),
            num_granted=message.num_kv_tokens,
            last_active=asyncio.get_running_loop().time(),
        )
        self._seats[session] = seat
        return seat

    def _engine(self, span: Span) -> Engine:
        if span not in self._engines:
            self._engines[span] = Engine(self._span_model.part(span))
        return self._engines[span]

    async def _link(self, hop: Hop) -> MessageStream:
        """The kept stream to a next hop.

        Raises:
            PeerError, WireError, NotAuthorized: it can't be had.
        """
        async with self._link_locks.setdefault(hop.peer, asyncio.Lock()):
            link = self._links.get(hop.peer)
            if link is None or not link.is_open:
                try:
                    link = await dial(self._transport, hop.peer, hop.addresses)
                except SwarmError:
                    self._link_locks.pop(hop.peer, None)  # strangers can name any number of peers
                    raise
                self._links[hop.peer] = link
                reader = asyncio.create_task(self._read_link(link), name=f"next hop {short(hop.peer)}")
                self._readers.add(reader)
                reader.add_done_callback(self._readers.discard)
            return link

    async def _read_link(self, link: MessageStream) -> None:
        """A next hop says nothing to us but faults; when it is gone, every session that leads there is at its end."""
        try:
            while True:
                message = await link.receive()
                seat = self._seats.get(session_of(message))
                if isinstance(message, Fault) and seat is not None and seat.next_hop is link:
                    self.fail(seat, message.code, message.text)
        except (PeerUnreachable, WireError) as error:
            for seat in [seat for seat in self if seat.next_hop is link]:
                self.fail(seat, "hop-lost", str(error))
        finally:
            await link.close()
            if self._links.get(link.remote) is link:
                del self._links[link.remote]

    def free(self, seat: Seat) -> None:
        """End a session here and at the hops after us."""
        if self._seats.get(seat.id) is seat:
            del self._seats[seat.id]
            if seat.next_hop is not None:
                with contextlib.suppress(PeerUnreachable):
                    seat.next_hop.send(Close(seat.id))

    def fail(self, seat: Seat, code: str, text: str, wave: int = 0) -> None:
        """End a session and say why to its client."""
        if self._seats.get(seat.id) is not seat:
            return
        log.info("session ended: %s: %s", code, text)
        with contextlib.suppress(PeerUnreachable):
            seat.client.send(Fault(code, text[:500], seat.id, seat.epoch, wave))
        self.free(seat)

    async def free_idle(self) -> None:
        """End sessions that say nothing for ``IDLE_SECONDS``; for ever."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(IDLE_SECONDS / 10)
            for seat in self:
                if clock() - seat.last_active > IDLE_SECONDS:
                    self.fail(seat, "idle", f"the session said nothing for {IDLE_SECONDS:.0f} s")

    async def close(self) -> None:
        """End the ways to the next hops."""
        for reader in self._readers:
            reader.cancel()
        if self._readers:
            await asyncio.wait(self._readers)
        for link in self._links.values():
            await link.close()
