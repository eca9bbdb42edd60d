from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from routing.choice import worth_asking
from routing.domain import Span
from routing.health import Health
from tests.peer_records import record_of

NUM_BLOCKS, NOW = 12, 100.0
SPANS = st.lists(st.integers(0, NUM_BLOCKS), min_size=2, max_size=2, unique=True).map(sorted)
PEERS = st.lists(
    st.tuples(SPANS, st.integers(0, 4), st.sampled_from(["unknown", "answers", "failed", "shunned"])), max_size=20
)


@given(PEERS, st.integers(1, 16))
def test_who_is_asked_serves_all_that_is_served_and_nobody_is_shunned_without_need(
    peers: list[tuple[list[int], int, str]], limit: int
) -> None:
    health, records, seen_of = Health(), [], {}
    for number, ((start, end), place, seen) in enumerate(peers):
        record = record_of(
            f"{number:02}", num_blocks=NUM_BLOCKS, span=Span(start, end), addresses=(f"/ip4/8.{place}.1.1/tcp/1",)
        )
        records.append(record)
        seen_of[record.peer] = seen
        if seen == "answers":
            health.answered(record.peer, NOW, 0.1)
        elif seen != "unknown":
            health.failed(record.peer, NOW if seen == "shunned" else 0.0)
    asked = worth_asking(records, NUM_BLOCKS, health, NOW, limit=limit)
    assert len({record.peer for record in asked}) == len(asked)
    assert len(asked) <= max(limit, NUM_BLOCKS)
    whole = Span(0, NUM_BLOCKS)
    assert whole.missing(record.span for record in asked) == whole.missing(record.span for record in records)
    by_others = whole.missing(record.span for record in records if seen_of[record.peer] != "shunned")
    for record in asked:
        if seen_of[record.peer] == "shunned":
            assert any(max(gap.start, record.span.start) < min(gap.end, record.span.end) for gap in by_others)
    if len(asked) < limit:
        left_out = [record for record in records if record not in asked]
        assert all(seen_of[record.peer] == "shunned" for record in left_out)
