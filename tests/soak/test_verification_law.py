"""The law of the walk for more trees than the gate has time for."""

from __future__ import annotations

import pytest

from tests.property.test_verification_law import check


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("num_nodes", "num_trees"), [(5, 7_084), (6, 53_820)])
def test_every_text_has_the_probability_that_the_target_gives_it(num_nodes: int, num_trees: int) -> None:
    assert check(num_nodes) == num_trees
