"""Embeddings and forms drawn at random, for tests of what is built on them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.catalog.records import StemEmbeddings
from indexer.index.fold import HermitianFold
from indexer.index.snapshot import Snapshot
from indexer.index.writer import SnapshotWriter


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


def snapshot_facts(**changed: Any) -> dict[str, Any]:
    """What a snapshot is told beside its stems; give the fold."""
    return {"fingerprint": "f" * 64, "generation": 3, "seq": 17, "window_s": 5.0, "stride_s": 2.5, **changed}


def write_snapshot(folder: Path, stems: Iterable[Mapping[int, StemEmbeddings]], **facts: Any) -> Snapshot:
    """Fold and seal the stems, given some at a time; `facts` are SnapshotWriter's keyword arguments.

    The sample, where a type needs one, is all of them: give what memory can hold.
    """
    held = list(stems)
    writer = SnapshotWriter(folder, sample={row: stem for some in held for row, stem in some.items()}, **facts)
    for some in held:
        writer.add(some)
    return writer.seal()
