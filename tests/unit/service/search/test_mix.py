"""Which windows of a mix are asked about."""

import numpy as np

from service.search.mix import plan_windows

SECOND = 16_000
WINDOW, STRIDE, STEP = 5 * SECOND, 5 * SECOND // 2, SECOND // 25


def plan(seconds: float, *, search: bool = True, longest: float = 8.0, loud_at: float | None = None):  # type: ignore[no-untyped-def]
    waveform = np.full(round(seconds * SECOND), 0.01, np.float32)
    if loud_at is not None:
        waveform[round(loud_at * SECOND) : round((loud_at + 1) * SECOND)] = 0.9
    return plan_windows(
        waveform, window=WINDOW, stride=STRIDE, step=STEP, longest=round(longest * SECOND), search=search
    )


def test_a_mix_of_eight_seconds_is_tried_at_every_step_of_one_stride() -> None:
    laid = plan(8.0)
    assert laid.shifts == 63
    assert laid.range_s == 2.48
    assert (laid.window == 0).sum() == 63
    assert (laid.window == 1).sum() == 13  # a second window fits while the delay is 0.5 s or less
    np.testing.assert_array_equal(laid.starts, laid.begin + laid.shift * STEP + laid.window * STRIDE)
    assert (laid.starts + laid.length <= laid.end).all()


def test_a_short_mix_is_searched_as_far_as_it_goes() -> None:
    laid = plan(6.0)
    assert laid.shifts == 26
    assert laid.range_s == 1.0
    assert set(laid.window) == {0}


def test_a_coarser_plan_is_every_so_manieth_shift_of_the_same_stretch() -> None:
    fine = plan(8.0)
    coarse = fine.coarser(4)
    assert (coarse.shifts, coarse.step, coarse.range_s) == (16, 4 * STEP, 2.4)
    assert (coarse.begin, coarse.end, coarse.length) == (fine.begin, fine.end, fine.length)
    assert set(coarse.starts) < set(fine.starts)
    np.testing.assert_array_equal(coarse.starts, coarse.begin + coarse.shift * coarse.step + coarse.window * STRIDE)
    assert (coarse.window == 1).sum() == 4
    np.testing.assert_array_equal(fine.coarser(1).starts, fine.starts)


def test_a_mix_shorter_than_a_window_is_one_window() -> None:
    laid = plan(3.0)
    assert (laid.shifts, laid.length) == (1, 3 * SECOND)
    np.testing.assert_array_equal(laid.starts, [0])


def test_the_loudest_stretch_of_a_long_mix_is_searched() -> None:
    laid = plan(60.0, loud_at=30.0)
    assert laid.begin <= 30 * SECOND
    assert laid.end >= 31 * SECOND
    assert laid.end - laid.begin == 8 * SECOND
    assert laid.begin % 160 == 0


def test_on_the_grid_windows_are_laid_once_from_the_start() -> None:
    laid = plan(20.0, search=False, longest=60.0, loud_at=12.0)
    assert laid.shifts == 1
    np.testing.assert_array_equal(laid.starts, np.arange(7) * STRIDE)


def test_the_loudest_stretch_is_the_same_however_long_the_mix() -> None:
    waveform = np.random.default_rng(0).standard_normal(200 * SECOND + 77).astype(np.float32)
    laid = plan_windows(waveform, window=WINDOW, stride=STRIDE, step=STEP, longest=8 * SECOND, search=True)
    energy = np.concatenate([[0.0], np.cumsum(waveform.astype(np.float64) ** 2)])
    begins = np.arange(0, len(waveform) - 8 * SECOND + 1, 160)
    assert laid.begin == begins[np.argmax(energy[begins + 8 * SECOND] - energy[begins])]
