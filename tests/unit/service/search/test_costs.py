"""What is taken off a stem's score for notes that go badly with the mix's, and for its length."""

from dataclasses import replace

import numpy as np
import pytest

from indexer import StemEmbeddings
from indexer.index.keys import traits_of
from model.audio.harmony import chroma_of
from service.search.costs import (
    HARMONY_COST,
    LENGTH_COST,
    NO_NOTES,
    cost_of,
    harmony_costs,
    length_costs,
    trait_weights,
)  # fmt: skip

C_MAJOR = chroma_of(np.array([9.0, 0, 4, 0, 6, 3, 0, 8, 0, 4, 0, 2]))


def test_the_same_notes_cost_nothing_and_only_in_their_own_key() -> None:
    assert C_MAJOR is not None
    two_lower = np.roll(C_MAJOR, -2)
    (costs,) = harmony_costs(C_MAJOR, [two_lower], range(-2, 3))
    assert costs[4] == pytest.approx(0, abs=1e-6)
    assert (costs[:4] > 0.3 * HARMONY_COST).all()


def test_notes_that_are_all_others_cost_most() -> None:
    assert C_MAJOR is not None
    (costs,) = harmony_costs(C_MAJOR, [-C_MAJOR], [0])
    assert costs == pytest.approx(2 * HARMONY_COST)


def test_what_plays_no_notes_costs_the_same_in_every_key_and_among_others() -> None:
    costs = harmony_costs(C_MAJOR, [None, C_MAJOR, None], [-1, 0])
    np.testing.assert_allclose(costs[[0, 2]], HARMONY_COST * (1 - NO_NOTES))


def test_a_mix_without_notes_takes_the_same_off_every_stem() -> None:
    """As much as what plays none pays elsewhere, so that a score is as sure there."""
    np.testing.assert_allclose(harmony_costs(None, [C_MAJOR, None], [0, 1, 2]), HARMONY_COST * (1 - NO_NOTES))


def test_the_index_takes_off_what_the_scores_lose_in_the_end() -> None:
    """But for a tempo that is not the mix's, of which it knows nothing."""
    rng = np.random.default_rng(1)
    stems = [chroma_of(rng.random(12)), None, chroma_of(rng.random(12))]
    keys, windows = [-2, 0, 1], [1, 5, 40]
    for mix in (C_MAJOR, None):
        lost = length_costs(windows)[:, None] + harmony_costs(mix, stems, keys) + [cost_of(1.0, key) for key in keys]
        for stem, count, costs in zip(stems, windows, lost, strict=True):
            clock = StemEmbeddings.in_clock_time(np.arange(count), np.zeros(count), np.ones((count, 1), np.complex64))
            traits = traits_of(replace(clock, chroma=stem))
            assert traits @ trait_weights(mix, keys).T == pytest.approx(np.tile(-costs, (count, 1)), abs=1e-5)


def test_a_single_window_costs_nothing_and_each_doubling_as_much() -> None:
    costs = length_costs([1, 2, 4, 64])
    assert costs[0] == 0
    np.testing.assert_allclose(np.diff(costs[:3]), LENGTH_COST * np.log(2))
    assert costs[3] == pytest.approx(6 * costs[1])


def test_no_stems_cost_nothing() -> None:
    assert harmony_costs(C_MAJOR, [], [0]).shape == (0, 1)
    assert length_costs([]).shape == (0,)
