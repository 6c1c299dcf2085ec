"""Stems, embeddings and forms drawn at random, for tests of what is built on them."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.catalog.records import ClipFacts, StemEmbeddings, StemMetadata, Upload
from indexer.index.fold import HermitianFold
from indexer.index.index import Index
from indexer.index.keys import window_ids
from indexer.index.manifest import Manifest
from indexer.index.snapshot import Snapshot
from indexer.index.writer import SnapshotWriter

# float32 inner products of some twelve coordinates, in each engine's order and in ours.
SCORE_TOLERANCE = 1e-5


def random_form(dimension: int, seed: int = 0) -> NDArray[np.complex128]:
    """A Hermitian form, indefinite."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((dimension, dimension)) + 1j * rng.standard_normal((dimension, dimension))
    return (w + w.conj().T) / 2


def random_fold(dimension: int, seed: int = 0, rank: int | None = None) -> HermitianFold:
    return HermitianFold(random_form(dimension, seed), rank=rank)


def random_rows(seed: int | np.random.Generator, n: int, dimension: int) -> NDArray[np.complex64]:
    """n embeddings, each of unit norm."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, dimension)) + 1j * rng.standard_normal((n, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.complex64)


def upload(name: str, **said: Any) -> Upload:
    """An accepted file of ten seconds."""
    facts = ClipFacts(format="FLAC", duration_s=10.0, sample_rate=44_100, channels=2)
    return Upload(hashlib.sha256(name.encode()).hexdigest(), f"{name}.flac", StemMetadata(**said), facts)


def random_stem(seed: int, n: int = 3, *, dimension: int, gaps: bool = False) -> StemEmbeddings:
    """A stem in clock time, n of its windows; with `gaps` others of them are silent."""
    windows = np.sort(np.random.default_rng(seed).choice(12, n, replace=False)) if gaps else np.arange(n)
    return StemEmbeddings.in_clock_time(windows.astype(np.int64), windows * 2.5, random_rows(seed, n, dimension))


def new_writer(
    folder: Path, fold: HermitianFold, *, sample: Any = None, probes: Any = None, **changed: Any
) -> SnapshotWriter:
    """Of a snapshot whose manifest says this, with what is changed of it."""
    facts = {"fingerprint": "f" * 64, "generation": 3, "seq": 17, "window_s": 5.0, "stride_s": 2.5, **changed}
    return SnapshotWriter(folder, fold, Manifest.unsealed(fold, **facts), sample=sample, probes=probes)


def write_snapshot(
    folder: Path, stems: Iterable[Mapping[int, StemEmbeddings]], fold: HermitianFold, **changed: Any
) -> Snapshot:
    """Fold and seal the stems, given some at a time; see `new_writer`.

    The sample, where a type needs one, is all of them: give what memory can hold.
    """
    held = list(stems)
    writer = new_writer(folder, fold, sample={row: stem for some in held for row, stem in some.items()}, **changed)
    for some in held:
        writer.add(some)
    return writer.seal()


def assert_hits(
    index: Index, stems: Mapping[int, StemEmbeddings], k: int, allowed: NDArray[np.int64] | None = None
) -> None:
    """The index answers with the hits of brute force over these stems, of which some may be allowed."""
    kept = {row: stem for row, stem in stems.items() if allowed is None or row in allowed}
    every: dict[int, NDArray[np.complex64]] = {}
    for row, stem in kept.items():
        every |= zip(window_ids(row, stem.windows).tolist(), stem.embedding, strict=True)
    dimension = index.fold.embedding_dim
    folded = index.fold.queries(random_rows(99, 5, dimension))
    keys = index.fold.keys(np.stack([*every.values()]) if every else np.empty((0, dimension), np.complex64))
    truth = folded.astype(np.float64) @ keys.astype(np.float64).T  # (queries, windows)
    scores, ids = index.search(folded, k, allowed)
    n = min(k, len(every))
    assert (scores.dtype, ids.dtype, scores.shape, ids.shape) == (np.float32, np.int64, (5, k), (5, k))
    assert np.isneginf(scores[:, n:]).all()
    assert (ids[:, n:] == -1).all()
    assert (np.diff(scores[:, :n]) <= 0).all()
    np.testing.assert_allclose(scores[:, :n], -np.sort(-truth, axis=1)[:, :n], atol=SCORE_TOLERANCE)
    position = {one: at for at, one in enumerate(every)}
    for query in range(5):
        at = [position[one] for one in ids[query, :n].tolist()]
        assert len(set(at)) == n
        np.testing.assert_allclose(scores[query, :n], truth[query, at], atol=SCORE_TOLERANCE)
