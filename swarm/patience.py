"""How long a client waits for its hops. Pure: a driver says how long it has waited."""

from __future__ import annotations

ANSWER_SECONDS = 60.0
ROW_SECONDS = 0.5
"""What each further row of the waves under way adds: a slow peer has to compute them all."""
SLEPT_FACTOR = 2.0


class Patience:
    """The time until a hop is taken to hang.

    A wait that takes much longer than it should have means that this machine slept, or stood still: the answer may
    lie there already, so the time begins anew.

    Attributes:
        seconds: in all.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._left = seconds

    @classmethod
    def for_rows(cls, num_rows: int) -> Patience:
        """For an answer to waves of so many nodes."""
        return cls(ANSWER_SECONDS + ROW_SECONDS * max(0, num_rows - 1))

    @property
    def is_over(self) -> bool:
        """Has it been too long?"""
        return self._left <= 0

    def waited(self, wanted_seconds: float, took_seconds: float) -> bool:
        """Nothing came in a wait that should have taken ``wanted_seconds``. Was that really so long?"""
        if took_seconds > SLEPT_FACTOR * wanted_seconds:
            self._left = self.seconds
            return False
        self._left -= took_seconds
        return True
