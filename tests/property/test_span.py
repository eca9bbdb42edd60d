from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from routing.domain import Span

SPANS = st.builds(
    lambda start, length: Span(start, start + length), st.integers(min_value=0, max_value=24), st.integers(1, 12)
)


@given(SPANS)
def test_a_span_survives_being_written_and_read(span: Span) -> None:
    assert Span.parse(str(span)) == span


@given(SPANS, st.lists(SPANS, max_size=8))
def test_missing_blocks_are_those_of_a_set_difference_in_the_fewest_spans(whole: Span, served: list[Span]) -> None:
    gaps = whole.missing(served)
    blocks = [block for gap in gaps for block in range(gap.start, gap.end)]
    held = {block for span in served for block in range(span.start, span.end)}
    assert blocks == [block for block in range(whole.start, whole.end) if block not in held]
    assert all(left.end < right.start for left, right in pairwise(gaps))
