import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import indexer.index.snapshot
import indexer.index.writer
from indexer.catalog.records import StemEmbeddings
from indexer.index.index import Index, KeysInMemory
from indexer.index.keys import (
    DuplicateWindow,
    EmbeddingNotFinite,
    EmbeddingNotUnit,
    WindowOutOfRange,
    key_dim,
    split_ids,
    window_ids,
)
from indexer.index.snapshot import Snapshot, SnapshotCorrupt, SnapshotExists, SnapshotMissing
from indexer.index.writer import SnapshotWriter
from tests.embeddings import new_writer, random_fold, random_stem, write_snapshot

DIMENSION = 6
# float32 sums of twelve products in another order.
SCORE_TOLERANCE = 1e-5


make_fold = partial(random_fold, DIMENSION)
make_stem = partial(random_stem, dimension=DIMENSION)


def write(folder: Path, **changed: Any) -> Snapshot:
    stems = [{row: make_stem(row) for row in (1, 2)}, {5: make_stem(5)}]
    return write_snapshot(folder, stems, **{"fold": make_fold()} | changed)


def probes() -> npt.NDArray[np.complex64]:
    return make_stem(99, 8).embedding


def test_window_ids_split_into_what_they_were_made_of() -> None:
    ids = window_ids(2**43 - 1, [0, 7, 2**20 - 1])
    assert ids.dtype == np.int64
    rows, windows = split_ids(ids)
    assert rows.tolist() == [2**43 - 1] * 3
    assert windows.tolist() == [0, 7, 2**20 - 1]
    assert split_ids(np.array([-1]))[0].tolist() == [-1]


@pytest.mark.parametrize(("row", "window"), [(-1, 0), (2**43, 0), (1, -1), (1, 2**20)])
def test_window_ids_refuse_what_64_bits_cannot_hold(row: int, window: int) -> None:
    with pytest.raises(WindowOutOfRange):
        window_ids(row, [window])


def test_a_snapshot_says_what_it_is(tmp_path: Path) -> None:
    manifest = write(tmp_path / "new" / "folder").manifest
    assert (manifest.generation, manifest.fingerprint, manifest.seq) == (3, "f" * 64, 17)
    assert (manifest.windows, manifest.stems, manifest.dim, manifest.rank) == (9, 3, key_dim(12), 6)
    assert (manifest.bound, manifest.window_s, manifest.stride_s, manifest.index_type) == (0.0, 5.0, 2.5, "flat")
    assert manifest.recall is None
    for name, file in manifest.files.items():
        assert (tmp_path / "new" / "folder" / name).stat().st_size == file.size


def test_a_truncated_snapshot_keeps_each_keys_tail(tmp_path: Path) -> None:
    fold = make_fold(rank=2)
    snapshot = write(tmp_path, fold=fold)
    tails = fold.key_tail(make_stem(1).embedding)
    assert (snapshot.tails[:3] >= tails).all()
    np.testing.assert_allclose(snapshot.tails[:3], tails, rtol=1e-6)
    assert snapshot.manifest.bound == fold.bound > 0


@pytest.mark.parametrize("index_type", ["flat", "fp16", "sq8", "ivf"])
def test_an_empty_snapshot_loads_and_answers_nothing(tmp_path: Path, index_type: str) -> None:
    snapshot = write_snapshot(tmp_path, [], make_fold(), index_type=index_type)
    assert (snapshot.manifest.windows, snapshot.manifest.stems) == (0, 0)
    assert Index.of(snapshot).search(snapshot.fold.queries(probes()), 2)[1].max() == -1


def test_a_folder_without_manifest_is_missing_not_empty(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SnapshotMissing) as caught:
            Snapshot.load(folder)
        assert caught.value.where == folder


def test_a_finished_snapshot_is_never_overwritten(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(SnapshotExists):
        write(tmp_path)


def test_a_crash_at_any_step_leaves_a_whole_snapshot_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Crash(Exception):
        pass

    def crash_at(step: int) -> None:
        """Fail at the given one of all renames and forced writes."""
        left = [step]

        def failing(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                if left[0] == 0:
                    raise Crash
                left[0] -= 1
                return real(*arguments)

            return call

        monkeypatch.setattr(indexer.index.writer.os, "replace", failing(os_replace))
        monkeypatch.setattr(indexer.index.writer.os, "fsync", failing(os_fsync))

    os_replace, os_fsync = os.replace, os.fsync
    outcomes = []
    for step in range(40):
        crash_at(step)
        with suppress(Crash):
            write(tmp_path)
        try:
            outcomes.append(Snapshot.load(tmp_path).manifest.windows)
            break
        except SnapshotMissing:
            outcomes.append(0)
    assert outcomes == [0] * step + [9]
    assert step > 10, "each is written again over what the one before has left"


def test_any_flipped_byte_in_any_file_is_detected(tmp_path: Path) -> None:
    write(tmp_path, probes=probes())
    rng = np.random.default_rng(0)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        # Every byte of the manifest, which has to vouch for itself; elsewhere both ends and random places.
        places = (
            range(len(whole)) if path.suffix == ".json" else [0, len(whole) - 1, *rng.integers(len(whole), size=40)]
        )
        for place in places:
            flipped = bytearray(whole)
            flipped[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            with pytest.raises(SnapshotCorrupt) as caught:
                Snapshot.load(tmp_path)
            assert caught.value.where == path
        path.write_bytes(whole)
    assert Snapshot.load(tmp_path).manifest.windows == 9


def test_a_short_a_long_and_a_lost_file_are_corrupt(tmp_path: Path) -> None:
    write(tmp_path)
    for name in Snapshot.load(tmp_path).manifest.files:
        path = tmp_path / name
        whole = path.read_bytes()
        for changed in (whole[:-1], whole + b"\0", b""):
            path.write_bytes(changed)
            with pytest.raises(SnapshotCorrupt, match="bytes, the manifest says"):
                Snapshot.load(tmp_path)
        path.unlink()
        with pytest.raises(SnapshotCorrupt, match="cannot be read"):
            Snapshot.load(tmp_path)
        path.write_bytes(whole)


def test_a_manifest_of_another_format_is_named_as_such(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "manifest.json"
    fields = json.loads(path.read_text())
    path.write_bytes(indexer.index.writer.manifest_bytes({**fields, "format": 99}))
    with pytest.raises(SnapshotCorrupt, match="format 99"):
        Snapshot.load(tmp_path)


def changed_embedding(change: Callable[[npt.NDArray[np.complex64]], None]) -> StemEmbeddings:
    stem = make_stem(4)
    change(stem.embedding)
    return stem


def test_keys_that_faiss_would_swallow_are_refused_by_name(tmp_path: Path) -> None:
    def poison(embedding: npt.NDArray[np.complex64]) -> None:
        embedding[1, 2] = np.nan

    def silence(embedding: npt.NDArray[np.complex64]) -> None:
        embedding[2] = 0

    writer = new_writer(tmp_path, make_fold())
    with pytest.raises(EmbeddingNotFinite) as not_finite:
        writer.add({7: make_stem(7), 8: changed_embedding(poison)})
    assert (not_finite.value.row, not_finite.value.window) == (8, 1)
    with pytest.raises(EmbeddingNotUnit) as zero:
        writer.add({8: changed_embedding(silence)})
    assert (zero.value.window, zero.value.norm) == (2, 0.0)
    stem = make_stem(4)
    with pytest.raises(DuplicateWindow) as twice:
        writer.add({8: StemEmbeddings.in_clock_time(np.array([0, 3, 3]), stem.starts_s, stem.embedding)})
    assert (twice.value.row, twice.value.window) == (8, 3)
    writer.add({1: make_stem(1)})
    with pytest.raises(DuplicateWindow):
        writer.add({2: make_stem(2), 1: make_stem(1)})
    assert writer.seal().manifest.stems == 1


@pytest.mark.parametrize("index_type", ["flat", "fp16", "sq8", "ivf"])
def test_a_snapshot_measures_its_recall_and_its_rounding(tmp_path: Path, index_type: str) -> None:
    stems = {row: make_stem(row, 10) for row in range(20)}
    snapshot = write_snapshot(tmp_path, [stems], make_fold(), index_type=index_type, probes=probes())
    recall = snapshot.manifest.recall
    assert recall is not None
    assert (recall.at, recall.probes) == (10, 8)
    assert recall.value == 1.0 if index_type == "flat" else recall.value >= 0.9
    assert Snapshot.load(tmp_path).manifest.recall == recall
    assert (snapshot.residuals > 0).all() if index_type != "flat" else (snapshot.residuals == 0).all()
    # Whatever the type rounds off, the stated slack covers it.
    index = Index.of(snapshot)
    scores, ids = index.search(snapshot.fold.queries(probes()), 200)
    rows, windows = split_ids(ids)
    every = np.concatenate([stem.embedding for stem in stems.values()])
    exact = np.take_along_axis(snapshot.fold.scores(probes(), every), rows * 10 + windows, axis=1)
    assert (np.abs(scores - exact) <= index.slack(probes())[:, None]).all()


def test_windows_of_the_same_audio_do_not_lower_the_recall(tmp_path: Path) -> None:
    same = make_stem(1, 1)
    snapshot = write_snapshot(tmp_path, [{row: same for row in range(15)}], make_fold(), probes=probes())
    assert snapshot.manifest.recall is not None
    assert snapshot.manifest.recall.value == 1.0


def test_a_large_snapshot_is_mapped_and_answers_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("flat", "fp16", "sq8", "ivf"):
        copied = write(tmp_path / kind, index_type=kind)
        monkeypatch.setattr(indexer.index.snapshot, "MAPPED_FROM_BYTES", 1)
        mapped = Snapshot.load(tmp_path / kind)
        monkeypatch.undo()
        queries = copied.fold.queries(probes())
        ours, theirs = Index.of(copied).search(queries, 20), Index.of(mapped).search(queries, 20)
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_mapped_file_opens_unread_and_is_checked_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setattr(indexer.index.snapshot, "MAPPED_FROM_BYTES", 1)
    path = tmp_path / "keys.faiss"
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 1  # a coordinate
    path.write_bytes(flipped)
    opened = Snapshot.load(tmp_path, check_mapped=False)
    assert opened.mapped
    with pytest.raises(SnapshotCorrupt, match="another SHA-256"):
        opened.check_mapped()
    with pytest.raises(SnapshotCorrupt, match="another SHA-256"):
        Snapshot.load(tmp_path)


@pytest.mark.parametrize("index_type", ["flat", "fp16", "sq8", "ivf"])
def test_a_build_that_was_killed_goes_on_and_makes_the_same_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index_type: str
) -> None:
    monkeypatch.setattr(indexer.index.writer, "CHECKPOINT_WINDOWS", 12)
    stems = {row: make_stem(row, 3) for row in range(1, 31)}
    known = {"fold": make_fold(), "index_type": index_type, "probes": probes(), "sample": stems}

    def filled(writer: SnapshotWriter, rows: Iterable[int]) -> SnapshotWriter:
        for row in rows:
            writer.add({row: stems[row]})
        return writer

    whole = filled(new_writer(tmp_path / "whole", **known), stems).seal()
    filled(new_writer(tmp_path / "cut", **known), range(1, 11))  # and is gone
    again = SnapshotWriter.resumed(tmp_path / "cut", lambda manifest: manifest.generation == 3)
    assert again is not None
    assert (again.last_row, again.stems) == (8, 8), "what was forced to the disk, and no more"
    sealed = filled(again, range(9, 31)).seal()
    for name, stated in whole.manifest.files.items():
        assert sealed.manifest.files[name] == stated
    assert (sealed.manifest.seq, sealed.manifest.recall) == (17, whole.manifest.recall), "the clock of the first start"
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {"manifest.json", *whole.manifest.files}


def test_a_writer_of_something_else_or_with_damaged_files_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer.index.writer, "CHECKPOINT_WINDOWS", 1)
    new_writer(tmp_path, make_fold()).add({1: make_stem(1)})
    assert SnapshotWriter.resumed(tmp_path, lambda manifest: manifest.generation == 4) is None
    with monkeypatch.context() as longer_keys:
        longer_keys.setattr(indexer.index.writer, "key_dim", lambda dim: dim + 24)
        assert SnapshotWriter.resumed(tmp_path, bool) is None
    for name in ("progress.npz", "trained.faiss", "fold.npz", "codes.raw", "ids.raw", "errors.raw"):
        whole = (tmp_path / name).read_bytes()
        for damaged in (b"", b"PK" * 2):
            (tmp_path / name).write_bytes(damaged)
            assert SnapshotWriter.resumed(tmp_path, bool) is None
        (tmp_path / name).write_bytes(whole)
    again = SnapshotWriter.resumed(tmp_path, bool)
    assert again is not None
    assert again.last_row == 1


def test_an_approximate_snapshot_states_how_much_it_looks_at(tmp_path: Path) -> None:
    stems = {row: make_stem(row, 10) for row in range(200)}
    snapshot = write_snapshot(tmp_path, [stems], make_fold(), index_type="ivf", probes=probes())
    manifest, recall = snapshot.manifest, snapshot.manifest.recall
    assert manifest.lists > 10
    assert 1 <= manifest.probed <= manifest.lists
    assert recall is not None
    assert recall.rescored >= indexer.index.writer.PROBED_RECALL
    assert recall.deep >= indexer.index.writer.PROBED_DEEP_RECALL
    assert Snapshot.load(tmp_path).manifest == manifest


def test_an_approximate_snapshot_proves_nothing_and_loses_nothing(tmp_path: Path) -> None:
    stems = {row: make_stem(row, 10) for row in range(100)}
    index = Index.of(write_snapshot(tmp_path, [stems], make_fold(), index_type="ivf", probes=probes()))
    assert index.base.approximate
    assert (index.slack(probes()) >= 2 * abs(index.fold.eigenvalues[0])).all()
    queries = index.fold.queries(probes())
    assert (index.search(queries, 1000)[1] >= 0).all(), "all lists are looked at when some cannot hold enough"
    few = np.array([3, 50], np.int64)
    rows = split_ids(index.with_changes({}, [50], 18).search(queries, 12, few)[1])[0]
    assert (np.sort(rows, axis=1) == [-1, -1] + [3] * 10).all()


def test_a_row_whose_lists_hold_too_few_makes_no_other_look_further(tmp_path: Path) -> None:
    stems = {row: make_stem(row, 10) for row in range(100)}
    index = Index.of(write_snapshot(tmp_path, [stems], make_fold(), index_type="ivf", probes=probes()))
    base = index.base
    assert isinstance(base, KeysInMemory)
    index = index.on(replace(base, probed=2), fresh=True)
    queries, few = index.fold.queries(probes()), np.arange(0, 100, 10)
    k = 5
    scores, ids = index.search(queries, k, few)
    each = [index.search(query[None], k, few) for query in queries]
    assert (ids >= 0).all()
    assert (ids == [one[1][0] for one in each]).all()
    assert np.allclose(scores, [one[0][0] for one in each])
