"""Wire messages in, waves out: what a peer does for sessions that others open at it.

One task reads each stream, one forms the passes. A wave waits in its session's queue, is computed in a pass with the
waves of other sessions, and goes on to the next hop as rows, or to the client as a verdict.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from peer.batching import next_pass
from peer.engine import Engine, Outcome, Session, Step
from peer.rows import from_wire, to_wire
from peer.spans import SpanModel
from routing.domain import Hop, ModelId, PeerId, PeerState, Route, SessionId, Span, short
from routing.errors import NotAuthorized, PeerError, PeerUnreachable, SwarmError, WireError
from routing.handshake import dial, welcome
from routing.streams import MessageStream
from routing.transport import Transport
from routing.wire import (
    MAX_HOPS,
    MAX_WAVES_OUTSTANDING,
    Busy,
    Cancel,
    Close,
    Done,
    Fault,
    Message,
    Open,
    Opened,
    Ping,
    Pong,
    Timing,
    Verdict,
    Wave,
    nodes_of,
    route_of,
    sampling_of,
    session_of,
)

log = logging.getLogger(__name__)

IDLE_SECONDS = 600.0
RETRY_AFTER_SECONDS = 10.0
ANSWERS_KEPT = 8

Compute = Callable[[Callable[[], list[Outcome]]], Awaitable[list[Outcome]]]
"""Runs a pass away from the event loop: on the one compute thread of the device."""


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
    session: Session
    num_granted: int
    last_active: float
    next_hop: MessageStream | None = None
    waiting: deque[tuple[Wave, float]] = field(default_factory=deque)
    num_received: int = 0
    num_passed_on: int = 0
    answers: dict[int, Message] = field(default_factory=dict)


class Server:
    """Serves one span. ``run`` does the work; everything else is called by the transport.

    Args:
        span_model: the blocks.
        model: which model they are of.
        transport: where streams come from and next hops are dialled.
        num_kv_tokens: KV cache for all sessions together, in tokens of the whole span.
        compute: runs a pass without holding up the loop.
    """

    def __init__(
        self, span_model: SpanModel, model: ModelId, transport: Transport, num_kv_tokens: int, compute: Compute
    ) -> None:
        self.state = PeerState.JOINING
        self.num_wire_errors = 0
        self.num_kv_tokens = num_kv_tokens
        self._span_model = span_model
        self._engines = {span_model.span: Engine(span_model)}
        self._model = model
        self._transport = transport
        self._compute = compute
        self._seats: dict[bytes, Seat] = {}
        self._links: dict[PeerId, MessageStream] = {}
        self._link_locks: dict[PeerId, asyncio.Lock] = {}
        self._readers: set[asyncio.Task[None]] = set()
        self._work = asyncio.Event()

    @property
    def num_sessions(self) -> int:
        """Sessions that have a seat."""
        return len(self._seats)

    @property
    def num_free_kv_tokens(self) -> int:
        """Tokens of KV cache that no session was granted."""
        return self.num_kv_tokens - sum(seat.num_granted for seat in self._seats.values())

    @property
    def queue(self) -> int:
        """Waves that wait for a pass."""
        return sum(len(seat.waiting) for seat in self._seats.values())

    async def run(self) -> None:
        """Serve until cancelled."""
        await self._transport.serve(self.serve_stream)
        self.state = PeerState.ONLINE
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._run_passes())
                tasks.create_task(self._free_idle_sessions())
        finally:
            self.state = PeerState.DRAINING
            for reader in self._readers:
                reader.cancel()
            if self._readers:
                await asyncio.wait(self._readers)
            for link in self._links.values():
                await link.close()

    async def serve_stream(self, stream: MessageStream) -> None:
        """One stream that somebody opened, until it ends."""
        opening: set[asyncio.Task[None]] = set()
        try:
            await welcome(stream)
            while True:
                self._handle(stream, await stream.receive(), opening)
        except PeerUnreachable:
            return
        except (WireError, NotAuthorized) as error:
            self.num_wire_errors += 1
            log.info("peer %s: stream ended: %s", short(stream.remote), error)
            with contextlib.suppress(PeerUnreachable, WireError):
                stream.send(Fault("malformed", str(error)[:500]))
        finally:
            for task in opening:
                task.cancel()
            if opening:
                await asyncio.wait(opening)
            for seat in [seat for seat in self._seats.values() if seat.client is stream]:
                self._free(seat)

    def _handle(self, stream: MessageStream, message: Message, opening: set[asyncio.Task[None]]) -> None:
        """Do what one message asks.

        Raises:
            WireError: it has no place here.
        """
        match message:
            case Wave():
                self._take_wave(stream, message)
            case Open():
                self._open(stream, message, opening)
            case Close():
                seat = self._seats.get(message.session)
                if seat is not None and (stream is seat.client or stream.remote == seat.predecessor):
                    self._free(seat)
            case Ping():
                stream.send(
                    Pong(
                        message.nonce,
                        self.state.value,
                        self.num_free_kv_tokens,
                        self.queue,
                        self.num_sessions,
                        self.num_wire_errors,
                    )
                )
            case Cancel():
                text = "cancelling a wave is not in this version"
                stream.send(Fault("unsupported", text, message.session, message.epoch, message.wave))
            case _:
                raise WireError(f"a peer takes no {type(message).__name__}")

    # --- sessions come and go

    def _open(self, stream: MessageStream, message: Open, opening: set[asyncio.Task[None]]) -> None:
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
        except (PeerError, WireError, NotAuthorized) as error:
            self._fail(seat, "hop-lost" if isinstance(error, PeerError) else "malformed", str(error))

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
                link = await dial(self._transport, hop.peer, hop.addresses)
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
                    self._fail(seat, message.code, message.text)
        except (PeerUnreachable, WireError) as error:
            for seat in [seat for seat in self._seats.values() if seat.next_hop is link]:
                self._fail(seat, "hop-lost", str(error))
        finally:
            await link.close()

    def _free(self, seat: Seat) -> None:
        """End a session here and at the hops after us."""
        if self._seats.get(seat.id) is seat:
            del self._seats[seat.id]
            if seat.next_hop is not None:
                with contextlib.suppress(PeerUnreachable):
                    seat.next_hop.send(Close(seat.id))

    def _fail(self, seat: Seat, code: str, text: str, wave: int = 0) -> None:
        """End a session and say why to its client."""
        if self._seats.get(seat.id) is not seat:
            return
        log.info("session ended: %s: %s", code, text)
        with contextlib.suppress(PeerUnreachable):
            seat.client.send(Fault(code, text[:500], seat.id, seat.epoch, wave))
        self._free(seat)

    async def _free_idle_sessions(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(IDLE_SECONDS / 10)
            for seat in list(self._seats.values()):
                if clock() - seat.last_active > IDLE_SECONDS:
                    self._fail(seat, "idle", f"the session said nothing for {IDLE_SECONDS:.0f} s")

    # --- waves

    def _take_wave(self, stream: MessageStream, wave: Wave) -> None:
        """Queue a wave; one that was seen before is answered again, or sent on to whom can answer."""
        seat = self._seats.get(wave.session)
        if seat is None:
            text = "this session is not open here: it was closed, or was idle for too long"
            stream.send(Fault("unknown-session", text, wave.session, wave.epoch, wave.wave))
            return
        if stream.remote != seat.predecessor:
            self.num_wire_errors += 1
            text = "waves of this session are taken from the hop before only"
            stream.send(Fault("unauthorized", text, wave.session, wave.epoch, wave.wave))
            return
        seat.last_active = asyncio.get_running_loop().time()
        if wave.epoch != seat.epoch:
            self._fail(seat, "unsupported", f"epoch {wave.epoch} of a session in epoch {seat.epoch}", wave.wave)
        elif wave.if_tip is not None or wave.last_hop is not None:
            self._fail(seat, "unsupported", "waves in flight and replays are not in this version", wave.wave)
        elif wave.wave <= seat.num_received:
            self._repeat(seat, wave)
        elif wave.wave != seat.num_received + 1 or len(seat.waiting) >= MAX_WAVES_OUTSTANDING:
            self._fail(
                seat, "out-of-order", f"wave {wave.wave} after {seat.num_received}, or too many at once", wave.wave
            )
        else:
            seat.num_received = wave.wave
            seat.waiting.append((wave, asyncio.get_running_loop().time()))
            self._work.set()

    def _repeat(self, seat: Seat, wave: Wave) -> None:
        """The same wave again: nothing is computed twice, and nothing overtakes the wave itself."""
        with contextlib.suppress(PeerUnreachable):
            if seat.next_hop is not None and wave.wave <= seat.num_passed_on:
                seat.next_hop.send(Wave(wave.session, wave.epoch, wave.wave, wave.commit, wave.start, wave.nodes))
            elif (answer := seat.answers.get(wave.wave)) is not None:
                seat.client.send(answer)

    async def _run_passes(self) -> None:
        """Waves that wait -> one pass -> where they go next; for ever."""
        clock = asyncio.get_running_loop().time
        while True:
            if not self.queue:
                self._work.clear()
                await self._work.wait()
                continue
            work = self._next_steps()
            if not work:
                continue  # those that came first could not be done; others may wait behind them
            engine = work[0][0].engine
            steps = [step for _, _, _, step in work]
            began = clock()
            try:
                outcomes: Sequence[Outcome] = await self._compute(lambda engine=engine, steps=steps: engine.run(steps))  # type: ignore[misc]
            except RuntimeError as error:  # what torch raises: out of memory, a device that is gone
                log.exception("a forward pass failed")
                outcomes = [Outcome(failure=f"the forward pass failed: {error}")] * len(steps)
            num_rows = sum(len(step.nodes) for step in steps)
            for (seat, wave, arrived, _), outcome in zip(work, outcomes, strict=True):
                timing = Timing(num_rows, max(0.0, began - arrived), max(0.0, clock() - began))
                self._pass_on(seat, wave, outcome, (*wave.timings, timing)[-MAX_HOPS:])

    def _next_steps(self) -> list[tuple[Seat, Wave, float, Step]]:
        """The waves of the next pass, one of a session, all for the same blocks; their trees have taken them."""
        seats = sorted((seat for seat in self._seats.values() if seat.waiting), key=lambda seat: seat.waiting[0][1])
        seats = [seat for seat in seats if seat.engine is seats[0].engine]
        sizes = [(len(seat.waiting[0][0].nodes), seat.waiting[0][0].start != 0) for seat in seats]
        work: list[tuple[Seat, Wave, float, Step]] = []
        for index in next_pass(sizes):
            seat = seats[index]
            wave, arrived = seat.waiting.popleft()
            try:
                work.append((seat, wave, arrived, _step(seat, wave)))
            except (ValueError, WireError) as error:
                self._fail(seat, "bad-wave", str(error), wave.wave)
        return work

    def _pass_on(self, seat: Seat, wave: Wave, outcome: Outcome, timings: tuple[Timing, ...]) -> None:
        """Rows to the next hop, a verdict to the client."""
        if self._seats.get(seat.id) is not seat:
            return  # closed while it was computed
        if outcome.failure is not None:
            self._fail(seat, "internal", outcome.failure, wave.wave)
            return
        try:
            if outcome.rows is not None and seat.next_hop is not None:
                rows = to_wire(outcome.rows)
                seat.next_hop.send(
                    Wave(seat.id, wave.epoch, wave.wave, wave.commit, wave.start, wave.nodes, rows, timings)
                )
                seat.num_passed_on = wave.wave
                return
            answer: Message = Done(seat.id, wave.epoch, wave.wave, timings)
            if outcome.walk is not None:
                answer = Verdict(seat.id, wave.epoch, wave.wave, outcome.walk.path, outcome.walk.next_token, timings)
            seat.answers[wave.wave] = answer
            seat.answers.pop(wave.wave - ANSWERS_KEPT, None)
            seat.client.send(answer)
        except PeerUnreachable as error:
            self._fail(seat, "hop-lost", str(error), wave.wave)
        except WireError as error:  # rows of more bytes than a message may have
            self._fail(seat, "bad-wave", str(error), wave.wave)


def _step(seat: Seat, wave: Wave) -> Step:
    """What a pass has to do for a wave.

    Raises:
        ValueError, WireError: it can't be done; the session must end then.
    """
    model, nodes = seat.engine.model, nodes_of(wave)
    highest = max(node.token for node in nodes)
    if highest >= model.vocab_size:
        raise WireError(f"token {highest} is not in the model's vocabulary of {model.vocab_size}")
    rows = None if model.is_first else from_wire(wave.rows, len(nodes), model.hidden_size)
    return seat.session.take(wave.commit, wave.start, nodes, rows)
