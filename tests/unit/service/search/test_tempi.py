"""Stems whose tempo is told in another octave than the mix's."""

import numpy as np
import pytest

from model.audio.grid import LOWEST_BPM, Grid
from service.search.stretching import octaves_of


@pytest.mark.parametrize("bpm", [85.0, 92.0, 120.0, 158.0, 169.0])
def test_each_stem_within_the_stretch_is_met_on_a_grid_of_nearly_its_own_tempo(bpm: float) -> None:
    grid = Grid(0.3 + np.arange(40) * 60 / bpm)
    for speed in (0.885, 0.95, 1.0, 1.05, 1.13):
        told = LOWEST_BPM * 2 ** (np.log2(bpm / speed / LOWEST_BPM) % 1)
        met = [asked for asked, (low, high) in octaves_of(grid, 0.12) if low <= told <= high]
        assert met
        for asked in met:
            assert asked.tempo_bpm / told == pytest.approx(speed)


def test_at_half_tempo_either_beat_may_be_the_first_and_at_double_the_mixs_beats_stay() -> None:
    fast = Grid(0.3 + np.arange(40) * 60 / 160)
    _, even, odd = (asked for asked, _ in octaves_of(fast, 0.12))
    np.testing.assert_allclose(np.sort(np.concatenate([even.beats_s, odd.beats_s])), fast.beats_s)
    slow = Grid(0.3 + np.arange(40) * 60 / 90)
    _, double = (asked for asked, _ in octaves_of(slow, 0.12))
    np.testing.assert_allclose(double.beats_s[::2], slow.beats_s)
    assert len(octaves_of(Grid(np.arange(40) * 0.5), 0.12)) == 1


def test_no_stretch_at_all_still_meets_stems_whose_tempo_was_heard_a_little_otherwise() -> None:
    for heard in (95.99476042526064, 96.0, 95.2):
        ((_, (low, high)),) = octaves_of(Grid(np.arange(40) * 60 / 96.0), 0.0)
        assert low <= heard <= high
    assert not low <= 97.5 <= high
