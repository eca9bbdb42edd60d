"""A session's place at a hop: its tree, its queue, its credit. Pure; ``peer.hop`` decides what becomes of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from peer.hop_events import StreamId
from peer.plan import Ints, Outcome, PassPart
from routing.domain import PeerId, SamplingParams, SessionId, Span
from routing.messages import Done, Message, Rows, Stale, Timing, Verdict, Wave
from routing.tree import Node, TokenTree
from routing.wire import NODE_BYTES, credit_of
from routing.wire_types import MAX_HOPS, MAX_OPEN_NODES, MAX_VERIFIED_NODES, MAX_WAVES_OUTSTANDING

ANSWERS_KEPT = 8
_NUMBER_BYTES = 4  # of a row's numbers, at most: two hops may hold rows in different dtypes


@dataclass(slots=True, eq=False)
class Queued:
    """A wave, or the part of one that came in one message.

    Attributes:
        wave: as it came.
        arrived: when.
        num_taken: nodes that passes have computed already.
        num_verified: the last nodes, which must be computed together.
    """

    wave: Wave
    arrived: float
    num_taken: int = 0
    num_verified: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_verified = _num_verified(self.wave)

    @property
    def num_left(self) -> int:
        """Nodes that no pass has computed yet."""
        return len(self.wave.nodes) - self.num_taken


@dataclass(slots=True, eq=False)
class Seat:
    """See the module.

    Attributes:
        id: the session's.
        epoch: which of the session's routes this is.
        client: the stream on which it was opened; answers go there.
        client_peer: who that is.
        predecessor: the only peer whose waves are taken.
        span: the blocks that the route wants of us.
        cache: number of its cache in the engine.
        params: how its tokens are drawn.
        num_granted: slots of KV cache that it may use.
        window: bytes of waves that it may have waiting here; of the next hop the same is expected.
        last_active: when it was last heard of.
        next_peer: the next hop; None at the last one.
        next_hop: the stream that rows go down, once it is there.
        upstream: the stream on which waves come.
        waiting: waves and parts that have not been computed.
        num_received: the last wave that has come in whole.
        next_part: of the wave after it, how many nodes have come.
        num_passed_on: the last wave that has gone to the next hop whole.
        unsent: parts that wait for credit of the next hop.
        answers: the last answers that were given, by wave.
        cancelled: waves that are not wanted any more, first and last.
        is_computing: is it part of the pass that runs?
    """

    id: SessionId
    epoch: int
    client: StreamId
    client_peer: PeerId
    predecessor: PeerId
    span: Span
    cache: int
    params: SamplingParams
    num_granted: int
    window: int
    last_active: float
    next_peer: PeerId | None = None
    next_hop: StreamId | None = None
    upstream: StreamId | None = None
    tree: TokenTree = field(default_factory=TokenTree)
    waiting: deque[Queued] = field(default_factory=deque)
    num_received: int = 0
    next_part: int = 0
    num_passed_on: int = 0
    unsent: deque[Wave] = field(default_factory=deque)
    answers: dict[int, Message] = field(default_factory=dict)
    cancelled: tuple[int, int] = (0, 0)
    is_computing: bool = False
    _taken_bytes: int = 0  # of waves, since the Open
    _used_bytes: int = 0  # of them, those that do not wait any more
    _told_bytes: int = 0  # that the hop before may send
    _sent_bytes: int = 0
    _allowed_bytes: int = 0  # that the next hop takes
    _timing: Timing | None = None  # of the parts of the first waiting wave that were computed
    _forwarded: tuple[int, int] = (0, 0)  # the last wave that went on, and how many nodes of it

    def __post_init__(self) -> None:
        self._told_bytes = self._allowed_bytes = self.window

    # --- what comes in

    def is_repeat(self, wave: Wave) -> bool:
        """Has this wave come before?"""
        return wave.wave <= self.num_received

    def refusal(self, wave: Wave) -> tuple[str, str] | None:
        """Why a wave can't be taken now, as a code and a text; None if it can."""
        if wave.wave != self.num_received + 1 or wave.first_row != self.next_part:
            text = f"wave {wave.wave} after {self.num_received} and {self.next_part} nodes of the next one"
            return "out-of-order", f"{text}, not from node {wave.first_row} on"
        ids = [node[0] for node in wave.nodes]
        if wave.start and not wave.is_cancelled and (wave.start in ids) != wave.is_last_part:
            return "bad-wave", f"the walk is to start at node {wave.start}, which is not in the wave"
        if _num_verified(wave) > MAX_VERIFIED_NODES:
            return "bad-wave", f"more than {MAX_VERIFIED_NODES} nodes are to be verified at once"
        if wave.first_row + len(ids) > self.num_granted:
            return "bad-wave", f"the wave is longer than the {self.num_granted} tokens that its session was granted"
        if self.waiting and wave.wave - self.waiting[0].wave.wave >= MAX_WAVES_OUTSTANDING:
            return "out-of-order", f"wave {wave.wave} while {self.waiting[0].wave.wave} waits: too many at once"
        if self._taken_bytes + credit_of(wave) > self._told_bytes:
            return "no-credit", f"the wave is more than the {self._told_bytes} bytes that were granted"
        return None

    def take(self, wave: Wave, now: float) -> None:
        """Queue a wave that nothing speaks against."""
        self._taken_bytes += credit_of(wave)
        self.waiting.append(Queued(wave, now))
        if wave.is_last_part:
            self.num_received, self.next_part = wave.wave, 0
        else:
            self.next_part += len(wave.nodes)

    def grant(self) -> int | None:
        """Bytes that the hop before may send in all, if that has grown by enough to tell it."""
        allowed = self._used_bytes + self.window
        if allowed - self._told_bytes < self.window // 2:
            return None
        self._told_bytes = allowed
        return allowed

    def cancel(self, first: int, last: int) -> None:
        """These waves are not wanted any more, as far as they were not computed."""
        last = min(last, first + MAX_WAVES_OUTSTANDING - 1)
        before = self.cancelled
        touches = before[0] <= last + 1 and first <= before[1] + 1
        self.cancelled = (min(first, before[0]), max(last, before[1])) if touches else (first, last)

    def is_cancelled(self, wave: int) -> bool:
        """Is the wave not wanted any more?"""
        return self.cancelled[0] <= wave <= self.cancelled[1]

    # --- what is computed

    def next_pass_part(self, num_rows: int) -> PassPart:
        """Take so many nodes of the first waiting wave into the tree, for a pass.

        Raises:
            ValueError: an unknown commit or parent, an id that was used, or no room. The session must end then.
        """
        queued = self.waiting[0]
        wave = queued.wave
        first, moves = self.tree.num_committed + self.tree.num_open, np.zeros(0, np.int64)
        if not wave.first_row and not queued.num_taken:
            first, moves = self._settle(wave.commit, wave.rewind)
        begin, end = queued.num_taken, queued.num_taken + num_rows
        entries = wave.nodes[begin:end]
        if first + len(moves) + len(entries) > self.num_granted:
            raise ValueError(f"the session is longer than the {self.num_granted} tokens that it was granted")
        if self.tree.num_open + len(entries) > MAX_OPEN_NODES:
            raise ValueError(f"the session would have more than {MAX_OPEN_NODES} open nodes")
        for entry in entries:
            self.tree.add(Node(*entry))
        ids, parents, tokens = np.array(entries, np.int64).reshape(-1, 3).T
        queued.num_taken = end
        start = np.flatnonzero(ids == wave.start) if wave.start else ids[:0]
        return PassPart(
            cache=self.cache,
            max_tokens=self.num_granted,
            params=self.params,
            first=first,
            moves=moves,
            num_committed=self.tree.num_committed,
            ids=ids,
            parents=parents,
            tokens=tokens,
            open_positions=self.tree.open_positions(),
            sees=self.tree.sees(len(entries)),
            verify_from=int(start[0]) if len(start) else None,
            rows=None if wave.rows is None or not entries else _rows_between(wave.rows, begin, end),
        )

    def _settle(self, commit: int, rewind: bool) -> tuple[int, Ints]:
        """Make a node final. Slots below the first number stay; of the others those that are named, in this order."""
        tree = self.tree
        num_committed = tree.num_committed
        if tree.is_committed(commit):
            if rewind:
                tree.rewind(commit)
            return tree.num_committed + tree.num_open, np.zeros(0, np.int64)
        slot_of = {node.id: num_committed + index for index, node in enumerate(tree.open_nodes)}
        kept = [slot_of[node] for node in tree.commit(commit)]
        if rewind:
            tree.prune()
        kept += [slot_of[node.id] for node in tree.open_nodes]
        if kept == list(range(num_committed, num_committed + len(kept))):
            return num_committed + len(kept), np.zeros(0, np.int64)
        return num_committed, np.array(kept, np.int64)

    def computed(self, queued: Queued, num_rows: int, outcome: Outcome, timing: Timing) -> Message | None:
        """The first waiting wave, or ``num_rows`` of it, was computed: what goes to the client, if anything does.

        What goes to the next hop waits in ``unsent``.
        """
        wave = queued.wave
        begin = queued.num_taken - num_rows
        is_end = queued.num_taken == len(wave.nodes)
        is_whole = is_end and wave.is_last_part
        if (before := self._timing) is not None:
            num, seconds = before.num_rows + timing.num_rows, before.compute_seconds + timing.compute_seconds
            timing = Timing(num, before.queue_seconds, seconds)
        self._timing = None if is_whole else timing
        timings = (*wave.timings, timing)[-MAX_HOPS:] if is_whole else ()
        if is_end:
            self._leave_queue(queued)
        if self.next_peer is not None:
            self._forwarded = (wave.wave, wave.first_row + queued.num_taken)
            self.unsent.append(
                Wave(
                    self.id,
                    wave.epoch,
                    wave.wave,
                    wave.commit,
                    wave.start,
                    wave.nodes[begin : queued.num_taken],
                    outcome.rows,
                    timings,
                    rewind=wave.rewind,
                    first_row=wave.first_row + begin,
                    is_last_part=is_whole,
                )
            )
            return None
        if not is_whole:
            return None
        if outcome.walk is None:
            return self._answer(Done(self.id, wave.epoch, wave.wave, timings))
        path, next_token = outcome.walk.path, outcome.walk.next_token
        return self._answer(Verdict(self.id, wave.epoch, wave.wave, path, next_token, timings))

    def drop_cancelled(self) -> list[Message]:
        """Let go of cancelled waves at the head of the queue: what the client has to hear.

        The next hop gets each of them without what was not computed, once all parts of it have come.
        """
        answers: list[Message] = []
        while self.waiting and not self.is_computing and self._is_dead(self.waiting[0].wave):
            queued = self.waiting[0]
            wave = queued.wave
            self._leave_queue(queued)
            if not wave.is_last_part:
                continue
            self._timing = None
            if self.next_peer is None:
                answers.append(self._answer(Stale(self.id, wave.epoch, wave.wave)))
                continue
            sent = self._forwarded[1] if self._forwarded[0] == wave.wave else 0
            husk = Wave(self.id, wave.epoch, wave.wave, 0, wave.start, (), first_row=sent, is_cancelled=True)
            self.unsent.append(husk)
        return answers

    # --- what goes to the next hop

    def to_send(self) -> list[Wave]:
        """The parts that the next hop has granted room for; from now on they are sent."""
        parts: list[Wave] = []
        while self.unsent and self._sent_bytes + credit_of(self.unsent[0]) <= self._allowed_bytes:
            part = self.unsent.popleft()
            self._sent_bytes += credit_of(part)
            if part.is_last_part:
                self.num_passed_on = part.wave
            parts.append(part)
        return parts

    def allow(self, num_bytes: int) -> None:
        """The next hop takes so many bytes in all; what came before is never taken back."""
        self._allowed_bytes = max(self._allowed_bytes, num_bytes)

    def check(self) -> None:
        """Raise AssertionError unless what must always hold does."""
        facts = {
            "nobody takes more than was granted": self._used_bytes <= self._taken_bytes <= self._told_bytes,
            "nobody grants more than a window": self._told_bytes <= self._used_bytes + self.window,
            "nothing is sent without credit": self._sent_bytes <= self._allowed_bytes,
            "few answers are kept": len(self.answers) <= ANSWERS_KEPT,
            "open nodes are bounded": self.tree.num_open <= MAX_OPEN_NODES,
        }
        if broken := [fact for fact, holds in facts.items() if not holds]:
            raise AssertionError(f"not any more: {'; '.join(broken)}")

    def _is_dead(self, wave: Wave) -> bool:
        return wave.is_cancelled or self.is_cancelled(wave.wave)

    def _answer(self, answer: Verdict | Done | Stale) -> Message:
        self.answers[answer.wave] = answer
        self.answers.pop(answer.wave - ANSWERS_KEPT, None)
        return answer

    def _leave_queue(self, queued: Queued) -> None:
        self.waiting.remove(queued)
        self._used_bytes += credit_of(queued.wave)


def window_bytes(width: int) -> int:
    """Bytes of waves of one session that a hop holds for the hop before, by the numbers in a row.

    Half of it, which is what may be left before a new grant, holds the largest part that a hop ever sends.
    """
    return max(1 << 20, 2 * (MAX_VERIFIED_NODES + 32) * (width * _NUMBER_BYTES + NODE_BYTES))


def most_rows(window: int, width: int) -> int:
    """Rows that a hop may send at once, so that half a window holds them."""
    return max(1, window // 2 // (width * _NUMBER_BYTES + NODE_BYTES) - 1)


def _num_verified(wave: Wave) -> int:
    """Nodes from the walk's start on; 0 in a part without the start."""
    ids = [node[0] for node in wave.nodes]
    return len(ids) - ids.index(wave.start) if wave.start in ids else 0


def _rows_between(rows: Rows, begin: int, end: int) -> Rows:
    size = len(rows.data) // rows.num_rows
    return Rows(rows.dtype, end - begin, rows.width, rows.data[begin * size : end * size])
