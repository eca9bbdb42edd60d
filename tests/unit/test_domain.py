from __future__ import annotations

import pytest

from routing.domain import Hop, ModelId, PeerId, Route, SamplingParams, Span


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


def test_a_route_must_chain_from_block_0() -> None:
    a, b = Hop(PeerId("a" * 20), Span(0, 2)), Hop(PeerId("b" * 20), Span(2, 6))
    assert Route((a, b)).num_blocks == 6
    assert str(Route((a, b))) == "0:2 at ..aaaaaa, 2:6 at ..bbbbbb"
    for hops in ((b,), (a, a), ()):
        with pytest.raises(ValueError, match="route"):
            Route(hops)


def test_a_model_identity_survives_being_written_and_read() -> None:
    model = ModelId("smollm2-135m-instruct", "0123abcd", "89abcdef")
    assert ModelId.parse(str(model)) == model
    for wrong in (
        "",
        "name",
        "Name@0123abcd-89abcdef",
        "name@0123abcd",
        "name@0123abcd-89abcdeg",
        "a" * 99 + str(model),
    ):
        with pytest.raises(ValueError, match="no model identity"):
            ModelId.parse(wrong)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top-k"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.1}, "top-p"),
        ({"seed": -1}, "seed"),
    ],
)
def test_sampling_out_of_range_is_refused_by_name(params: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SamplingParams(**params)  # type: ignore[arg-type]
