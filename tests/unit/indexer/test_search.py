import math
from pathlib import Path

import numpy as np
import pytest

from indexer.catalog.records import StemEmbeddings
from indexer.diagonals import Extent, Pair, Place, QueryWindows, best_places
from indexer.index.fold import HermitianFold
from indexer.index.index import Index
from indexer.index.snapshot import Snapshot
from indexer.search import (
    FEWEST_CANDIDATES,
    LARGEST_K,
    Candidates,
    candidates,
    further_pairs,
    missed_between,
    missed_by_half,
    neighbouring_shifts,
    proven,
    refine_offsets,
    refined,
    with_pairs,
)
from tests.mixes import (
    COARSE_S,
    DIMENSION,
    FINE_S,
    SCORE_TOLERANCE,
    SHIFT_S,
    SLOW,
    STRIDE_S,
    SmoothMusic,
    align_all,
    longer_mix,
    make_fold,
    make_queries,
    make_stem,
    plant,
    unit_rows,
)


def catalog(rng: np.random.Generator, n: int) -> dict[int, StemEmbeddings]:
    return {row: make_stem(rng, float(rng.uniform(4, 25))) for row in range(1, n + 1)}


def make_index(folder: Path, stems: dict[int, StemEmbeddings], fold: HermitianFold, kind: str = "flat") -> Index:
    Snapshot.write(
        folder, [stems], fold=fold, fingerprint="f", generation=1, seq=1, window_s=5.0, stride_s=2.5, index_type=kind
    )
    return Index.load(folder)


def two_stages(
    index: Index, queries: QueryWindows, stems: dict[int, StemEmbeddings], limit: int
) -> tuple[dict[int, Place], bool]:
    found = candidates(index, queries, limit)
    while True:
        places = align_all(index.fold, queries, {int(row): stems[int(row)] for row in found.rows})
        exact = proven([place.score for place in places.values()], found, limit)
        if exact or found.complete or found.k >= LARGEST_K:
            return places, exact
        found = candidates(index, queries, limit, k=2 * found.k)


@pytest.mark.parametrize(("rank", "kind"), [(None, "flat"), (6, "flat"), (None, "sq8")])
def test_two_stages_give_the_exhaustive_top_and_can_prove_it(tmp_path: Path, rank: int | None, kind: str) -> None:
    rng = np.random.default_rng(11)
    fold = make_fold(rank=rank)
    stems = catalog(rng, 150)
    queries = make_queries(rng, 8.0)
    for row, shift in ((17, 0), (60, 3), (99, 40)):
        plant(queries, stems[row], float(stems[row].starts_s[0]) - shift * SHIFT_S, fold, shift)
    places, exact = two_stages(make_index(tmp_path, stems, fold, kind), queries, stems, 5)
    everything = align_all(fold, queries, stems)
    expected = sorted(everything, key=lambda row: -everything[row].score)[:5]
    assert exact
    assert sorted(places, key=lambda row: -places[row].score)[:5] == expected
    assert {17, 60, 99} <= set(expected)
    for row in expected:
        assert (places[row].start_s, places[row].score) == (
            everything[row].start_s,
            pytest.approx(everything[row].score, abs=SCORE_TOLERANCE),
        )


def test_nothing_outside_the_candidates_scores_above_their_ceiling(tmp_path: Path) -> None:
    rng = np.random.default_rng(12)
    for rank in (None, 4):
        fold = make_fold(rank=rank)
        stems = catalog(rng, 120)
        queries = make_queries(rng, 6.0)
        index = make_index(tmp_path / str(rank), stems, fold)
        everything = align_all(fold, queries, stems)
        full = candidates(index, queries, 5, k=5)
        for found in (full, full.first(30), full.first(3), full.first(1), full.first(0)):
            outside = [place.score for row, place in everything.items() if row not in found.rows]
            assert max(outside, default=-math.inf) <= found.ceiling
        assert len(full.first(3).rows) == 3


def test_candidates_widen_until_enough_stems_have_come(tmp_path: Path) -> None:
    # One stem of 400 windows holds every row's best windows; the others come only when k exceeds them.
    rng = np.random.default_rng(13)
    fold = HermitianFold(np.eye(DIMENSION, dtype=complex))
    queries = make_queries(rng, 5.0)
    n = 400
    loud = np.repeat(queries.embedding[:1], n, axis=0)
    stems = {1: StemEmbeddings.in_clock_time(np.arange(n), np.arange(n) * STRIDE_S, loud)} | {
        row: make_stem(rng, 5.0) for row in range(2, 90)
    }
    found = candidates(make_index(tmp_path, stems, fold), queries, 1)
    assert found.k > n
    assert len(found.rows) >= FEWEST_CANDIDATES
    assert found.rows[0] == 1
    assert (np.diff(found.best) <= 0).all()


def test_a_small_catalog_is_exhausted_and_so_proven(tmp_path: Path) -> None:
    rng = np.random.default_rng(14)
    fold, stems, queries = make_fold(), catalog(rng, 4), make_queries(rng, 6.0)
    index = make_index(tmp_path, stems, fold)
    found = candidates(index, queries, 10)
    assert sorted(found.rows.tolist()) == [1, 2, 3, 4]
    assert found.complete
    assert np.isneginf(found.threshold).all()
    assert proven(best_places(fold, queries, stems).scores.values(), found, 10)
    allowed = candidates(index, queries, 10, np.array([3, 77]))
    assert allowed.rows.tolist() == [3]
    assert allowed.complete
    nothing = candidates(index, queries, 10, np.empty(0, np.int64))
    assert (nothing.rows.tolist(), nothing.complete) == ([], True)


def test_no_proof_where_the_ceiling_is_above_the_last_hit() -> None:
    found = Candidates(np.array([1, 2]), np.float32([3, 2]), np.array([1.5]), np.array([0.1]), 2, 1.6)

    assert proven([1.7, 3.0], found, 2)
    assert not proven([1.5, 3.0], found, 2)
    assert not proven([3.0], found, 2)


@pytest.mark.parametrize("seed", range(6))
def test_refinement_finds_the_true_place_to_ten_milliseconds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    music = SmoothMusic(seed)
    for _ in range(12):
        true_start_s = round(float(rng.uniform(0, 20)), 4)
        coarse, fine, windows = music.search(true_start_s, 8.0)
        assert abs(coarse.start_s - true_start_s) <= SHIFT_S / 2 + 0.001
        # Half a fine shift, and the millisecond that places are rounded to.
        assert abs(fine.start_s - true_start_s) <= FINE_S / 2 + 0.001
        assert fine.score >= coarse.score - SCORE_TOLERANCE
        assert windows <= 4 * len(coarse.pairs)


def test_a_slow_scores_place_is_found_from_a_coarse_grid_with_two_windows_a_pair() -> None:
    errors_s = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        music = SmoothMusic(seed, speed=SLOW)
        for _ in range(12):
            true_start_s = round(float(rng.uniform(0, 20)), 4)
            coarse, fine, windows = music.search(true_start_s, 8.0, shift_s=COARSE_S, drawn=True)
            assert fine.score >= max(0.999, coarse.score)  # the stem against itself scores 1
            assert windows <= 2 * len(coarse.pairs)
            errors_s.append(abs(fine.start_s - true_start_s))
    # A peak this flat may be missed by a step or two: a thousandth of the score.
    assert max(errors_s) <= 2 * FINE_S
    assert np.mean(np.array(errors_s) <= FINE_S + 0.001) >= 0.9


def test_every_second_shift_is_missed_little_by_a_slow_score_and_much_by_a_fast_one() -> None:
    slow, fast = SmoothMusic(1, speed=SLOW), SmoothMusic(1)
    missed = [missed_by_half(music.fold, music.queries(3.0, 8.0, COARSE_S)) for music in (slow, fast)]
    assert missed[0] is not None
    assert missed[1] is not None
    assert missed[0] < 0.25 < 1.0 < missed[1]
    # On a finer grid the fast one is better drawn; noise is not, whatever the grid.
    finer = missed_by_half(fast.fold, fast.queries(3.0, 8.0, SHIFT_S))
    assert finer is not None
    assert finer < 0.6
    noise = missed_by_half(fast.fold, make_queries(np.random.default_rng(0), 8.0))
    assert noise == pytest.approx(math.sqrt(1.5), abs=0.15)  # a value beside the mean of two others, all independent


def test_halfway_between_shifts_a_line_misses_little_of_what_they_draw_and_all_of_noise() -> None:
    for seed in range(6):
        music = SmoothMusic(seed)
        queries = music.queries(3.0, 8.0, SHIFT_S)
        before, after = neighbouring_shifts(queries, 8)
        assert len(before) == 8
        assert (queries.window[before] == queries.window[after]).all()
        assert (queries.shift[after] - queries.shift[before] == 1).all()
        halfway_s = (queries.offset_s[before] + queries.offset_s[after]) / 2
        drawn = missed_between(music.fold, queries, before, after, music.embed(halfway_s + 3.0))
        assert drawn < 0.35
        noise = unit_rows(np.random.default_rng(seed), 8).astype(np.complex64)
        assert missed_between(music.fold, queries, before, after, noise) > 0.9


def test_neighbouring_shifts_are_of_one_window_and_spread_over_all() -> None:
    queries = make_queries(np.random.default_rng(0), 8.0)
    every, _ = neighbouring_shifts(queries)
    shifts = np.bincount(queries.window)
    assert len(every) == sum(shifts - 1)
    few, _ = neighbouring_shifts(queries, 3)
    assert len(few) == 3
    assert {every[0], every[-1]} < set(few.tolist())
    assert not len(neighbouring_shifts(make_queries(np.random.default_rng(0), 20.0, shift_s=STRIDE_S))[0])


def test_too_few_shifts_tell_nothing() -> None:
    music = SmoothMusic(1)
    assert missed_by_half(music.fold, music.queries(3.0, 5.2, SHIFT_S)) is None
    # Seven windows a stride apart are no shifts of one window.
    assert missed_by_half(music.fold, music.queries(3.0, 20.0, STRIDE_S)) is None


def test_refinement_steps_beyond_the_last_shift_as_far_as_the_mix_allows() -> None:
    # Shifts of 0, 40 and 80 ms were searched; the stem's window begins 95 ms into the mix.
    true_start_s = 5.0 - 0.095
    coarse, fine, _ = SmoothMusic(1).search(true_start_s, 5.3, searched=5.08)
    assert coarse.pairs[0].mix_s == pytest.approx(0.08)
    assert abs(fine.start_s - true_start_s) <= FINE_S / 2 + 0.001
    # The same mix, but it ends where the last shift's window does: there is nothing more to listen to.
    _, fine, _ = SmoothMusic(1).search(true_start_s, 5.08)
    assert fine.start_s == coarse.start_s


def test_refinement_does_not_step_before_the_mix() -> None:
    # The stem's window begins 15 ms before the mix does.
    coarse, fine, _ = SmoothMusic(1).search(5.015, 5.08)
    assert coarse.start_s == fine.start_s == 5.0


def test_fine_windows_never_leave_the_mix_and_are_shared_by_hits() -> None:
    pairs = (Pair(0, 0, 1.0, 0.0, 5.0), Pair(1, 1, 1.0, 2.5, 7.5))
    lonely = Place(1.0, 5.0, pairs, ((0.0, 1.0),))
    offsets = refine_offsets([lonely, lonely], shift_s=SHIFT_S, fine_shift_s=FINE_S, first_s=0.0, last_s=2.51)
    assert offsets.tolist() == [0.01, 0.02, 2.48, 2.49, 2.51]
    rising = Place(1.0, 5.0, pairs, ((-0.04, 0.2), (0.0, 1.0), (0.04, 0.6)))
    offsets = refine_offsets([rising], shift_s=SHIFT_S, fine_shift_s=FINE_S, first_s=0.0, last_s=9.0)
    assert offsets.tolist() == [0.01, 0.02, 2.49, 2.51, 2.52]
    assert refine_offsets([], shift_s=SHIFT_S, fine_shift_s=FINE_S, first_s=0.0, last_s=9.0).shape == (0,)


def test_of_a_drawn_score_the_parabolas_peak_alone_is_tried() -> None:
    pairs = (Pair(0, 0, 1.0, 1.0, 5.0),)

    def tried(*curve: tuple[float, float]) -> list[float]:
        place = Place(dict(curve)[0.0], 4.0, pairs, curve)
        return refine_offsets(
            [place], shift_s=COARSE_S, fine_shift_s=FINE_S, first_s=0.0, last_s=9.0, drawn=True
        ).tolist()

    # 1 - (t - 0.03)^2 * 10, and the same leaning the other way.
    assert tried((-0.16, 0.639), (0.0, 0.991), (0.16, 0.831)) == [1.03]
    assert tried((-0.16, 0.831), (0.0, 0.991), (0.16, 0.639)) == [0.97]
    assert tried((-0.16, 0.8), (0.0, 1.0), (0.16, 0.8)) == []  # it is there already
    assert tried((-0.16, 0.8), (0.0, 1.0), (0.1, 1.0)) == [1.05]  # across the end of the shifts the gap is narrower
    assert tried((0.0, 1.0), (0.16, 0.8)) == [0.92, 0.96, 1.04, 1.08]  # nothing is known of one side


def test_a_place_with_no_better_neighbour_stays() -> None:
    music = SmoothMusic(2)
    coarse, fine, _ = music.search(7.5, 8.0)
    assert coarse.start_s == fine.start_s == 7.5
    assert fine.pairs == coarse.pairs
    rng = np.random.default_rng(0)
    stem = make_stem(rng, 30.0)
    nothing = np.empty((0, DIMENSION), np.complex64)
    assert refined(music.fold, {5: coarse}, {5: stem}, nothing, np.empty(0), shift_s=SHIFT_S) == {5: coarse}


def test_a_longer_mix_goes_on_along_the_diagonal_of_a_place() -> None:
    stem = make_stem(np.random.default_rng(0), 30.0)  # windows from 0 to 25 s
    place = Place(1.0, 4.3, (Pair(0, 2, 1.0, 0.7, 5.0),), ((0.0, 1.0),))
    further = further_pairs(place, stem, 99, Extent(0.0, 12.0, STRIDE_S))
    assert further == [(3, 3.2), (4, 5.7), (5, 8.2), (6, 10.7)]
    assert further_pairs(place, stem, 2, Extent(0.0, 12.0, STRIDE_S)) == [(3, 3.2), (6, 10.7)], "spread over all"
    assert further_pairs(place, stem, 99, Extent(4.0, 8.2, STRIDE_S)) == [(4, 5.7), (5, 8.2)]
    assert further_pairs(place, stem, 99, Extent(0.0, 2.0, STRIDE_S)) == []


def test_further_pairs_are_scored_exactly_and_the_score_is_the_mean_of_all() -> None:
    rng = np.random.default_rng(1)
    fold, stem = make_fold(), make_stem(rng, 30.0)
    place = Place(1.5, 4.3, (Pair(0, 2, 1.5, 0.7, 5.0),), ((0.0, 1.5), (0.04, 1.0)))
    further = further_pairs(place, stem, 3, Extent(0.0, 20.0, STRIDE_S))
    mix = longer_mix(rng, stem, 4.3, np.array([at_s for _, at_s in further]))
    longer = with_pairs(fold, place, stem, further, mix)
    expected = [1.5] + [
        float((stem.embedding[window].conj() @ fold.hermitian @ stem.embedding[window]).real) for window, _ in further
    ]
    np.testing.assert_allclose([pair.score for pair in longer.pairs], expected, atol=1e-6)
    assert longer.score == pytest.approx(np.mean(expected), abs=1e-6)
    assert longer.start_s == place.start_s
    assert [(pair.mix_s, pair.stem_s) for pair in longer.pairs[1:]] == [
        (at_s, float(stem.starts_s[window])) for window, at_s in further
    ]


def test_silence_in_the_rest_of_a_mix_says_nothing() -> None:
    rng = np.random.default_rng(2)
    fold, stem = make_fold(), make_stem(rng, 30.0)
    place = Place(1.5, 5.0, (Pair(0, 2, 1.5, 0.0, 5.0),), ((0.0, 1.5),))
    further = further_pairs(place, stem, 99, Extent(0.0, 5.0, STRIDE_S))
    assert len(further) == 2
    heard = longer_mix(rng, stem, 5.0, np.array([further[1][1]]))
    assert [pair.window for pair in with_pairs(fold, place, stem, further, heard).pairs] == [2, further[1][0]]
    nothing = longer_mix(rng, stem, 5.0, np.zeros(0))
    assert with_pairs(fold, place, stem, further, nothing) is place
