"""The size of the tree in worlds that are plain functions: what a round costs, and how often a draft is right."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swarm.drafting import PENDING, DraftNode
from swarm.speculation import MAX_TREE, Speculation

GOLDEN = 0.6180339887498949
DEPTH = 12


class World:
    """A chain of drafts whose proposer learns how often it is right, as the n-gram proposer does.

    Args:
        seconds: of a round with so many drafted nodes.
        chance: that a drafted token is right if those before it were.
    """

    def __init__(self, seconds: Callable[[int], float], chance: float, fixed: int | None = None) -> None:
        self.seconds = seconds
        self.chance = chance
        self.speculation = Speculation(fixed)
        self.sizes: list[int] = []
        self._hits, self._trials = 3.2, 4.0
        self._num_draws = 0

    def run(self, num_rounds: int) -> float:
        """Tokens per second over so many rounds."""
        num_tokens, seconds = 0, 0.0
        for _ in range(num_rounds):
            believed = self._hits / self._trials
            draft = [DraftNode(i - 1 if i else PENDING, 0, believed ** (i + 1)) for i in range(DEPTH)]
            sent = len(self.speculation.cut(draft))
            self.sizes.append(sent)
            took = self.seconds(sent)
            self.speculation.observe(sent, took)
            num_right = 0
            while self._learn() and num_right < sent:
                num_right += 1
            num_tokens += num_right + 1
            seconds += took
        return num_tokens / seconds

    def _learn(self) -> bool:
        """Is the next drafted token right? The same in every run."""
        self._num_draws += 1
        is_right = self._num_draws * GOLDEN % 1.0 < self.chance
        self._hits = self._hits * (1 - 1 / 64) + is_right
        self._trials = self._trials * (1 - 1 / 64) + 1
        return is_right


def far(num_nodes: int) -> float:
    """Long lines and cheap rows."""
    return 0.2 + 0.002 * num_nodes


def dear(num_nodes: int) -> float:
    """A second row that costs nearly as much as the first."""
    return 0.36 + 0.005 * num_nodes if num_nodes else 0.2


@pytest.mark.parametrize("chance", [0.6, 0.85, 1.0])
def test_good_drafts_over_long_lines_pay_from_the_start(chance: float) -> None:
    assert World(far, chance).run(60) >= 1.8 / far(0)


@pytest.mark.parametrize("chance", [0.0, 0.1, 0.3])
def test_bad_drafts_where_rows_are_dear_are_left_alone(chance: float) -> None:
    world = World(dear, chance)
    assert world.run(400) >= 0.95 / dear(0)
    assert world.run(200) >= 0.98 / dear(0)
    assert sum(size > 0 for size in world.sizes[-200:]) <= 4


def test_bad_drafts_over_long_lines_cost_nearly_nothing() -> None:
    assert World(far, 0.02).run(400) >= 0.95 / far(0)


def test_the_first_round_is_plain_and_nothing_is_sent_of_an_empty_draft() -> None:
    world = World(far, 1.0)
    world.run(2)
    assert world.sizes[0] == 0
    assert world.sizes[1] > 0
    assert list(world.speculation.cut(())) == []


def test_it_comes_back_when_drafts_become_good() -> None:
    world = World(dear, 0.05)
    world.run(300)
    assert sum(size > 0 for size in world.sizes[-100:]) <= 3
    world.chance = 0.9
    world.run(150)
    assert world.run(100) >= 1.8 / dear(0)


def test_it_steps_aside_when_drafts_become_bad() -> None:
    world = World(dear, 0.9)
    assert world.run(100) >= 1.8 / dear(0)
    world.chance = 0.05
    world.run(50)
    assert world.run(200) >= 0.95 / dear(0)


def test_it_comes_back_when_rows_become_cheap() -> None:
    world = World(lambda n: 0.2 * (1 + n), 0.7)
    world.run(300)
    assert world.run(200) >= 0.95 / 0.2
    world.seconds = far
    world.run(150)
    assert world.run(100) >= 1.8 / far(0)


def test_it_steps_aside_when_rows_become_dear() -> None:
    world = World(far, 0.6)
    world.run(100)
    world.seconds = lambda n: 0.2 * (1 + n)
    world.run(50)
    assert world.run(200) >= 0.95 / 0.2


def test_it_notices_that_plain_rounds_have_become_fast() -> None:
    world = World(lambda n: 1.0 + 0.01 * n, 0.4)
    world.run(100)
    assert sum(size > 0 for size in world.sizes[-50:]) >= 40
    world.seconds = lambda n: 0.45 + 0.01 * n if n else 0.2
    world.run(100)
    assert world.run(200) >= 0.95 / 0.2


def test_it_stays_when_the_whole_world_slows_down() -> None:
    world = World(far, 0.85)
    world.run(100)
    world.seconds = lambda n: 5 * far(n)
    world.run(50)
    assert world.run(200) >= 1.8 / (5 * far(0))


@pytest.mark.parametrize(("fixed", "sent"), [(0, 0), (3, 3), (12, 12), (1000, 12)])
def test_a_fixed_size_is_obeyed_whatever_it_costs(fixed: int, sent: int) -> None:
    world = World(dear, 0.0, fixed)
    world.run(30)
    assert set(world.sizes) == {sent}
    assert world.speculation.max_nodes == min(fixed, MAX_TREE)


def test_after_drafts_that_paid_it_tries_again_soon() -> None:
    world = World(dear, 0.05)
    world.run(600)
    world.chance = 0.9
    world.run(300)
    world.chance = 0.05
    world.run(150)
    assert any(world.sizes[-100:])
