"""What a score tells of how likely a stem belongs to the mix."""

import numpy as np
import pytest
from scipy.stats import norm

from service.search.sureness import NOTE, Sureness, calibration, learn

EXACT_ENOUGH = 0.03  # of a share, from 4,000 scores of either kind


def drawn(seed: int, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a known truth: normal, of stems that belong a mean of 2, of others of 0."""
    rng = np.random.default_rng(seed)
    return rng.normal(2.0, 1.0, n), rng.normal(0.0, 1.0, n)


def test_sureness_is_the_share_of_stems_scored_so_that_belong() -> None:
    known = learn(*drawn(0))
    for score in (0.0, 0.5, 1.0, 1.5, 2.0):
        own, other = norm.pdf(score, 2.0), norm.pdf(score, 0.0)
        assert known.of(score) == pytest.approx(own / (own + other), abs=2 * EXACT_ENOUGH)
    assert known.of(-9.0) == pytest.approx(0.0, abs=EXACT_ENOUGH)
    assert known.of(9.0) == pytest.approx(1.0, abs=EXACT_ENOUGH)
    error, bins = calibration(known, *drawn(1))
    assert error < EXACT_ENOUGH
    assert sum(each["weight"] for each in bins) == pytest.approx(1.0)


def test_sides_of_unequal_number_weigh_the_same() -> None:
    own, strangers = drawn(2)
    few = learn(own[:400], strangers)
    assert few.of(1.0) == pytest.approx(0.5, abs=0.1)


def test_a_curve_of_another_truth_is_found_out() -> None:
    own, strangers = drawn(3)
    assert calibration(learn(own, strangers), strangers, strangers)[0] > 0.3


def test_a_note_brings_the_same_curve_back() -> None:
    known = learn(*drawn(4, 50))
    back = Sureness.of_notes({NOTE: known.as_note()})
    assert back is not None
    np.testing.assert_allclose(back.scores, known.scores, atol=1e-4)
    np.testing.assert_allclose(back.shares, known.shares, atol=1e-4)


@pytest.mark.parametrize(
    "note", ["", "[]", "{}", "[[1]]", '[["a", 1]]', "[[0, 0.9], [1, 0.1]]", "[[1, 0.1], [0, 0.9]]", "[[0, 0], [1, 7]]"]
)
def test_a_note_that_is_no_curve_says_nothing(note: str) -> None:
    assert Sureness.of_notes({NOTE: note}) is None
    assert Sureness.of_notes({}) is None
