"""Where a stem lies against a mix: every place, against plain loops."""

import numpy as np
import pytest

from indexer.catalog.records import StemEmbeddings
from indexer.diagonals import Extent, Place, QueryWindows, best_places, promising_places
from indexer.index.fold import HermitianFold
from tests.mixes import (
    DIMENSION,
    FINE_S,
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
    stem_starts,
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
    kept = np.flatnonzero(~((queries.shift == 0) & (queries.window == 1)))
    queries = QueryWindows(
        *(array[kept] for array in (queries.embedding, queries.offset_s, queries.shift, queries.window))
    )
    place = align(fold, queries, stem.embedding[[0, 1, 3, 4, 5, 6]], stem.starts_s[[0, 1, 3, 4, 5, 6]])
    assert place is not None
    assert place.start_s == 2.5
    assert 0 < len(place.pairs) < planted


def test_nothing_to_align_is_no_place() -> None:
    rng = np.random.default_rng(7)
    fold, queries, stem = make_fold(), make_queries(rng, 8.0), make_stem(rng, 10.0)
    assert align(fold, queries, np.empty((0, DIMENSION), np.complex64), np.empty(0)) is None
    silent = QueryWindows(np.empty((0, DIMENSION), np.complex64), np.empty(0), np.empty(0, int), np.empty(0, int))
    assert align_all(fold, silent, {1: stem}) == {}
    assert align_all(fold, queries, {}) == {}


def test_a_diagonal_needs_half_of_the_shorter_sides_windows() -> None:
    rng = np.random.default_rng(8)
    fold = make_fold()
    queries, stem = make_queries(rng, 15.0, shift_s=STRIDE_S), make_stem(rng, 15.0)  # 5 windows each, one shift
    place = align(fold, queries, stem.embedding, stem.starts_s)
    assert place is not None
    assert len(place.pairs) >= 3


def test_equal_diagonals_are_settled_by_pairs_then_by_the_nearest_then_the_smaller_place() -> None:
    fold = HermitianFold(np.eye(DIMENSION, dtype=complex))
    same = np.repeat(unit_rows(np.random.default_rng(9), 1), 40, axis=0)
    grid = np.arange(3) * STRIDE_S
    queries = QueryWindows(same[:3], grid, np.zeros(3, int), np.arange(3))
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


def test_a_place_spans_a_longer_mix_where_half_of_their_windows_meet() -> None:
    fold = HermitianFold(np.eye(DIMENSION, dtype=complex))
    stem = make_stem(np.random.default_rng(0), 30.0)
    mix = Extent(0.0, 15.0, STRIDE_S)  # windows begin at 0, 2.5 ... 15 s: seven

    def found(best_s: float, right_s: float, *, stem: StemEmbeddings = stem, searched_s: float = 7.5) -> Place:
        """The best place of a stem that a searched window fits exactly at one place and nearly at another."""
        queries = make_queries(np.random.default_rng(1), 5.0)
        queries.offset_s[:] += searched_s
        at = {round(float(start_s), 3): window for window, start_s in enumerate(stem.starts_s)}
        mixed = stem.embedding[at[best_s + searched_s]] + 0.8 * stem.embedding[at[right_s + searched_s]]
        queries.embedding[:] = mixed / np.linalg.norm(mixed)
        places = best_places(fold, queries, {1: stem}, mix)
        first = promising_places(fold, queries, {1: stem}, 3, apart_s=SHIFT_S, extent=mix)[1][0]
        assert first == places.place(1)
        assert best_places(fold, queries, {1: stem}).place(1, curve=False).start_s == best_s
        return first

    assert found(10.0, 5.0).start_s == 10.0
    assert found(-7.5, 5.0).start_s == -7.5, "the stem enters late, four windows are left"
    assert found(17.5, 5.0).start_s == 17.5, "it ends early, four windows are left"
    assert found(12.5 + 7.5, 5.0, searched_s=0.0).start_s == 5.0, "three are left"
    assert found(-10.0, 5.0, searched_s=12.5).start_s == 5.0
    short = StemEmbeddings.in_clock_time(np.arange(1), stem.starts_s[:1], stem.embedding[:1])
    assert found(-12.5, -12.5, stem=short, searched_s=12.5).start_s == -12.5, "a stem of one window has no other"
    stem = make_stem(np.random.default_rng(0), 60.0)
    apart = np.array([0, 8, 16])  # it sounds every 20 s, so no two of its windows meet such a mix at once
    sparse = StemEmbeddings.in_clock_time(apart, stem.starts_s[apart], stem.embedding[apart])
    assert found(-7.5, 12.5, stem=sparse).start_s == -7.5, "no place is better than this"


def test_a_peak_is_the_parabolas_or_where_there_is_none_the_highest_point() -> None:
    def peak(*curve: tuple[float, float]) -> float:
        return Place(dict(curve)[0.0], 4.0, (), curve).peak

    # 1 - (t - 0.01)^2 * 100
    assert peak((-0.04, 0.75), (0.0, 0.99), (0.04, 0.91)) == pytest.approx(1.0)
    assert peak((-0.02, 0.91), (0.0, 0.99), (0.04, 0.91)) == pytest.approx(1.0)
    assert peak((0.0, 0.9), (0.04, 0.7)) == 0.9
    assert peak((-0.04, 0.9), (0.0, 0.5), (0.04, 0.7)) == 0.9
    assert peak((-0.04, 0.5), (0.0, 0.9), (0.04, 1.4)) == 1.4


def test_promising_places_lie_apart_and_the_best_comes_first() -> None:
    rng = np.random.default_rng(5)
    stems = {row: make_stem(rng, 30.0) for row in range(3)}
    queries = make_queries(rng, 8.0)
    fold = HermitianFold(np.eye(DIMENSION, dtype=complex))
    best = align_all(fold, queries, stems)
    for row, places in promising_places(fold, queries, stems, 6, apart_s=SHIFT_S).items():
        assert places[0] == best[row]
        assert len(places) == 6
        starts = sorted(place.start_s for place in places)
        assert min(np.diff(starts)) > SHIFT_S
        promises = [place.score for place in places[1:]]
        assert max(promises) <= places[0].score
    assert promising_places(fold, queries, {}, 6, apart_s=SHIFT_S) == {}


def test_of_two_similar_places_the_right_one_is_promising_though_the_grid_favours_the_other() -> None:
    """The mix repeats in the stem, a little changed: on the grid the copy lies exactly, the original 20 ms beside."""
    rng = np.random.default_rng(4)
    music = SmoothMusic(4)
    start_s = stem_starts(30.0)
    queries = make_queries(np.random.default_rng(0), 8.0)
    true_start_s, copy_start_s = 5.0 - 0.020 - 0.4, 17.5 - 0.4
    embedding = unit_rows(rng, len(start_s))
    for window, begins in enumerate(start_s):
        if 5.0 <= begins <= 7.5:
            embedding[window] = music.embed(np.array([begins - true_start_s]))[0]
        if 17.5 <= begins <= 20.0:
            changed = music.embed(np.array([begins - copy_start_s]))[0] + 0.3 * unit_rows(rng, 1)[0]
            embedding[window] = changed / np.linalg.norm(changed)
    queries.embedding[:] = music.embed(queries.offset_s)
    stem = StemEmbeddings.in_clock_time(np.arange(len(start_s)), start_s, embedding.astype(np.complex64))
    assert align_all(music.fold, queries, {1: stem})[1].start_s == pytest.approx(copy_start_s)
    first, second = promising_places(music.fold, queries, {1: stem}, 2, apart_s=SHIFT_S)[1]
    assert first.start_s == pytest.approx(copy_start_s)
    assert second.peak == pytest.approx(first.peak, abs=0.1)
    assert abs(second.start_s - true_start_s) <= SHIFT_S / 2 + 0.001
    assert second.promise > second.score


def test_the_curve_knows_the_neighbours_across_the_end_of_the_shifts() -> None:
    # Shift 0 of window 1 begins 20 ms after the last shift of window 0.
    music = SmoothMusic(3)
    coarse, _, _ = music.search(7.5, 8.0)
    displacements = [at for at, _ in coarse.curve]
    assert displacements == [-0.02, 0.0, 0.04]
    assert max(coarse.curve, key=lambda point: point[1])[0] == 0.0


def test_a_fast_scores_peak_is_drawn_well_enough_between_shifts_of_forty_milliseconds() -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        music = SmoothMusic(seed)
        for _ in range(12):
            true_start_s = round(float(rng.uniform(0, 20)), 4)
            coarse, fine, windows = music.search(true_start_s, 8.0, drawn=True)
            assert abs(fine.start_s - true_start_s) <= FINE_S + 0.001
            assert fine.score >= 0.98  # the stem against itself scores 1
            assert coarse.peak == pytest.approx(fine.score, abs=0.15)
            assert windows <= 2 * len(coarse.pairs)
