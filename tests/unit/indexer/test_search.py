import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indexer.catalog.records import StemEmbeddings
from indexer.diagonals import Place, QueryWindows, best_places
from indexer.index.fold import HermitianFold
from indexer.index.index import Index
from indexer.index.keys import ANY_STEM, CHROMA, TRAITS, traits_of
from indexer.search import FEWEST_CANDIDATES, LARGEST_K, Candidates, candidates, proven
from tests.embeddings import write_snapshot
from tests.mixes import (
    DIMENSION,
    SCORE_TOLERANCE,
    SHIFT_S,
    STRIDE_S,
    align_all,
    make_fold,
    make_queries,
    make_stem,
    plant,
)


def catalog(rng: np.random.Generator, n: int) -> dict[int, StemEmbeddings]:
    return {row: make_stem(rng, float(rng.uniform(4, 25))) for row in range(1, n + 1)}


def make_index(folder: Path, stems: dict[int, StemEmbeddings], fold: HermitianFold, kind: str = "flat") -> Index:
    return Index.of(write_snapshot(folder, [stems], fold, index_type=kind))


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


def test_what_is_taken_off_every_score_is_off_the_ceiling_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(15)
    fold, stems, queries = make_fold(), catalog(rng, 120), make_queries(rng, 6.0)
    stems = {row: replace(stem, chroma=rng.normal(size=12).astype(np.float32)) for row, stem in stems.items()}
    index = make_index(tmp_path, stems, fold)
    weights = np.zeros((len(queries.shift), TRAITS), np.float32)
    weights[:, CHROMA] = rng.normal(size=12)
    weights[:, ANY_STEM] = -20
    costs = np.array([-float(traits_of(stem)[0] @ weights[0]) for stem in stems.values()])
    lost = np.repeat(costs[:, None], len(np.unique(queries.shift)), axis=1)
    every = best_places(fold, queries, stems, lost).scores
    found = candidates(index, replace(queries, trait_weights=weights), 5)
    few = found.first(20)
    assert max(score for row, score in every.items() if row not in few.rows) <= few.ceiling
    assert proven([every[row] for row in found.rows.tolist()], found, 5)
    assert sorted(every, key=lambda row: -every[row])[0] in few.rows


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
    assert proven(best_places(fold, queries, stems).scores.values(), found, 10)
    allowed = candidates(index, queries, 10, np.array([3, 77]))
    assert allowed.rows.tolist() == [3]
    assert allowed.complete
    nothing = candidates(index, queries, 10, np.empty(0, np.int64))
    assert (nothing.rows.tolist(), nothing.complete) == ([], True)


def test_no_proof_where_the_ceiling_is_above_the_last_hit() -> None:
    found = Candidates(np.array([1, 2]), np.float32([3, 2]), np.array([0.1]), 2, 1.6)

    assert proven([1.7, 3.0], found, 2)
    assert not proven([1.5, 3.0], found, 2)
    assert not proven([3.0], found, 2)
