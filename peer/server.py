"""The shell around a hop: streams and an engine outside, its events and commands inside. No decision is made here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import count
from typing import assert_never

from peer.hop import Hop
from peer.hop_events import (
    CancelCame,
    CloseCame,
    Command,
    CreditCame,
    Dial,
    DialFailed,
    Drop,
    Event,
    FaultCame,
    HangUp,
    NextHopReached,
    OpenCame,
    PassDone,
    PingCame,
    RunPass,
    Send,
    StreamId,
    StreamLost,
    StreamOpened,
    Tick,
    WaveCame,
)
from peer.plan import Engine, Outcome, PassPlan
from routing.domain import PeerId, PeerState, short
from routing.errors import NotAuthorized, PeerError, PeerUnreachable, VersionMismatch, WireError
from routing.handshake import welcome
from routing.links import Link, Links
from routing.messages import Cancel, Close, Fault, Grant, Message, Open, Ping, Unknown, Wave
from routing.reserved import Fetch, Handover, Leaving, Part, Renew, Replay
from routing.streams import MessageStream
from routing.transport import Transport
from routing.wire import session_of

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0

Compute = Callable[[Callable[[], Sequence[Outcome]]], Awaitable[Sequence[Outcome]]]
"""Runs something away from the event loop: on the one compute thread of the device, one after the other."""


class Server:
    """Serves one span. ``run`` does the work; everything else is called by the transport.

    Args:
        hop: decides everything.
        engine: computes.
        transport: where streams come from and next hops are dialled.
        compute: runs the engine without holding up the loop.
    """

    def __init__(self, hop: Hop, engine: Engine, transport: Transport, compute: Compute) -> None:
        self.hop = hop
        self.is_serving = asyncio.Event()
        self._engine = engine
        self._transport = transport
        self._compute = compute
        self._links = Links(transport)
        self._numbers = count(1)
        self._streams: dict[StreamId, MessageStream | Link] = {}
        self._link_ids: dict[Link, StreamId] = {}
        self._ends: dict[StreamId, asyncio.Timeout] = {}  # of the streams that others opened
        self._last_words: dict[StreamId, Fault] = {}
        self._events: deque[Event] = deque()
        self._is_handling = False
        self._jobs: asyncio.Queue[PassPlan | tuple[int, ...]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until cancelled."""
        await self._transport.serve(self.serve_stream)
        self.hop.state = PeerState.ONLINE
        self.is_serving.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._run_engine())
                tasks.create_task(self._tick())
        finally:
            self.hop.state = PeerState.DRAINING
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            await self._links.close()

    async def serve_stream(self, stream: MessageStream) -> None:
        """One stream that somebody opened, until it ends."""
        number = StreamId(next(self._numbers))
        self._streams[number] = stream
        try:
            async with asyncio.timeout(None) as self._ends[number]:
                self.happen(StreamOpened(number, stream.remote))
                await welcome(stream)
                while True:
                    self._take(number, stream, await stream.receive())
        except TimeoutError:  # the hop hangs up
            with contextlib.suppress(PeerUnreachable):
                stream.send(self._last_words[number])
        except PeerUnreachable:
            return
        except (WireError, NotAuthorized) as error:
            self.hop.num_wire_errors += 1
            log.info("peer %s: stream ended: %s", short(stream.remote), error)
            if not isinstance(error, VersionMismatch | NotAuthorized):  # the greeting has told those
                with contextlib.suppress(PeerUnreachable, WireError):
                    stream.send(Fault("malformed", str(error)[:500]))
        finally:
            del self._streams[number], self._ends[number]
            self._last_words.pop(number, None)
            self.happen(StreamLost(number, "its stream has ended"))

    def happen(self, event: Event) -> None:
        """Tell the hop of an event and do what it wants; what follows from that comes after it."""
        self._events.append(event)
        if self._is_handling:
            return  # the call that is under way takes it
        clock = asyncio.get_running_loop().time
        self._is_handling = True
        try:
            while self._events:
                for command in self.hop.handle(self._events.popleft(), clock()):
                    self._perform(command)
        finally:
            self._is_handling = False

    def _take(self, number: StreamId, stream: MessageStream, message: Message) -> None:
        """A message as an event.

        Raises:
            WireError: it has no place here.
        """
        match message:
            case Wave():
                self.happen(WaveCame(number, message))
            case Open():
                self.happen(OpenCame(number, message))
            case Cancel():
                self.happen(CancelCame(number, message))
            case Close():
                self.happen(CloseCame(number, message))
            case Ping():
                self.happen(PingCame(number, message))
            case Unknown():
                text = f"messages of kind {message.kind} are not in this version"
                stream.send(Fault("unsupported", text, message.session))
            case Renew() | Replay() | Leaving() | Handover() | Fetch() | Part():
                text = f"{type(message).__name__} is not in this version"
                stream.send(Fault("unsupported", text, session_of(message)))
            case Fault() if message.code == "unsupported":
                log.info("peer %s: %s", short(stream.remote), message.text)
            case _:
                raise WireError(f"a peer takes no {type(message).__name__}")

    def _perform(self, command: Command) -> None:
        match command:
            case Send(number, message):
                self._send(number, message)
            case RunPass(plan):
                self._jobs.put_nowait(plan)
            case Drop(caches):
                self._jobs.put_nowait(caches)
            case Dial(peer, addresses):
                task = asyncio.create_task(self._dial(peer, addresses), name=f"dial {short(peer)}")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case HangUp(number, fault):
                self._last_words[number] = fault
                self._ends[number].reschedule(0.0)
            case other:
                assert_never(other)

    def _send(self, number: StreamId, message: Message) -> None:
        stream = self._streams.get(number)
        try:
            if stream is not None:
                stream.send(message)
        except PeerUnreachable:
            return  # its reader says so too
        except WireError as error:  # rows of more bytes than a message may have
            if isinstance(message, Wave):
                fault = Fault("bad-wave", str(error), message.session, message.epoch, message.wave)
                self._events.append(FaultCame(number, fault))

    async def _dial(self, peer: PeerId, addresses: Sequence[str]) -> None:
        try:
            link = await self._links.get(peer, addresses)
        except PeerError as error:
            self.happen(DialFailed(peer, str(error)))
            return
        number = self._link_ids.get(link)
        if number is None:
            number = self._link_ids[link] = StreamId(next(self._numbers))
            self._streams[number] = link
        self.happen(NextHopReached(peer, number))
        link.subscribe(b"", lambda _, message: self._hear(link, number, message))

    def _hear(self, link: Link, number: StreamId, message: Message | PeerError) -> None:
        """What a next hop says."""
        match message:
            case Grant():
                self.happen(CreditCame(number, message))
            case Fault():
                self.happen(FaultCame(number, message))
            case PeerError():
                self._streams.pop(number, None)
                self._link_ids.pop(link, None)
                self.happen(StreamLost(number, str(message)))

    async def _run_engine(self) -> None:
        """Passes and freed caches, one after the other; for ever."""
        clock = asyncio.get_running_loop().time
        while True:
            job = await self._jobs.get()
            began = clock()
            failure: str | None = None
            outcomes: Sequence[Outcome] = ()
            try:
                outcomes = await self._compute(partial(self._do, job))
            except Exception as error:  # whatever it is, it ends these sessions and not the peer
                log.exception("the engine failed")
                failure = f"the forward pass failed: {error}"
            if isinstance(job, PassPlan):
                self.happen(PassDone(outcomes, clock() - began, failure))

    def _do(self, job: PassPlan | tuple[int, ...]) -> Sequence[Outcome]:
        """On the compute thread."""
        if isinstance(job, PassPlan):
            return self._engine.run(job)
        self._engine.forget(job)
        return ()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.happen(Tick())
