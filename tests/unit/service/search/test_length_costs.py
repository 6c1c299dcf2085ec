"""What is taken off a stem's score for its length."""

import numpy as np
import pytest

from service.search.costs import LENGTH_COST, length_costs


def test_a_single_window_costs_nothing_and_each_doubling_as_much() -> None:
    costs = length_costs([1, 2, 4, 64])
    assert costs[0] == 0
    np.testing.assert_allclose(np.diff(costs[:3]), LENGTH_COST * np.log(2))
    assert costs[3] == pytest.approx(6 * costs[1])


def test_no_stems_cost_nothing() -> None:
    assert length_costs([]).shape == (0,)
