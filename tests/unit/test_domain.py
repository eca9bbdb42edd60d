from __future__ import annotations

import pytest

from routing.domain import Span


def test_a_span_is_read_as_it_is_written() -> None:
    span = Span.parse(" 10:20 ")
    assert span == Span(10, 20)
    assert str(span) == "10:20"
    assert len(span) == 10


@pytest.mark.parametrize("text", ["", "10", "a:b", "1:2:3", "-1:2", "1.0:2", "0 : 10", "0:٣", "0:99999999999"])
def test_a_text_that_is_no_span_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no span: write START:END, for example 0:10"):
        Span.parse(text)


@pytest.mark.parametrize("text", ["5:5", "9:3", "0:0"])
def test_a_span_without_blocks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="has no blocks"):
        Span.parse(text)


def test_a_span_below_block_0_is_refused() -> None:
    with pytest.raises(ValueError, match="has no blocks"):
        Span(-1, 3)


def test_a_span_covers_itself_and_what_lies_in_it_and_nothing_that_leaves_it() -> None:
    span = Span(3, 9)
    assert span.covers(span)
    assert span.covers(Span(4, 8))
    assert not span.covers(Span(2, 5))
    assert not span.covers(Span(8, 10))


def test_missing_blocks_are_named_between_before_and_after_the_served_ones() -> None:
    assert Span(0, 30).missing([Span(20, 25), Span(5, 12), Span(10, 15)]) == (Span(0, 5), Span(15, 20), Span(25, 30))
    assert Span(0, 30).missing([]) == (Span(0, 30),)
    assert Span(0, 30).missing([Span(10, 30), Span(0, 10)]) == ()
    assert Span(10, 20).missing([Span(0, 12), Span(18, 40), Span(50, 60)]) == (Span(12, 18),)
