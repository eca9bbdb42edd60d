"""What a state machine remembers for the day when something goes wrong. Pure."""

from __future__ import annotations

from collections import deque


class IllegalEvent(Exception):
    """An event that can't happen now: a mistake in the driver. The text tells the machine's story."""


class Story:
    """The last few lines of what happened."""

    def __init__(self, num_lines: int = 12) -> None:
        self._lines: deque[str] = deque(maxlen=num_lines)

    def add(self, line: str) -> None:
        """One more thing that happened."""
        self._lines.append(line)

    def illegal(self, what: str) -> IllegalEvent:
        """The error for what can't happen now."""
        return IllegalEvent(f"{what}; before it: {', '.join(self._lines) or 'nothing'}")
