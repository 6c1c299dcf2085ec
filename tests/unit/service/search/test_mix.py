"""Which windows of a mix are asked about."""

import numpy as np
import pytest

from model.audio.grid import STRIDE_BEATS, WINDOW_BEATS, Grid
from service.search.mix import DELAY, KEPT, NETWORK_STEP, Plan, hear_mix, plan_beats, plan_windows
from tests.clips import clicks

SECOND = 16_000
WINDOW, STRIDE = 5 * SECOND, 5 * SECOND // 2


def mix_of(seconds: float, loud_at: float | None = None) -> np.ndarray:
    waveform = np.full(round(seconds * SECOND), 0.01, np.float32)
    if loud_at is not None:
        waveform[round(loud_at * SECOND) : round((loud_at + 1) * SECOND)] = 0.9
    return waveform


def plan(seconds: float, *, search: bool = True, loud_at: float | None = None) -> Plan:
    return plan_windows(mix_of(seconds, loud_at), window=WINDOW, stride=STRIDE, search=search)


def test_a_mix_of_eight_seconds_is_tried_at_every_delay_of_one_stride() -> None:
    laid = plan(8.0)
    assert (laid.shifts, laid.step) == (125, DELAY)
    assert laid.range_s == 2.48
    assert np.sort(laid.offset * SECOND / DELAY).round(6).tolist() == [*range(144)], "of three seconds all but .12"
    np.testing.assert_array_equal(np.bincount(laid.shift), 19 * [2] + 106 * [1])
    assert laid.laid.fit(8 * SECOND)


def test_windows_that_lie_network_steps_apart_are_one_clip() -> None:
    laid = plan(8.0)
    clips = laid.offset.reshape(len(laid.laid), -1) * SECOND
    assert clips.shape == (16, 9)
    np.testing.assert_array_equal(clips[:, 0], laid.laid.starts)
    np.testing.assert_allclose(np.diff(clips, axis=1), NETWORK_STEP)
    np.testing.assert_array_equal(clips[:, -1] + WINDOW, laid.laid.starts + laid.laid.lengths)


@pytest.mark.parametrize(("seconds", "windows"), [(3.0, 1), (5.0, 1), (5.1, 6), (6.0, 48)])
def test_a_short_mix_is_searched_as_far_as_it_goes(seconds: float, windows: int) -> None:
    laid = plan(seconds)
    assert laid.shifts == windows
    assert laid.laid.inner == min(WINDOW, seconds * SECOND)
    assert np.sort(laid.offset * SECOND / DELAY).round(6).tolist() == [*range(windows)]
    assert laid.laid.fit(round(seconds * SECOND))


def test_of_a_long_mix_the_loudest_window_of_either_half_is_searched_at_every_delay() -> None:
    laid = plan(60.0, loud_at=50.0)
    (early, late), each = laid.offset[[0, 128]], np.arange(128) * 0.02
    np.testing.assert_allclose(np.sort(laid.offset), [*early + each, *late + each])
    assert early % 2.5 == late % 2.5 == 0
    assert laid.shifts == 125
    assert early < 30
    assert late <= 50 < late + 5
    assert len(laid.laid) == 32
    assert laid.laid.fit(60 * SECOND)


@pytest.mark.parametrize("seconds", [5.0, 5.25, 5.35, 9.0])
def test_strides_shorter_than_a_network_step_are_laid_too(seconds: float) -> None:
    laid = plan_windows(mix_of(seconds), window=WINDOW, stride=SECOND // 10, search=True)
    assert len(laid.offset) > 0
    assert laid.laid.fit(round(seconds * SECOND))


def test_windows_of_one_shift_lie_whole_strides_apart() -> None:
    laid = plan(9.0)
    for shift in np.unique(laid.shift):
        apart = np.diff(np.sort(laid.offset[laid.shift == shift])) / 2.5
        np.testing.assert_allclose(apart, np.round(apart), atol=1e-9)


def test_silent_windows_are_asked_nothing() -> None:
    """A clip that sounds may hold windows that do not: a worker tells only whole clips that are silent."""
    waveform = mix_of(8.0)
    waveform[: 6 * SECOND] = 0.0
    laid = plan_windows(waveform, window=WINDOW, stride=STRIDE, search=True)
    embedded = np.ones((len(laid.laid), 9 * 4), np.complex64)
    embedded[3] = 0.0  # the worker says so
    asked = laid.queries(waveform, embedded)[0]
    assert asked.embedding.shape == (len(asked.offset_s), 4)
    assert asked.offset_s.min() > 1.0, "windows that end before the first sound are left out"
    of_fourth = np.abs(asked.offset_s[:, None] - laid.offset.reshape(16, 9)[3]) < 1e-9
    assert not of_fourth.any()
    assert 15 * 5 <= len(asked.offset_s) <= 15 * 6
    np.testing.assert_allclose(asked.embedding, 1 / KEPT, rtol=1e-6, err_msg="as much as the pass takes from a score")


def test_on_the_grid_windows_are_laid_once_from_the_start() -> None:
    laid = plan(20.0, search=False, loud_at=12.0)
    assert laid.shifts == 1
    np.testing.assert_array_equal(laid.laid.starts, np.arange(7) * STRIDE)


def grid_of(bpm: float, first_s: float = 0.0, seconds: float = 30.0) -> Grid:
    return Grid(first_s + np.arange(int(seconds * bpm / 60)) * 60 / bpm)


def on_beats(seconds: int, grid: Grid) -> Plan:
    laid = plan_beats(mix_of(seconds), grid)
    assert laid is not None
    return laid


def test_a_mix_is_laid_on_every_beat_of_a_stride() -> None:
    laid = on_beats(8, grid_of(120, first_s=0.1))
    assert laid.offset.min() == 0.0
    assert (laid.shifts, laid.step) == (5, SECOND // 2)
    assert sorted(laid.offset) == list(range(6))  # 15.8 beats, of which a window takes ten
    assert set(laid.laid.lengths) == {WINDOW_BEATS * SECOND // 2}
    assert laid.laid.frames == 1 + WINDOW_BEATS * 50
    np.testing.assert_allclose(laid.laid.starts / SECOND, 0.1 + laid.offset / 2, atol=1 / SECOND)
    assert laid.laid.fit(8 * SECOND)
    for shift in range(laid.shifts):  # windows of one shift lie whole strides apart
        assert set(np.diff(np.sort(laid.offset[laid.shift == shift]))) <= {STRIDE_BEATS}


def test_a_mix_of_a_few_beats_is_laid_in_shorter_windows_and_a_shorter_one_not_at_all() -> None:
    few = on_beats(3, grid_of(120))
    assert set(few.laid.lengths) == {3 * SECOND}
    assert few.laid.frames == 1 + 6 * 50
    assert plan_beats(mix_of(1), grid_of(120)) is None


def test_windows_are_spread_over_all_of_a_long_mix_on_its_own_grid() -> None:
    laid = on_beats(60, grid_of(100, first_s=0.25, seconds=60))
    assert np.bincount(laid.shift).tolist() == [2] * 5
    assert laid.laid.starts.min() < 5 * SECOND
    assert laid.laid.starts.max() > 27 * SECOND, "in the second half"
    assert laid.laid.fit(60 * SECOND)
    on_grid = (laid.laid.starts / SECOND - 0.25) / 0.6  # beats
    np.testing.assert_allclose(on_grid, np.round(on_grid), atol=1e-3)
    for shift in range(5):
        apart = np.diff(laid.offset[laid.shift == shift]) / STRIDE_BEATS
        np.testing.assert_allclose(apart, np.round(apart), atol=1e-9)


def test_in_other_keys_the_same_windows_are_asked_about_again() -> None:
    laid = on_beats(8, grid_of(120))
    moved = laid.in_keys(1)
    assert (len(moved.laid), moved.laid.semitones) == (len(laid.laid), 1)
    assert moved.key[:3].tolist() == [1, 0, -1], "the mix goes down where the stem is to go up"
    for place, key in enumerate((0, 1, -1)):  # the nearest first, of two as near the one with the mix lower
        chosen = moved.key == key
        np.testing.assert_array_equal(moved.offset[chosen], laid.offset)
        np.testing.assert_array_equal(moved.shift[chosen], laid.shift + place * laid.shifts)


def test_what_is_said_of_a_mix_is_believed_and_the_rest_is_heard() -> None:
    waveform = clicks(110.0, 12.0)
    heard = hear_mix(waveform)
    assert heard.sources["tempo_bpm"] == "heard"
    assert abs(heard.grids[0].tempo_bpm - 110) < 0.3
    said = hear_mix(waveform, tempo_bpm=55.0, key="F# minor")
    assert said.sources == {"tempo_bpm": "said", "key": "said"}
    assert said.sure == {}
    assert abs(said.grids[0].tempo_bpm - 110) < 1e-9, "half and double are one"
    assert abs(hear_mix(clicks(120.0, 2.0), tempo_bpm=960.0).grids[0].tempo_bpm - 120) < 1e-9, "of few beats too"
    assert hear_mix(np.zeros(12 * SECOND, np.float32)).grids == ()


@pytest.mark.parametrize("said_bpm", [None, 110.0])
def test_a_mix_that_begins_with_silence_has_the_beats_of_what_follows(said_bpm: float | None) -> None:
    silence = 61.0
    sounding = clicks(110.0, 12.0)
    heard = hear_mix(np.concatenate([np.zeros(round(silence * SECOND), np.float32), sounding]), said_bpm)
    (grid,) = heard.grids
    beat_s = 60 / grid.tempo_bpm
    assert abs(grid.tempo_bpm - 110) < 0.3
    assert 0 <= grid.beats_s[0] < beat_s
    late = (grid.beats_s[grid.beats_s > silence] - silence - hear_mix(sounding, said_bpm).grids[0].beats_s[0]) / beat_s
    assert np.abs(late - np.round(late)).max() < 0.1
