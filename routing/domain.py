"""The nouns of a swarm. Plain data: no I/O, no clock, no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_SPAN_TEXT = re.compile(r"([0-9]{1,6}):([0-9]{1,6})")


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Transformer blocks [start, end) of a model, at least one. Spans sort by where they start.

    Raises:
        ValueError: the span is empty or starts below block 0.
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"span {self} has no blocks: 0 <= START < END must hold")

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"

    @classmethod
    def parse(cls, text: str) -> Span:
        """Read what people type and ``str`` writes: ``0:10`` is the blocks 0 to 9.

        Raises:
            ValueError: the text is no span; the message says how one is written.
        """
        match = _SPAN_TEXT.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is no span: write START:END, for example 0:10 for the blocks 0 to 9")
        return cls(int(match[1]), int(match[2]))

    def covers(self, other: Span) -> bool:
        """Is every block of ``other`` in this span?"""
        return self.start <= other.start and other.end <= self.end

    def missing(self, served: Iterable[Span]) -> tuple[Span, ...]:
        """The blocks of this span that none of ``served`` has, as the fewest spans, in order."""
        gaps: list[Span] = []
        reached = self.start
        for span in sorted(served):
            if span.start >= self.end:
                break
            if span.start > reached:
                gaps.append(Span(reached, span.start))
            reached = max(reached, span.end)
        if reached < self.end:
            gaps.append(Span(reached, self.end))
        return tuple(gaps)
