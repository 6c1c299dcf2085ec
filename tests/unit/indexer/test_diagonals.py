"""Where a stem lies against a mix: every place, against plain loops."""

import numpy as np
import pytest

from indexer.catalog.records import StemEmbeddings
from indexer.diagonals import QueryWindows, best_places
from indexer.index.fold import HermitianFold
from tests.mixes import (
    DIMENSION,
    SCORE_TOLERANCE,
    SHIFT_S,
    STRIDE_S,
    SmoothMusic,
    align,
    align_all,
    exhaustive,
    make_fold,
    make_queries,
    make_stem,
    plant,
    unit_rows,
)


@pytest.mark.parametrize("mix_s", [5.0, 5.6, 7.4, 8.0, 13.0])
@pytest.mark.parametrize("stem_s", [3.0, 5.0, 6.1, 20.0, 21.3])
def test_the_best_diagonal_equals_the_exhaustive_one(mix_s: float, stem_s: float) -> None:
    rng = np.random.default_rng(int(mix_s * 10 + stem_s))
    fold = make_fold(int(stem_s))
    # Shifts of 0.2 s keep the plain loops short.
    queries, stem = make_queries(rng, mix_s, begin_s=1.5, shift_s=0.2), make_stem(rng, stem_s)
    found, expected = align(fold, queries, stem.embedding, stem.starts_s), exhaustive(fold, queries, stem)
    assert found is not None
    assert expected is not None
    assert found.score == pytest.approx(expected[0], abs=SCORE_TOLERANCE)
    assert (found.start_s, len(found.pairs)) == (expected[1], expected[2])


@pytest.mark.parametrize(("start_s", "shift"), [(7.5, 0), (2.46, 1), (-2.5, 0), (-0.48, 12), (4.96, 1)])
def test_a_planted_place_is_found_exactly(start_s: float, shift: int) -> None:
    rng = np.random.default_rng(3)
    fold = make_fold()
    queries, stem = make_queries(rng, 10.0), make_stem(rng, 20.0)
    planted = plant(queries, stem, start_s, fold, shift)
    place = align(fold, queries, stem.embedding, stem.starts_s)
    assert planted >= 2
    assert place is not None
    assert place.start_s == start_s
    assert place.score == pytest.approx(fold.eigenvalues.max(), abs=1e-5)
    assert [(pair.mix_s + place.start_s) for pair in place.pairs] == pytest.approx([p.stem_s for p in place.pairs])
    for pair in place.pairs:
        assert queries.shift[pair.query] == shift
        assert queries.offset_s[pair.query] == pair.mix_s
        assert stem.starts_s[pair.window] == pair.stem_s


def test_the_last_windows_place_is_found_off_the_grid() -> None:
    rng = np.random.default_rng(4)
    fold = make_fold()
    queries, stem = make_queries(rng, 5.0), make_stem(rng, 21.3)  # the last window begins at 16.3 s
    assert plant(queries, stem, 16.3, fold, 0) == 1
    place = align(fold, queries, stem.embedding, stem.starts_s)
    assert place is not None
    assert place.start_s == 16.3


def test_a_mix_that_begins_on_half_a_millisecond_keeps_its_diagonals_whole() -> None:
    # Eight samples of 16 kHz: float sums of such times fall on either side of the half.
    rng = np.random.default_rng(5)
    fold = make_fold()
    for samples in (8, 24, 1_000_008):
        queries, stem = make_queries(rng, 20.0, begin_s=samples / 16_000), make_stem(rng, 20.0)
        planted = plant(queries, stem, -samples / 16_000, fold, 0)
        place = align(fold, queries, stem.embedding, stem.starts_s)
        if planted:
            assert place is not None
            assert len(place.pairs) == planted
            assert abs(place.start_s + samples / 16_000) <= 0.00051


def test_silent_windows_are_simply_absent() -> None:
    rng = np.random.default_rng(6)
    fold = make_fold()
    queries, stem = make_queries(rng, 15.0), make_stem(rng, 20.0)
    planted = plant(queries, stem, 2.5, fold, 0)
    kept = np.flatnonzero(~((queries.shift == 0) & (queries.offset_s == STRIDE_S)))
    queries = QueryWindows(queries.embedding[kept], queries.offset_s[kept], queries.shift[kept])
    place = align(fold, queries, stem.embedding[[0, 1, 3, 4, 5, 6]], stem.starts_s[[0, 1, 3, 4, 5, 6]])
    assert place is not None
    assert place.start_s == 2.5
    assert 0 < len(place.pairs) < planted


def test_nothing_to_align_is_no_place() -> None:
    rng = np.random.default_rng(7)
    fold, queries, stem = make_fold(), make_queries(rng, 8.0), make_stem(rng, 10.0)
    assert align(fold, queries, np.empty((0, DIMENSION), np.complex64), np.empty(0)) is None
    silent = QueryWindows(np.empty((0, DIMENSION), np.complex64), np.empty(0), np.empty(0, int))
    assert align_all(fold, silent, {1: stem}) == {}
    assert align_all(fold, queries, {}) == {}


def test_equal_diagonals_are_settled_by_pairs_then_by_the_nearest_then_the_smaller_place() -> None:
    fold = HermitianFold(np.eye(DIMENSION, dtype=complex))
    same = np.repeat(unit_rows(np.random.default_rng(9), 1), 40, axis=0)
    grid = np.arange(3) * STRIDE_S
    queries = QueryWindows(same[:3], grid, np.zeros(3, int))
    place = align(fold, queries, same[:3], grid)
    assert place is not None
    assert (place.start_s, len(place.pairs)) == (0.0, 3)
    for first_s, expected in ((1.0, 1.0), (1.5, -1.0), (1.25, -1.25)):  # two pairs at first_s, and one stride earlier
        place = align(fold, queries, same[:2], np.array([0.0, 2.5]) + first_s)
        assert place is not None
        assert (place.start_s, len(place.pairs)) == (expected, 2)


def test_stems_are_aligned_alike_alone_and_together() -> None:
    rng = np.random.default_rng(10)
    fold, queries = make_fold(), make_queries(rng, 8.0)
    stems = {int(row): make_stem(rng, float(rng.uniform(2, 40))) for row in rng.permutation(1000)[:30]}
    together = align_all(fold, queries, stems)
    assert together.keys() == stems.keys()
    for row, stem in stems.items():
        alone = align(fold, queries, stem.embedding, stem.starts_s)
        assert alone is not None
        assert alone.start_s == together[row].start_s
        assert alone.score == pytest.approx(together[row].score, abs=SCORE_TOLERANCE)
        assert [p[:2] for p in alone.pairs] == [p[:2] for p in together[row].pairs]


def test_what_a_shift_costs_is_taken_off_before_the_best_place_is_chosen() -> None:
    rng = np.random.default_rng(3)
    fold, queries = make_fold(), make_queries(rng, 6.0, shift_s=0.2)
    stems = {row: make_stem(rng, 5.0) for row in (7, 5, 9)}
    shifts = np.unique(queries.shift)
    assert len(shifts) > 4
    alone = {shift: best_places(fold, of_shift(queries, shift), stems).scores for shift in shifts.tolist()}
    costs = rng.uniform(0.0, 1.0, size=(3, len(shifts)))
    costs[1, ::2] = costs[2] = np.inf
    found = best_places(fold, queries, stems, costs)
    assert found.scores.keys() == {7, 5}, "where it may lie nowhere a stem is left out"
    for row, cost in ((7, costs[0]), (5, costs[1])):
        expected = [alone[shift][row] - cost[at] for at, shift in enumerate(shifts.tolist())]
        assert found.scores[row] == pytest.approx(max(expected), abs=SCORE_TOLERANCE)
        assert found.shifts[row] == shifts[np.argmax(expected)]
        assert found.place(row).score == pytest.approx(alone[found.shifts[row]][row], abs=SCORE_TOLERANCE)


def of_shift(queries: QueryWindows, shift: int) -> QueryWindows:
    own = queries.shift == shift
    return QueryWindows(queries.embedding[own], queries.offset_s[own], queries.shift[own])


@pytest.mark.parametrize("seed", range(6))
def test_a_place_is_told_between_the_shifts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    music = SmoothMusic(seed)
    for _ in range(12):
        true_start_s = round(float(rng.uniform(0, 20)), 4)
        on_grid, between = music.search(true_start_s, 8.0)
        assert abs(on_grid.start_s - true_start_s) <= SHIFT_S / 2 + 0.001
        assert abs(between.start_s - true_start_s) <= 0.01
        assert between.score == on_grid.score


def test_without_a_neighbour_a_place_stays_on_its_shift() -> None:
    on_grid, between = SmoothMusic(1).search(5.0 - 0.015, 5.0)
    assert between.start_s == on_grid.start_s


def test_beats_may_stand_where_seconds_do() -> None:
    rng = np.random.default_rng(11)
    fold = make_fold()
    stem = make_stem(rng, 60.0)
    beats = np.arange(len(stem.starts_s)) * 5.0 + 2  # a window begins every five beats, the first on the third
    queries = make_queries(rng, 8.0)
    offset, shift = np.arange(13) / 2, np.arange(13) % 10
    queries = QueryWindows(queries.embedding[:13], offset, shift)
    in_beats = StemEmbeddings(stem.windows, beats, beats, stem.embedding)
    best = np.linalg.eigh(fold.hermitian)[1][:, -1].astype(np.complex64)
    queries.embedding[[3, 12]] = stem.embedding[[4, 5]] = best  # half beat 3 of the mix falls on beat 22 of the stem
    place = align_all(fold, queries, {1: in_beats})[1]
    assert place.start_s in (20.5, 21.0), "beats, from the mix's first"
    assert {pair.stem_s for pair in place.pairs} <= {22.0, 27.0}
