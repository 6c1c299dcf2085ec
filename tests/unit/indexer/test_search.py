import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from indexer.catalog.records import StemEmbeddings
from indexer.index.fold import HermitianFold
from indexer.index.index import Index
from indexer.index.snapshot import Snapshot
from indexer.search import (
    FEWEST_CANDIDATES,
    LARGEST_K,
    Candidates,
    Extent,
    Pair,
    Place,
    QueryWindows,
    best_places,
    candidates,
    further_pairs,
    missed_between,
    missed_by_half,
    neighbouring_shifts,
    promising_places,
    proven,
    refine_offsets,
    refined,
    with_pairs,
)

DIMENSION = 16
WINDOW_S, STRIDE_S, SHIFT_S, FINE_S = 5.0, 2.5, 0.04, 0.01
SLOW, COARSE_S = 2.0, 0.16  # see SmoothMusic
# Means over float64 products, summed in another order.
SCORE_TOLERANCE = 1e-9
# Index scores are float32; the exact ones are float64.
INDEX_TOLERANCE = 1e-5


def make_fold(seed: int = 0, rank: int | None = None) -> HermitianFold:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((DIMENSION, DIMENSION)) + 1j * rng.standard_normal((DIMENSION, DIMENSION))
    return HermitianFold((w + w.conj().T) / 2, rank=rank)


def unit_rows(rng: np.random.Generator, n: int) -> npt.NDArray[np.complex64]:
    rows = rng.standard_normal((n, DIMENSION)) + 1j * rng.standard_normal((n, DIMENSION))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.complex64)


def stem_starts(seconds: float) -> npt.NDArray[np.float64]:
    """As in the catalog: one stride apart, the last window ends with the clip."""
    if seconds <= WINDOW_S:
        return np.zeros(1)
    starts = np.arange(0, seconds - WINDOW_S + 1e-9, STRIDE_S)
    last = round(seconds - WINDOW_S, 4)
    return starts if last - starts[-1] < 1e-6 else np.append(starts, last)


def align_all(fold: HermitianFold, queries: QueryWindows, stems: dict[int, StemEmbeddings]) -> dict[int, Place]:
    """The best place of each stem."""
    found = best_places(fold, queries, stems)
    return {number: found.place(number) for number in found.scores}


def align(
    fold: HermitianFold,
    queries: QueryWindows,
    embedding: npt.NDArray[np.complex64],
    start_s: npt.NDArray[np.float64],
) -> Place | None:
    """The best place of one stem."""
    return align_all(fold, queries, {0: StemEmbeddings(np.arange(len(start_s)), start_s, embedding)}).get(0)


def make_stem(rng: np.random.Generator, seconds: float) -> StemEmbeddings:
    starts = stem_starts(seconds)
    return StemEmbeddings(np.arange(len(starts)), starts, unit_rows(rng, len(starts)))


def make_queries(
    rng: np.random.Generator, seconds: float, *, begin_s: float = 0.0, shift_s: float = SHIFT_S
) -> QueryWindows:
    """Every window of the mix at every shift of one stride, as far as the mix goes."""
    rows = []
    for shift in range(math.ceil(STRIDE_S / shift_s - 1e-9)):
        window = 0
        while shift * shift_s + window * STRIDE_S + WINDOW_S <= seconds + 1e-9:
            rows.append((begin_s + shift * shift_s + window * STRIDE_S, shift, window))
            window += 1
    offset_s, shift_of, window_of = (np.array(column) for column in zip(*rows, strict=True))
    return QueryWindows(unit_rows(rng, len(rows)), offset_s, shift_of, window_of)


def plant(queries: QueryWindows, stem: StemEmbeddings, start_s: float, fold: HermitianFold, shift: int) -> int:
    """Make the stem's windows score highest against the windows of one shift, at one place; how many pairs that is."""
    best = np.linalg.eigh(fold.hermitian)[1][:, -1].astype(np.complex64)
    pairs = 0
    for row in np.flatnonzero(queries.shift == shift):
        for window in np.flatnonzero(np.abs(stem.starts_s - queries.offset_s[row] - start_s) < 1e-6):
            queries.embedding[row] = stem.embedding[window] = best
            pairs += 1
    return pairs


def exhaustive(fold: HermitianFold, queries: QueryWindows, stem: StemEmbeddings) -> tuple[float, float, int] | None:
    """Every diagonal by plain loops: the best one's score, place and number of pairs."""
    form = fold.hermitian
    diagonals: dict[tuple[int, int], list[float]] = defaultdict(list)
    for q in range(len(queries.offset_s)):
        x = queries.embedding[q].astype(np.complex128)
        for j in range(len(stem.starts_s)):
            place = round((float(stem.starts_s[j]) - float(queries.offset_s[q])) * 1000)
            score = (x.conj() @ form @ stem.embedding[j].astype(np.complex128)).real
            diagonals[int(queries.shift[q]), place].append(float(score))
    best: tuple[float, float, int] | None = None
    for (shift, place), scores in diagonals.items():
        mix_windows = int((queries.shift == shift).sum())
        if len(scores) < math.ceil(min(mix_windows, len(stem.starts_s)) / 2):
            continue
        found = (sum(scores) / len(scores), place / 1000, len(scores))
        if best is None or found[0] > best[0]:
            best = found
    return best


# ---------------------------------------------------------------- stage 2


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


# ---------------------------------------------------------------- stage 1 and the proof


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
    stems = {1: StemEmbeddings(np.arange(n), np.arange(n) * STRIDE_S, loud)} | {
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


# ---------------------------------------------------------------- refinement


class SmoothMusic:
    """A made-up mix and stem: the embedding turns with time, so that the score falls smoothly with the delay."""

    def __init__(self, seed: int, lean: float = 0.0, speed: float = 22.0) -> None:
        rng = np.random.default_rng(seed)
        # Half of the score is gone at a delay of 40 ms, like the short-trained model's; at SLOW, a twentieth at 160 ms.
        self.speed = rng.normal(lean, speed, DIMENSION)
        self.fold = HermitianFold(np.eye(DIMENSION, dtype=complex))
        self.scenes = unit_rows(rng, 400)

    def embed(self, times: npt.NDArray[np.float64]) -> npt.NDArray[np.complex64]:
        # A scene every 1.25 s, fading into the next: windows far apart have nothing to do with each other.
        at = np.maximum(times / 1.25 + 100, 0)
        scene = at.astype(int)
        part = (at - scene)[:, None]
        mixed = self.scenes[scene] * np.cos(np.pi / 2 * part) + self.scenes[scene + 1] * np.sin(np.pi / 2 * part)
        rows = mixed * np.exp(1j * times[:, None] * self.speed)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.complex64)

    def search(
        self,
        true_start_s: float,
        mix_s: float,
        searched: float | None = None,
        shift_s: float = SHIFT_S,
        drawn: bool = False,
    ) -> tuple[Place, Place, int]:
        """The mix is the stem from `true_start_s` on; the coarse place, the refined one, and the windows it took."""
        stem_start_s = stem_starts(30.0)
        stem = StemEmbeddings(np.arange(len(stem_start_s)), stem_start_s, self.embed(stem_start_s))
        queries = self.queries(true_start_s, mix_s if searched is None else searched, shift_s)
        coarse = places = align_all(self.fold, queries, {5: stem})
        windows, last_s = 0, mix_s - WINDOW_S
        for _ in range(2 if drawn else 1):
            offsets = refine_offsets(
                places.values(), shift_s=shift_s, fine_shift_s=FINE_S, first_s=0.0, last_s=last_s, drawn=drawn
            )
            fine = self.embed(offsets + true_start_s)
            places = refined(self.fold, places, {5: stem}, fine, offsets, shift_s=shift_s)
            windows += len(offsets)
        return coarse[5], places[5], windows

    def queries(self, true_start_s: float, mix_s: float, shift_s: float) -> QueryWindows:
        queries = make_queries(np.random.default_rng(0), mix_s, shift_s=shift_s)
        queries.embedding[:] = self.embed(queries.offset_s + true_start_s)
        return queries


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
    short = StemEmbeddings(np.arange(1), stem.starts_s[:1], stem.embedding[:1])
    assert found(-12.5, -12.5, stem=short, searched_s=12.5).start_s == -12.5, "a stem of one window has no other"
    stem = make_stem(np.random.default_rng(0), 60.0)
    apart = np.array([0, 8, 16])  # it sounds every 20 s, so no two of its windows meet such a mix at once
    sparse = StemEmbeddings(apart, stem.starts_s[apart], stem.embedding[apart])
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
    stem = StemEmbeddings(np.arange(len(start_s)), start_s, embedding.astype(np.complex64))
    assert align_all(music.fold, queries, {1: stem})[1].start_s == pytest.approx(copy_start_s)
    first, second = promising_places(music.fold, queries, {1: stem}, 2, apart_s=SHIFT_S)[1]
    assert first.start_s == pytest.approx(copy_start_s)
    assert second.peak == pytest.approx(first.peak, abs=0.1)
    assert abs(second.start_s - true_start_s) <= SHIFT_S / 2 + 0.001
    assert second.promise > second.score


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


def test_a_place_with_no_better_neighbour_stays() -> None:
    music = SmoothMusic(2)
    coarse, fine, _ = music.search(7.5, 8.0)
    assert coarse.start_s == fine.start_s == 7.5
    assert fine.pairs == coarse.pairs
    rng = np.random.default_rng(0)
    stem = make_stem(rng, 30.0)
    nothing = np.empty((0, DIMENSION), np.complex64)
    assert refined(music.fold, {5: coarse}, {5: stem}, nothing, np.empty(0), shift_s=SHIFT_S) == {5: coarse}


def test_the_curve_knows_the_neighbours_across_the_end_of_the_shifts() -> None:
    # Shift 0 of window 1 begins 20 ms after the last shift of window 0.
    music = SmoothMusic(3)
    coarse, _, _ = music.search(7.5, 8.0)
    displacements = [at for at, _ in coarse.curve]
    assert displacements == [-0.02, 0.0, 0.04]
    assert max(coarse.curve, key=lambda point: point[1])[0] == 0.0


def longer_mix(
    rng: np.random.Generator, stem: StemEmbeddings, start_s: float, at_s: npt.NDArray[np.float64]
) -> QueryWindows:
    """Windows of a mix that is the stem itself from `start_s` on, where its grid lies; noise where it has none."""
    embedding = unit_rows(rng, len(at_s))
    for row, offset_s in enumerate(at_s):
        (windows,) = np.nonzero(np.abs(stem.starts_s - start_s - offset_s) < 1e-6)
        if len(windows):
            embedding[row] = stem.embedding[windows[0]]
    none = np.zeros(len(at_s), np.int64)
    return QueryWindows(embedding, at_s, none, none)


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
