import threading
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from indexer.catalog.records import StemEmbeddings
from indexer.index.fold import NotFinite, WrongShape
from indexer.index.index import Index, KeysInMemory
from indexer.index.keys import (
    LOG_WINDOWS,
    TRAITS,
    EmbeddingNotFinite,
    highest_rank,
    key_dim,
    split_ids,
    traits_of,
)
from indexer.index.manifest import facts_of, key_dim_of, manifest_bytes
from indexer.index.snapshot import KEYS, MANIFEST, Snapshot
from tests.embeddings import random_fold, random_rows, random_stem, write_snapshot

DIMENSION = 8


make_fold = partial(random_fold, DIMENSION)
unit_rows = partial(random_rows, dimension=DIMENSION)
make_stem = partial(random_stem, dimension=DIMENSION)


def sealed(folder: Path, rows: range = range(5), **changed: Any) -> Index:
    stems = {row: make_stem(row) for row in rows}
    return Index.of(write_snapshot(folder, [stems], **{"fold": make_fold()} | changed))


def found_rows(index: Index) -> set[int]:
    rows = split_ids(index.search(index.fold.queries(unit_rows(100, 1)), 100)[1])[0]
    return set(rows[rows >= 0].tolist())


def test_changes_make_a_new_index_and_leave_the_old_one(tmp_path: Path) -> None:
    old = sealed(tmp_path)
    new = old.with_changes({1: make_stem(50, 2), 9: make_stem(9)}, [3], 18)
    assert found_rows(old) == {0, 1, 2, 3, 4}
    assert (old.windows, old.stems, old.fresh_windows, old.seq) == (15, 5, 0, 17)
    assert found_rows(new) == {0, 1, 2, 4, 9}
    assert (new.windows, new.stems, new.fresh_windows, new.seq) == (14, 5, 5, 18)
    assert new.tombstones == {1, 3}
    assert new.generation == old.generation == 3


def test_the_same_changes_twice_change_nothing(tmp_path: Path) -> None:
    once = sealed(tmp_path).with_changes({1: make_stem(50), 9: make_stem(9)}, [3], 18)
    twice = once.with_changes({1: make_stem(50), 9: make_stem(9)}, [3], 18)
    queries = once.fold.queries(unit_rows(1, 4))
    for a, b in zip(once.search(queries, 20), twice.search(queries, 20), strict=True):
        assert np.array_equal(a, b)
    assert (twice.windows, twice.stems, twice.fresh_windows) == (once.windows, once.stems, once.fresh_windows)


def test_changes_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    index = sealed(tmp_path)
    with pytest.raises(ValueError, match="both"):
        index.with_changes({1: make_stem(1)}, [1], 18)
    with pytest.raises(ValueError, match="older"):
        index.with_changes({}, [], 16)
    poisoned = make_stem(1)
    poisoned.embedding[0, 0] = np.nan
    with pytest.raises(EmbeddingNotFinite):
        index.with_changes({1: poisoned}, [], 18)


def test_queries_of_another_fold_are_refused(tmp_path: Path) -> None:
    index = sealed(tmp_path)
    with pytest.raises(WrongShape):
        index.search(make_fold(rank=3).queries(unit_rows(1, 1)), 1)
    with pytest.raises(ValueError, match="k is 0"):
        index.search(index.fold.queries(unit_rows(1, 1)), 0)
    with pytest.raises(NotFinite):
        index.search(np.full((1, index.fold.dim), np.nan, np.float32), 1)


@pytest.mark.parametrize("rank", [None, 3])
def test_slack_covers_the_error_of_base_and_fresh_scores(tmp_path: Path, rank: int | None) -> None:
    index = sealed(tmp_path, fold=make_fold(rank=rank)).with_changes({9: make_stem(9)}, [3], 18)
    x = unit_rows(1, 6) * np.linspace(1.0, 1.3, 6, dtype=np.float32)[:, None]
    scores, ids = index.search(index.fold.queries(x), 15)
    rows, windows = split_ids(ids)
    slack = index.slack(x)
    for q in range(6):
        stored = np.stack([make_stem(int(r)).embedding[w] for r, w in zip(rows[q], windows[q], strict=True)])
        exact = index.fold.scores(x[q : q + 1], stored)[0]
        assert (np.abs(scores[q] - exact) <= slack[q]).all()
    assert (slack > 0.01).any() if rank else (slack < 1e-4).all()


def with_chroma(seed: int, n: int = 3) -> StemEmbeddings:
    chroma = np.random.default_rng(seed).normal(size=12).astype(np.float32)
    return replace(make_stem(seed, n), chroma=chroma / np.linalg.norm(chroma) if seed % 3 else None)


@pytest.mark.parametrize("index_type", ["flat", "fp16", "sq8", "ivf"])
def test_trait_weights_add_what_a_stems_traits_say_to_the_score_of_each_of_its_windows(
    tmp_path: Path, index_type: str
) -> None:
    stems = {row: with_chroma(row, 1 + row % 4) for row in range(40)}
    base = Index.of(write_snapshot(tmp_path, [stems], make_fold(), index_type=index_type))
    index = base.with_changes({41: with_chroma(41), 42: with_chroma(42, 1)}, [3], 18)
    x, weights = unit_rows(1, 6), np.random.default_rng(0).normal(size=(6, TRAITS)).astype(np.float32)
    scores, ids = index.search(index.fold.queries(x), 500, trait_weights=weights)
    rows, windows = split_ids(ids)
    stems |= {41: with_chroma(41), 42: with_chroma(42, 1)}
    for q in range(6):
        there = rows[q] >= 0
        found = list(zip(rows[q][there].tolist(), windows[q][there].tolist(), strict=True))
        assert len(found) == index.windows
        stored = np.stack([stems[row].embedding[window] for row, window in found])
        traits = np.stack([traits_of(stems[row])[window] for row, window in found])
        exact = index.fold.scores(x[q : q + 1], stored)[0] + traits @ weights[q]
        assert (np.abs(scores[q][there] - exact) <= index.slack(x, weights)[q]).all()


def test_a_stems_length_counts_by_the_windows_of_the_same_time_base() -> None:
    stem = replace(make_stem(1, 5), beats=np.array([np.nan, np.nan, 0.0, 5.0, 10.0]))
    assert np.exp(traits_of(stem)[:, LOG_WINDOWS]) == pytest.approx([2, 2, 3, 3, 3])


def test_an_index_from_before_traits_scores_all_its_stems_without_and_takes_new_ones(tmp_path: Path) -> None:
    """Else the stems that came since would rank below the others."""
    before = of_format(3, write_snapshot(tmp_path, [{row: make_stem(row) for row in range(5)}], make_fold()))
    index = Index.of(before).with_changes({9: with_chroma(10)}, [3], 18)
    x, weights = unit_rows(1, 1), np.full((1, TRAITS), -1, np.float32)
    scores, ids = index.search(index.fold.queries(x), 15, trait_weights=weights)
    rows, windows = split_ids(ids[0])
    assert set(rows.tolist()) == {0, 1, 2, 4, 9}
    stems = {row: make_stem(row) for row in range(5)} | {9: with_chroma(10)}
    stored = np.stack([stems[int(row)].embedding[window] for row, window in zip(rows, windows, strict=True)])
    assert scores[0] == pytest.approx(index.fold.scores(x, stored)[0], abs=1e-5)
    assert index.fresh_keys()[1].shape == (3, index.fold.dim), "a collection from before takes them as it can"


def test_an_index_whose_keys_are_no_multiple_of_eight_long_answers_as_one_of_today(tmp_path: Path) -> None:
    stems = {row: with_chroma(row) for row in range(5)}
    today = write_snapshot(tmp_path, [stems], make_fold())
    changes = {9: with_chroma(10)}, [3], 18
    x, weights = unit_rows(1, 2), np.random.default_rng(0).normal(size=(2, TRAITS)).astype(np.float32)
    wanted = Index.of(today).with_changes(*changes).search(today.fold.queries(x), 20, trait_weights=weights)
    before = of_format(4, today)
    assert before.keys.d == 2 * DIMENSION + TRAITS < today.keys.d
    found = Index.of(before).with_changes(*changes).search(today.fold.queries(x), 20, trait_weights=weights)
    assert np.array_equal(found[1], wanted[1])
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)


@pytest.mark.parametrize("dim", range(2, 40, 2))
def test_a_key_is_a_multiple_of_eight_long_and_no_longer_than_it_must_be(dim: int) -> None:
    assert key_dim(dim) % 8 == 0
    assert dim + TRAITS <= key_dim(dim) < dim + TRAITS + 8
    assert key_dim(2 * highest_rank(dim + 20)) <= dim + 20 < key_dim(2 * highest_rank(dim + 20) + 2)


def of_format(form: int, snapshot: Snapshot) -> Snapshot:
    """The same snapshot as an earlier release wrote it, read again from its folder."""
    folder, dim = snapshot.folder, key_dim_of(snapshot.fold.dim, form)
    assert folder is not None
    keys = faiss.downcast_index(snapshot.keys.index).reconstruct_n(0, snapshot.keys.ntotal)
    plain = faiss.IndexIDMap(faiss.IndexFlatIP(dim))
    plain.add_with_ids(keys[:, :dim].copy(), snapshot.ids)
    faiss.write_index(plain, str(folder / KEYS))
    files = {**snapshot.manifest.files, KEYS: facts_of(folder / KEYS)}
    manifest = replace(snapshot.manifest, dim=dim, files=files, format=form)
    (folder / MANIFEST).write_bytes(manifest_bytes(asdict(manifest)))
    return Snapshot.load(folder)


def test_changes_while_others_search_never_mix_two_states(tmp_path: Path) -> None:
    """Stem 9 has 1 window, then 2, then 3, and so on: every search must see one of these states whole."""
    live = [sealed(tmp_path).with_changes({9: make_stem(9, 1)}, [], 18)]
    queries = live[0].fold.queries(unit_rows(1, 8))
    stop, wrong, searches = threading.Event(), [], [0]

    def search() -> None:
        while not stop.is_set():
            index = live[0]
            rows, windows = split_ids(index.search(queries, 200)[1])
            for row in range(8):
                seen = sorted(windows[row][rows[row] == 9].tolist())
                if seen != list(range(index.seq - 17)):
                    wrong.append((index.seq, seen))
            searches[0] += 1

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(2, 60):
        live[0] = live[0].with_changes({9: make_stem(9, n), 20: make_stem(20, n)}, [n % 5], 17 + n)
    stop.set()
    for thread in threads:
        thread.join()
    assert searches[0] > 0
    assert wrong == []


def test_many_small_changes_leave_few_parts_to_search(tmp_path: Path) -> None:
    index = sealed(tmp_path)
    for n in range(200):
        index = index.with_changes({100 + n: make_stem(n)}, [100 + n - 50] if n % 3 == 0 else [], 18 + n)
        sizes = [part.windows for part in index._fresh]
        assert all(large >= 2 * small for large, small in pairwise(sizes))
        assert sum(len(part.ids) for part in index._fresh) <= 2 * index.fresh_windows
    assert len(index._fresh) <= 10


def test_a_graphics_card_gets_only_what_it_can_answer(tmp_path: Path) -> None:
    """Where the choice falls, with a flat index in the card's place; a real card needs faiss-gpu."""

    class Card:
        asked = 0

        def __init__(self, keys: Any) -> None:
            self.keys = keys

        def search(self, queries: npt.NDArray[np.float32], k: int) -> Any:
            Card.asked += 1
            return self.keys.search(queries, k)

    index = sealed(tmp_path)
    assert isinstance(index.base, KeysInMemory)
    assert index.base.card is None, "faiss-cpu has none"
    on_card = index.on(replace(index.base, card=Card(index.base.keys)), fresh=True)  # type: ignore[arg-type]
    queries = index.fold.queries(unit_rows(1, 4))
    assert np.array_equal(on_card.search(queries, 7)[1], index.search(queries, 7)[1])
    assert Card.asked == 1
    on_card.search(queries, 7, np.array([0, 1]))
    on_card.with_changes({}, [2], 18).search(queries, 7)
    assert Card.asked == 1, "a card's index ignores filters and masks"
