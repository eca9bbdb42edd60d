"""Wire messages in, waves out: what a peer does for sessions that others open at it.

One task reads each stream, one forms the passes. A wave waits in its session's queue, is computed in a pass with the
waves of other sessions, and goes on to the next hop as rows, or to the client as a verdict.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

from peer.batching import next_pass
from peer.engine import Outcome, Step
from peer.rows import from_wire, to_wire
from peer.seats import Seat, Seats
from peer.spans import SpanModel
from routing.domain import ModelId, PeerState, short
from routing.errors import NotAuthorized, PeerUnreachable, VersionMismatch, WireError
from routing.handshake import welcome
from routing.messages import Cancel, Close, Done, Fault, Message, Open, Ping, Pong, Timing, Unknown, Verdict, Wave
from routing.reserved import Fetch, Renew, Replay
from routing.streams import MessageStream
from routing.transport import Transport
from routing.wire import nodes_of, session_of
from routing.wire_types import MAX_HOPS, MAX_WAVES_OUTSTANDING

log = logging.getLogger(__name__)

ANSWERS_KEPT = 8

Compute = Callable[[Callable[[], list[Outcome]]], Awaitable[list[Outcome]]]
"""Runs a pass away from the event loop: on the one compute thread of the device."""


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
        self.is_serving = asyncio.Event()
        self.num_wire_errors = 0
        self._seats = Seats(span_model, model, transport, num_kv_tokens)
        self._transport = transport
        self._compute = compute
        self._work = asyncio.Event()

    @property
    def num_sessions(self) -> int:
        """Sessions that have a seat."""
        return len(self._seats)

    @property
    def num_free_kv_tokens(self) -> int:
        """Tokens of KV cache that no session was granted."""
        return self._seats.num_free_kv_tokens

    @property
    def queue(self) -> int:
        """Waves that wait for a pass."""
        return sum(len(seat.waiting) for seat in self._seats)

    async def run(self) -> None:
        """Serve until cancelled."""
        await self._transport.serve(self.serve_stream)
        self.state = PeerState.ONLINE
        self.is_serving.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._run_passes())
                tasks.create_task(self._seats.free_idle())
        finally:
            self.state = PeerState.DRAINING
            await self._seats.close()

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
            if not isinstance(error, VersionMismatch | NotAuthorized):  # the greeting has told those
                with contextlib.suppress(PeerUnreachable, WireError):
                    stream.send(Fault("malformed", str(error)[:500]))
        finally:
            for task in opening:
                task.cancel()
            if opening:
                await asyncio.wait(opening)
            for seat in [seat for seat in self._seats if seat.client is stream]:
                self._seats.free(seat)

    def _handle(self, stream: MessageStream, message: Message, opening: set[asyncio.Task[None]]) -> None:
        """Do what one message asks.

        Raises:
            WireError: it has no place here.
        """
        match message:
            case Wave():
                self._take_wave(stream, message)
            case Open():
                self._seats.open(stream, message, opening)
            case Close():
                seat = self._seats.get(message.session)
                if seat is not None and (stream is seat.client or stream.remote == seat.predecessor):
                    self._seats.free(seat)
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
            case Unknown():
                text = f"messages of kind {message.kind} are not in this version"
                stream.send(Fault("unsupported", text, message.session))
            case Renew() | Replay() | Fetch():
                text = f"{type(message).__name__} is not in this version"
                stream.send(Fault("unsupported", text, session_of(message)))
            case _:
                raise WireError(f"a peer takes no {type(message).__name__}")

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
            self._seats.fail(seat, "unsupported", f"epoch {wave.epoch} of a session in epoch {seat.epoch}", wave.wave)
        elif wave.if_tip is not None or wave.last_hop is not None:
            self._seats.fail(seat, "unsupported", "waves in flight and replays are not in this version", wave.wave)
        elif wave.wave <= seat.num_received:
            self._repeat(seat, wave)
        elif wave.wave != seat.num_received + 1 or len(seat.waiting) >= MAX_WAVES_OUTSTANDING:
            self._seats.fail(
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
        seats = sorted((seat for seat in self._seats if seat.waiting), key=lambda seat: seat.waiting[0][1])
        seats = [seat for seat in seats if seat.engine is seats[0].engine]
        sizes = [(len(seat.waiting[0][0].nodes), seat.waiting[0][0].start != 0) for seat in seats]
        work: list[tuple[Seat, Wave, float, Step]] = []
        for index in next_pass(sizes):
            seat = seats[index]
            wave, arrived = seat.waiting.popleft()
            try:
                work.append((seat, wave, arrived, _step(seat, wave)))
            except (ValueError, WireError) as error:
                self._seats.fail(seat, "bad-wave", str(error), wave.wave)
        return work

    def _pass_on(self, seat: Seat, wave: Wave, outcome: Outcome, timings: tuple[Timing, ...]) -> None:
        """Rows to the next hop, a verdict to the client."""
        if self._seats.get(seat.id) is not seat:
            return  # closed while it was computed
        if outcome.failure is not None:
            self._seats.fail(seat, "internal", outcome.failure, wave.wave)
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
            self._seats.fail(seat, "hop-lost", str(error), wave.wave)
        except WireError as error:  # rows of more bytes than a message may have
            self._seats.fail(seat, "bad-wave", str(error), wave.wave)


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
