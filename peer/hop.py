"""The brain of a serving peer, as a state machine: events in, commands out, time an argument. Pure.

    OpenCame    -> Dial, then Send Opened when the next hop is there; or Send Busy, or Send Fault
    WaveCame    -> the wave waits, and as soon as no pass runs RunPass
    PassDone    -> Send the rows to the next hop as far as it has granted room, or a Verdict to the client; RunPass
    CreditCame  -> Send what waited for it
    CancelCame  -> what was not computed goes on without nodes
    CloseCame, StreamLost, DialFailed, FaultCame -> the session ends here and at the hops after, Drop its cache
    Tick        -> what is idle, or came too early, ends

Nothing here touches a socket, a clock or a tensor: ``peer.server`` is the shell for the network, an engine computes.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from peer import hop_events as on
from peer.admission import Refused, Served, admit, check_wave
from peer.early_waves import EarlyWaves
from peer.hop_events import Command, Dial, Drop, Event, HangUp, RunPass, Send, StreamId
from peer.passes import Passes
from peer.scheduler import Scheduler
from peer.seat import Seat, window_bytes
from routing.domain import PeerId, PeerState, SessionId
from routing.messages import Busy, Cancel, Close, Fault, Grant, Message, Opened, Pong, Wave
from routing.story import Story

IDLE_SECONDS = 600.0
RETRY_AFTER_SECONDS = 10.0
MAX_STREAMS_OF_A_PEER = 16
MAX_STREAMS = 512
MAX_DIALS_OF_A_STREAM = 8
"""Next hops that one client may make us dial at once."""


class Hop:
    """All sessions of one peer.

    Attributes:
        state: what Pongs say; the driver sets it.
        num_wire_errors: what others did that they must not.

    Args:
        served: the blocks and what is known of them.
        scheduler: chooses passes.
        window: bytes of waves that each session may have waiting here; by default what the rows need.
    """

    def __init__(self, served: Served, scheduler: Scheduler, window: int | None = None) -> None:
        self.state = PeerState.JOINING
        self.num_wire_errors = 0
        self.served = served
        self._window = window or window_bytes(served.hidden_size)
        self._streams: dict[StreamId, PeerId] = {}  # those that peers opened to us
        self._seats: dict[bytes, Seat] = {}
        self._next_hops: dict[PeerId, StreamId] = {}
        self._dialling: dict[PeerId, list[Seat]] = {}
        self._early = EarlyWaves()
        self._caches = count(1)
        self._passes = Passes(scheduler, self._window, served.hidden_size)
        self._commands: list[Command] = []
        self._story = Story()

    @property
    def num_sessions(self) -> int:
        """Sessions that have a seat."""
        return len(self._seats)

    @property
    def num_free_kv_tokens(self) -> int:
        """Tokens of KV cache that no session was granted."""
        return self.served.num_kv_tokens - sum(seat.num_granted for seat in self._seats.values())

    @property
    def queue(self) -> int:
        """Waves, or parts of them, that wait for a pass."""
        return sum(len(seat.waiting) for seat in self._seats.values())

    def handle(self, event: Event, now: float) -> list[Command]:
        """What is to be done about an event. ``now``: seconds on a clock that never goes back.

        Raises:
            IllegalEvent: it can't happen now: a mistake in the driver.
        """
        self._commands = []
        _HANDLERS[type(event)](self, event, now)
        self._story.add(type(event).__name__)
        self._run_pass(now)
        return self._commands

    # --- streams

    def _stream_opened(self, event: on.StreamOpened, _now: float) -> None:
        of_peer = sum(peer == event.peer for peer in self._streams.values())
        if of_peer >= MAX_STREAMS_OF_A_PEER or len(self._streams) >= MAX_STREAMS:
            text = f"too many streams: {of_peer} of yours, {len(self._streams)} in all; use one for all sessions"
            self._commands.append(HangUp(event.stream, Fault("busy", text)))
        self._streams[event.stream] = event.peer  # until it is lost

    def _stream_lost(self, event: on.StreamLost, _now: float) -> None:
        self._streams.pop(event.stream, None)
        self._early.drop_stream(event.stream)
        self._next_hops = {peer: stream for peer, stream in self._next_hops.items() if stream != event.stream}
        for seat in list(self._seats.values()):
            if seat.client == event.stream:
                self._free(seat)
            elif seat.next_hop == event.stream:
                self._fail(seat, "hop-lost", event.reason)
            elif seat.upstream == event.stream:
                seat.upstream = None

    def _ping_came(self, event: on.PingCame, _now: float) -> None:
        pong = Pong(
            event.message.nonce,
            self.state.value,
            self.num_free_kv_tokens,
            self.queue,
            self.num_sessions,
            self.num_wire_errors,
        )
        self._send(event.stream, pong)

    # --- sessions come and go

    def _open_came(self, event: on.OpenCame, now: float) -> None:
        """Give a session a seat, at once: a wave or a Close right behind must find it."""
        message, session = event.message, SessionId(event.message.session)
        try:
            admitted = admit(message, self.served)
            if session in self._seats:
                raise Refused("unsupported", "the session is open here already; changing its route is not possible yet")
        except Refused as error:
            self._early.drop_session(session)
            self._send(event.stream, Fault(error.code, str(error)[:500], session, message.epoch))
            return
        index, route = message.index, admitted.route
        next_hop = route.hops[index + 1] if index + 1 < len(route) else None
        is_new_dial = next_hop is not None and next_hop.peer not in {*self._next_hops, *self._dialling}
        num_dials = sum(seats[0].client == event.stream for seats in self._dialling.values() if seats)
        if message.num_kv_tokens > self.num_free_kv_tokens or (is_new_dial and num_dials >= MAX_DIALS_OF_A_STREAM):
            self._early.drop_session(session)
            self._send(event.stream, Busy(session, message.epoch, RETRY_AFTER_SECONDS))
            return
        peer = self._streams[event.stream]
        seat = Seat(
            id=session,
            epoch=message.epoch,
            client=event.stream,
            client_peer=peer,
            predecessor=route.hops[index - 1].peer if index else peer,
            span=admitted.hop.span,
            cache=next(self._caches),
            params=admitted.params,
            num_granted=message.num_kv_tokens,
            window=self._window,
            last_active=now,
            next_peer=next_hop.peer if next_hop is not None else None,
        )
        self._seats[session] = seat
        if next_hop is None or next_hop.peer in self._next_hops:
            self._opened(seat)
        elif next_hop.peer in self._dialling:
            self._dialling[next_hop.peer].append(seat)
        else:
            self._dialling[next_hop.peer] = [seat]
            self._commands.append(Dial(next_hop.peer, next_hop.addresses))
        for stream, wave in self._early.take(session):
            self._wave_came(on.WaveCame(stream, wave), now)

    def _next_hop_reached(self, event: on.NextHopReached, _now: float) -> None:
        self._next_hops[event.peer] = event.stream
        for seat in self._dialling.pop(event.peer, []):
            if self._seats.get(seat.id) is seat:
                self._opened(seat)

    def _dial_failed(self, event: on.DialFailed, _now: float) -> None:
        for seat in self._dialling.pop(event.peer, []):
            self._fail(seat, "hop-lost", event.reason)

    def _opened(self, seat: Seat) -> None:
        if seat.next_peer is not None:
            seat.next_hop = self._next_hops[seat.next_peer]
        self._send(seat.client, Opened(seat.id, seat.epoch, seat.num_granted, first_grant=seat.window))
        self._send_parts(seat)

    def _close_came(self, event: on.CloseCame, _now: float) -> None:
        self._early.drop_session(event.message.session)
        seat = self._seats.get(event.message.session)
        if seat is not None and (event.stream == seat.client or self._streams.get(event.stream) == seat.predecessor):
            self._free(seat)

    def _fault_came(self, event: on.FaultCame, _now: float) -> None:
        seat = self._seats.get(event.message.session)
        if seat is not None and seat.next_hop == event.stream:
            self._fail(seat, event.message.code, event.message.text)

    def _tick(self, _event: on.Tick, now: float) -> None:
        for seat in list(self._seats.values()):
            if now - seat.last_active > IDLE_SECONDS:
                self._fail(seat, "idle", f"the session said nothing for {IDLE_SECONDS:.0f} s")
        for stream, wave in self._early.expired(now):
            text = "this session is not open here: it was closed, or was idle for too long"
            self._send(stream, Fault("unknown-session", text, wave.session, wave.epoch, wave.wave))

    def _free(self, seat: Seat) -> None:
        """End a session here and at the hops after us."""
        if self._seats.get(seat.id) is not seat:
            return
        del self._seats[seat.id]
        self._commands.append(Drop((seat.cache,)))
        if seat.next_hop is not None:
            self._send(seat.next_hop, Close(seat.id))

    def _fail(self, seat: Seat, code: str, text: str, wave: int = 0) -> None:
        """End a session and say why to its client."""
        if self._seats.get(seat.id) is seat:
            self._send(seat.client, Fault(code, text[:500], seat.id, seat.epoch, wave))
            self._free(seat)

    # --- waves

    def _wave_came(self, event: on.WaveCame, now: float) -> None:
        wave = event.message
        seat = self._seats.get(wave.session)
        if seat is None:
            if not self._early.put(event.stream, wave, now):
                text = "this session is not open here, and too much came before its Open"
                self._send(event.stream, Fault("unknown-session", text, wave.session, wave.epoch, wave.wave))
            return
        if self._streams.get(event.stream) != seat.predecessor:
            self.num_wire_errors += 1
            text = "waves of this session are taken from the hop before only"
            self._send(event.stream, Fault("unauthorized", text, wave.session, wave.epoch, wave.wave))
            return
        seat.last_active, seat.upstream = now, event.stream
        if wave.epoch != seat.epoch:
            text = f"epoch {wave.epoch} of a session in epoch {seat.epoch}"
            self._fail(seat, "unsupported", text, wave.wave)
        elif seat.is_repeat(wave):
            self._repeat(seat, wave)
        else:
            try:
                check_wave(wave, self.served, seat.span)
                if (refusal := seat.refusal(wave)) is not None:
                    raise Refused(*refusal)
            except Refused as error:
                self._fail(seat, error.code, str(error), wave.wave)
                return
            seat.take(wave, now)
            self._go_on(seat)

    def _repeat(self, seat: Seat, wave: Wave) -> None:
        """The same wave again: nothing is computed twice, and nothing overtakes the wave itself."""
        if seat.next_hop is not None and wave.wave <= seat.num_passed_on:
            again = Wave(wave.session, wave.epoch, wave.wave, wave.commit, wave.start, ())
            self._send(seat.next_hop, again)
        elif (answer := seat.answers.get(wave.wave)) is not None:
            self._send(seat.client, answer)

    def _cancel_came(self, event: on.CancelCame, now: float) -> None:
        message: Cancel = event.message
        seat = self._seats.get(message.session)
        if seat is not None and event.stream == seat.client and message.epoch == seat.epoch:
            seat.last_active = now
            seat.cancel(message.wave, message.through)
            self._go_on(seat)

    def _credit_came(self, event: on.CreditCame, _now: float) -> None:
        message: Grant = event.message
        seat = self._seats.get(message.session)
        if seat is not None and event.stream == seat.next_hop and message.epoch == seat.epoch:
            seat.allow(message.num_bytes)
            self._send_parts(seat)

    def _go_on(self, seat: Seat) -> None:
        """Let go of what is cancelled, send what may be sent, tell the hop before how much more it may send."""
        for answer in seat.drop_cancelled():
            self._send(seat.client, answer)
        self._send_parts(seat)
        if seat.upstream is not None and (allowed := seat.grant()) is not None:
            self._send(seat.upstream, Grant(seat.id, seat.epoch, allowed))

    def _send_parts(self, seat: Seat) -> None:
        if seat.next_hop is not None:
            for part in seat.to_send():
                self._send(seat.next_hop, part)

    # --- passes

    def _run_pass(self, now: float) -> None:
        """Start a pass if none runs and anything waits. Who can't be computed is told."""
        plan, impossible = self._passes.begin(self._seats.values(), now)
        for seat, wave, text in impossible:
            self._fail(seat, "bad-wave", text, wave)
        if plan is not None:
            self._commands.append(RunPass(plan))

    def _pass_done(self, event: on.PassDone, now: float) -> None:
        if not self._passes.is_running:
            raise self._story.illegal("PassDone, and no pass runs")
        for seat, wave, result in self._passes.end(event):
            if self._seats.get(seat.id) is not seat:
                continue  # it ended while it was computed
            if isinstance(result, str):
                self._fail(seat, "internal", result, wave)
                continue
            seat.last_active = now
            answer = seat.computed(*result)
            if answer is not None:
                self._send(seat.client, answer)
            self._go_on(seat)

    def _send(self, stream: StreamId, message: Message) -> None:
        self._commands.append(Send(stream, message))

    def check(self) -> None:
        """Raise AssertionError unless what must always hold does; for tests."""
        for seat in self._seats.values():
            seat.check()
        facts = {
            "no more KV is granted than there is": self.num_free_kv_tokens >= 0,
            "a session has one seat": len({seat.cache for seat in self._seats.values()}) == len(self._seats),
            "a client's stream is there": all(seat.client in self._streams for seat in self._seats.values()),
            "a pass runs whenever it could": self._passes.is_running
            or not any(seat.waiting and not seat.unsent for seat in self._seats.values()),
        }
        if broken := [fact for fact, holds in facts.items() if not holds]:
            raise AssertionError(f"not any more: {'; '.join(broken)}")


_HANDLERS: dict[type[Event], Callable[[Hop, Any, float], None]] = {
    on.StreamOpened: Hop._stream_opened,
    on.StreamLost: Hop._stream_lost,
    on.PingCame: Hop._ping_came,
    on.OpenCame: Hop._open_came,
    on.WaveCame: Hop._wave_came,
    on.CancelCame: Hop._cancel_came,
    on.CloseCame: Hop._close_came,
    on.CreditCame: Hop._credit_came,
    on.FaultCame: Hop._fault_came,
    on.NextHopReached: Hop._next_hop_reached,
    on.DialFailed: Hop._dial_failed,
    on.PassDone: Hop._pass_done,
    on.Tick: Hop._tick,
}
