"""The n-gram proposer: what stood before may come again."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from swarm.drafting import MIN_REACH, PENDING, Draft, NGramProposer, NoProposer


def after(text: Sequence[int]) -> NGramProposer:
    proposer = NGramProposer()
    proposer.extend(text)
    return proposer


def paths(draft: Draft) -> list[tuple[int, ...]]:
    """The tokens from the text's end to each node."""
    found: list[tuple[int, ...]] = []
    for node in draft:
        above = () if node.parent == PENDING else found[node.parent]
        found.append((*above, node.token))
    return found


def test_what_followed_the_end_of_the_text_before_is_proposed() -> None:
    assert paths(after([1, 2, 3, 4, 5, 1, 2]).propose(3, 8)) == [(3,), (3, 4), (3, 4, 5)]


def test_the_longest_match_comes_first() -> None:
    draft = after([9, 2, 7, 1, 2, 8, 5, 2, 6, 1, 2]).propose(64, 1)
    assert [node.token for node in draft] == [8, 6]
    assert [node.source for node in draft] == [2, 1]


def test_the_latest_of_equal_matches_comes_first() -> None:
    assert [node.token for node in after([1, 5, 1, 6, 1]).propose(64, 1)] == [6, 5]


def test_continuations_that_begin_alike_share_a_tree() -> None:
    draft = after([7, 1, 2, 3, 7, 1, 2, 4, 7, 1]).propose(64, 2)
    assert set(paths(draft)) >= {(2,), (2, 4), (2, 3)}
    assert len(paths(draft)) == len(set(paths(draft)))


def test_the_end_of_the_text_is_not_matched_with_itself() -> None:
    assert list(after([1, 2, 3]).propose(64, 8)) == []
    assert list(after([]).propose(64, 8)) == []
    assert paths(after([1, 1]).propose(64, 8)) == [(1,)]


def test_nothing_is_proposed_deeper_than_asked() -> None:
    proposer = after([1, 2, 3, 4, 5, 6] * 3)
    assert list(proposer.propose(64, 0)) == []
    assert max(map(len, paths(proposer.propose(64, 3)))) == 3
    assert len(proposer.propose(5, 60)) == 5


def test_learning_moves_the_chances() -> None:
    proposer = after([1, 2, 3, 1, 2])
    [before] = proposer.propose(1, 1)
    proposer.learn([before], [3])
    [better] = proposer.propose(1, 1)
    assert better.reach > before.reach
    for _ in range(20):
        proposer.learn([before], [9])
    draft = proposer.propose(1, 1)
    assert not draft or draft[0].reach < before.reach


def test_learning_follows_the_text_through_the_draft() -> None:
    proposer = after([1, 2, 3, 4, 5, 1, 2])
    draft = proposer.propose(3, 8)
    sources = [node.source for node in draft]
    assert sources == [2, 3, 4]
    before = [proposer._trials[source] for source in sources]
    proposer.learn(draft, [3, 9, 5])
    assert [proposer._trials[source] > trials for source, trials in zip(sources, before, strict=True)] == [
        True,
        True,
        False,
    ]


@given(
    text=st.lists(st.integers(0, 3), max_size=80),
    max_nodes=st.integers(0, 64),
    max_depth=st.integers(0, 20),
    rounds=st.integers(0, 5),
)
def test_every_draft_is_a_tree_in_the_order_of_its_reach(
    text: list[int], max_nodes: int, max_depth: int, rounds: int
) -> None:
    proposer = after(text)
    for token in range(rounds):
        proposer.learn(proposer.propose(64, 20), [token % 2] * 4)
        proposer.extend([token % 2])
    draft = proposer.propose(max_nodes, max_depth)
    assert len(draft) <= max_nodes
    for index, node in enumerate(draft):
        assert PENDING <= node.parent < index
        assert MIN_REACH <= node.reach <= 1.0
        assert index == 0 or node.reach <= draft[index - 1].reach
        assert node.parent == PENDING or node.reach <= draft[node.parent].reach
    assert all(len(path) <= max_depth for path in paths(draft))
    assert len(set(paths(draft))) == len(draft)
    said = proposer._text
    spoken = {tuple(said[i : i + n]) for i in range(len(said)) for n in range(1, max_depth + 1)}
    assert set(paths(draft)) <= spoken


def test_no_proposer_proposes_nothing() -> None:
    silent = NoProposer()
    silent.extend([1, 1, 1])
    silent.learn((), [1])
    assert list(silent.propose(64, 8)) == []
