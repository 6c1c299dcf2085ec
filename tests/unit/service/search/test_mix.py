"""Which windows of a mix are asked about."""

import numpy as np
import pytest

from model.audio.grid import STRIDE_BEATS, WINDOW_BEATS, Grid
from service.search.mix import ALIKE_S, Plan, hear_mix, plan_beats, plan_windows
from tests.clips import clicks

SECOND = 16_000
WINDOW, STRIDE, STEP = 5 * SECOND, 5 * SECOND // 2, SECOND // 25


def plan(seconds: float, *, search: bool = True, loud_at: float | None = None, step: int = STEP) -> Plan:
    waveform = np.full(round(seconds * SECOND), 0.01, np.float32)
    if loud_at is not None:
        waveform[round(loud_at * SECOND) : round((loud_at + 1) * SECOND)] = 0.9
    return plan_windows(waveform, window=WINDOW, stride=STRIDE, step=step, search=search)


def test_a_mix_of_eight_seconds_is_tried_at_every_step_of_one_stride() -> None:
    laid = plan(8.0)
    assert laid.shifts == 63
    assert laid.range_s == 2.48
    assert np.bincount(laid.shift).tolist() == 13 * [2] + 50 * [1]  # a second window fits up to a delay of 0.5 s
    assert set(laid.laid.starts - laid.shift * STEP) == {0, STRIDE}
    assert laid.laid.fit(8 * SECOND)
    np.testing.assert_array_equal(laid.offset * SECOND, laid.laid.starts)


def test_a_short_mix_is_searched_as_far_as_it_goes() -> None:
    laid = plan(6.0)
    assert laid.shifts == 26
    assert laid.range_s == 1.0
    assert np.bincount(laid.shift).max() == 1


def test_a_mix_shorter_than_a_window_is_one_window() -> None:
    laid = plan(3.0)
    assert (laid.shifts, laid.laid.lengths.tolist(), laid.laid.starts.tolist()) == (1, [3 * SECOND], [0])


def test_of_a_long_mix_the_loudest_window_of_either_half_is_searched_at_every_delay() -> None:
    laid = plan(60.0, loud_at=50.0)
    assert np.bincount(laid.shift).tolist() == [2] * 63
    early, late = sorted(set(laid.laid.starts - laid.shift * STEP))
    assert early < 30 * SECOND
    assert late <= 50 * SECOND < late + WINDOW
    assert (late - early) % STRIDE == 0
    assert laid.laid.fit(60 * SECOND)


def test_on_the_grid_windows_are_laid_once_from_the_start() -> None:
    laid = plan(20.0, search=False, loud_at=12.0)
    assert laid.shifts == 1
    np.testing.assert_array_equal(laid.laid.starts, np.arange(7) * STRIDE)


def music_at(offset_s: np.ndarray) -> np.ndarray:
    """Embeddings that change with time as those of music do: complex64 (q, 64), unit norm."""
    rng = np.random.default_rng(5)
    hz = rng.normal(0.0, 1 / (2 * np.pi * ALIKE_S), size=(64, 40))
    waves = np.exp(2j * np.pi * (hz * offset_s[:, None, None] + rng.random((64, 40)))).sum(axis=2)
    return (waves / np.linalg.norm(waves, axis=1, keepdims=True)).astype(np.complex64)


def test_between_two_embedded_delays_one_is_drawn_as_it_would_have_been_embedded() -> None:
    laid = plan(8.0, step=SECOND // 20)
    asked = laid.queries(music_at(laid.offset), np.ones(len(laid.laid), np.bool_))
    drawn = asked.shift % 2 == 1
    assert laid.tried == (99, SECOND // 40)
    assert drawn.sum() == len(laid.laid) - 1 - 2, "between all but the first two and the last two"
    alike = (asked.embedding.conj() * music_at(asked.offset_s)).sum(axis=1).real
    assert alike[drawn].min() > 0.8
    np.testing.assert_allclose(alike[~drawn], 1.0, atol=1e-5)
    for shift in np.unique(asked.shift):  # as among the embedded ones, windows of one shift lie whole strides apart
        apart = np.diff(np.sort(asked.offset_s[asked.shift == shift])) * SECOND / STRIDE
        np.testing.assert_allclose(apart, np.round(apart), atol=1e-6)


@pytest.mark.parametrize("step_s", [0.01, 0.25])
def test_what_is_drawn_is_finite_at_every_step_that_can_be_set(step_s: float) -> None:
    laid = plan(8.0, step=round(step_s * SECOND))
    asked = laid.queries(music_at(laid.offset), np.ones(len(laid.laid), np.bool_))
    np.testing.assert_allclose(np.linalg.norm(asked.embedding, axis=1), 1.0, atol=1e-5)
    assert len(asked.shift) > len(laid.laid)


def test_nothing_is_drawn_beside_silence_nor_for_a_mix_of_few_windows() -> None:
    laid = plan(6.0)
    audible = np.ones(len(laid.laid), np.bool_)
    audible[10] = False
    offset_s = laid.queries(music_at(laid.offset), audible).offset_s
    halves = np.round(offset_s / 0.02).astype(int)[np.round(offset_s / 0.02) % 2 == 1]
    assert set(halves) == {*range(3, 49, 2)} - {17, 19, 21, 23}
    short = plan(5.1)
    assert len(short.queries(music_at(short.offset), np.ones(3, np.bool_)).shift) == len(short.laid) == 3


def grid_of(bpm: float, first_s: float = 0.0, seconds: float = 30.0) -> Grid:
    return Grid(first_s + np.arange(int(seconds * bpm / 60)) * 60 / bpm)


def test_a_mix_is_laid_on_every_beat_of_a_stride() -> None:
    laid = plan_beats(np.full(8 * SECOND, 0.1, np.float32), grid_of(120, first_s=0.1))
    assert laid is not None
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
    grid = grid_of(120)
    few = plan_beats(np.full(3 * SECOND, 0.1, np.float32), grid)
    assert few is not None
    assert set(few.laid.lengths) == {3 * SECOND}
    assert few.laid.frames == 1 + 6 * 50
    assert plan_beats(np.full(SECOND, 0.1, np.float32), grid) is None


def test_windows_are_spread_over_all_of_a_long_mix_on_its_own_grid() -> None:
    laid = plan_beats(np.full(60 * SECOND, 0.1, np.float32), grid_of(100, first_s=0.25, seconds=60))
    assert laid is not None
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
    laid = plan_beats(np.full(8 * SECOND, 0.1, np.float32), grid_of(120))
    assert laid is not None
    moved = laid.in_keys((-1, 0, 1))
    assert len(moved.laid) == 3 * len(laid.laid)
    for semitones in (-1, 0, 1):
        chosen = moved.laid.transpose == semitones
        np.testing.assert_array_equal(moved.offset[chosen], laid.offset)
        np.testing.assert_array_equal(moved.laid.starts[chosen], laid.laid.starts)


def test_what_is_said_of_a_mix_is_believed_and_the_rest_is_heard() -> None:
    waveform = clicks(110.0, 12.0)
    heard = hear_mix(waveform)
    assert heard.sources["tempo_bpm"] == "heard"
    assert abs(heard.grids[0].tempo_bpm - 110) < 0.3
    said = hear_mix(waveform, tempo_bpm=55.0, key="F# minor")
    assert said.sources == {"tempo_bpm": "said", "key": "said"}
    assert said.sure == {}
    assert abs(said.grids[0].tempo_bpm - 110) < 1e-9, "half and double are one"
    assert hear_mix(np.zeros(12 * SECOND, np.float32)).grids == ()
