"""The pass that runs now: made from what the seats have waiting, and its outcomes given back to them. Pure."""

from __future__ import annotations

from collections.abc import Collection

from peer.hop_events import PassDone
from peer.plan import Outcome, PassPart, PassPlan
from peer.scheduler import Scheduler, Waiting
from peer.seat import Queued, Seat, most_rows
from routing.messages import Timing

Computed = tuple[Queued, int, Outcome, Timing]
"""What ``Seat.computed`` wants to know."""


class Passes:
    """One pass at a time.

    Args:
        scheduler: chooses what is in it.
        window: bytes of waves that the next hop holds of each session.
        width: numbers in a row.
    """

    def __init__(self, scheduler: Scheduler, window: int, width: int) -> None:
        self._scheduler = scheduler
        self._max_part = most_rows(window, width)
        self._running: list[tuple[Seat, Queued, PassPart]] = []
        self._began = 0.0

    @property
    def is_running(self) -> bool:
        """Is the engine at work?"""
        return bool(self._running)

    def begin(self, seats: Collection[Seat], now: float) -> tuple[PassPlan | None, list[tuple[Seat, int, str]]]:
        """The next pass, if none runs and there is one; the trees have taken its nodes then.

        A seat whose rows wait for the next hop waits too: so nobody's rows pile up here.

        Returns:
            The plan, and who could not be computed: the seat, its wave, and why. Their sessions must end.
        """
        impossible: list[tuple[Seat, int, str]] = []
        if self._running:
            return None, impossible
        ready = [seat for seat in seats if seat.waiting and not seat.unsent]
        while ready:
            failed: set[Seat] = set()
            for index, num_rows in self._scheduler.next_pass([self._waiting(seat) for seat in ready], now):
                seat, queued = ready[index], ready[index].waiting[0]
                try:
                    self._running.append((seat, queued, seat.next_pass_part(num_rows)))
                    seat.is_computing = True
                except ValueError as error:
                    impossible.append((seat, queued.wave.wave, str(error)))
                    failed.add(seat)
            if self._running:
                self._began = now
                span = self._running[0][0].span
                return PassPlan(span, tuple(part for _, _, part in self._running)), impossible
            ready = [seat for seat in ready if seat not in failed]  # others may wait behind who can't be computed
        return None, impossible

    def end(self, event: PassDone) -> list[tuple[Seat, int, Computed | str]]:
        """The pass has ended: for each of its seats the wave, and what came of it or why nothing did."""
        running, self._running = self._running, []
        num_rows = sum(len(part) for _, _, part in running)
        failed, outcomes = event.failure, event.outcomes
        if failed is None and len(outcomes) != len(running):
            failed = f"the engine gave {len(outcomes)} outcomes for {len(running)} parts"
        if failed is None:
            self._scheduler.cost.observe(num_rows, event.seconds)
        else:
            outcomes = [Outcome(failure=failed)] * len(running)
        results: list[tuple[Seat, int, Computed | str]] = []
        for (seat, queued, part), outcome in zip(running, outcomes, strict=True):
            seat.is_computing = False
            failure = outcome.failure
            timing = Timing(num_rows, max(0.0, self._began - queued.arrived), event.seconds)
            result = (queued, len(part), outcome, timing) if failure is None else failure
            results.append((seat, queued.wave.wave, result))
        return results

    def _waiting(self, seat: Seat) -> Waiting:
        queued = seat.waiting[0]
        return Waiting(
            session=seat.cache,
            client=seat.client_peer,
            span=seat.span,
            num_rows=queued.num_left,
            num_verified=queued.num_verified,
            max_part=self._max_part,
            arrived=queued.arrived,
        )
