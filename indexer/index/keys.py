"""Embeddings of stems -> keys that an index may take: every window has an id, and nothing that FAISS would swallow."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.catalog.records import StemEmbeddings
from indexer.index.fold import HermitianFold
from model.errors import Told

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

_WINDOW_BITS = 20
_LARGEST_ROW = 2 ** (63 - _WINDOW_BITS) - 1
# Of a stem, beside the key of each of its windows: its chroma, 1 where it has one, the natural logarithm of how many
# windows it has in this one's time base, and 1.
CHROMA, HAS_CHROMA, LOG_WINDOWS, ANY_STEM = slice(0, 12), 12, 13, 14
TRAITS = 15
# Codes of another length FAISS compares one coordinate at a time, in ten times the time.
_EIGHT = 8
# float32 arithmetic leaves an embedding's norm within 1e-6 of 1; more means that it is none of the model's.
_NORM_TOLERANCE = 1e-4


class KeyRefused(Told, ValueError):
    """A window that FAISS would swallow in silence and never answer rightly."""

    row: int
    window: int


class EmbeddingNotFinite(KeyRefused):
    """The embedding holds NaN or infinity."""

    says = "window {window} of stem row {row} has an embedding that is not finite"


class EmbeddingNotUnit(KeyRefused):
    """Zero among others: no bound on its score would hold."""

    says = "window {window} of stem row {row} has an embedding of norm {norm:.6g}, not 1"
    norm: float


class DuplicateWindow(KeyRefused):
    """The same window twice."""

    says = "window {window} of stem row {row} is there twice"


class WindowOutOfRange(KeyRefused):
    """A stem row or a window index that the 64-bit window id cannot hold."""

    says = "window {window} of stem row {row} does not fit into a window id"


def window_ids(row: int, windows: npt.ArrayLike) -> Int64:
    """Ids of a stem's windows, `row << 20 | window`: row 0 to 2**43 - 1, window indices int (n,) 0 to 2**20 - 1."""
    indices = np.asarray(windows, dtype=np.int64)
    outside = (indices < 0) | (indices >= 1 << _WINDOW_BITS)
    if not 0 <= row <= _LARGEST_ROW or outside.any():
        raise WindowOutOfRange(row=row, window=int(indices[outside][0]) if outside.any() else 0)
    return np.int64(row) << _WINDOW_BITS | indices


def split_ids(ids: Int64) -> tuple[Int64, Int64]:
    """Window ids -> (stem rows, window indices), int64 each; the padding id -1 has row -1."""
    return ids >> _WINDOW_BITS, ids & ((1 << _WINDOW_BITS) - 1)


def traits_of(stem: StemEmbeddings) -> Float32:
    """What a stem is beside its windows, float32 (n, TRAITS): trait weights times these are added to its score.

    So an index ranks windows by all that counts for their stem in the end, and not by the model alone.
    """
    traits = np.zeros((len(stem.windows), TRAITS), np.float32)
    if stem.chroma is not None:
        traits[:, CHROMA], traits[:, HAS_CHROMA] = stem.chroma, 1.0
    in_beats = np.isfinite(stem.beats)
    traits[:, LOG_WINDOWS] = np.log(np.where(in_beats, in_beats.sum(), (~in_beats).sum()))
    traits[:, ANY_STEM] = 1.0
    return traits


def key_dim(dim: int) -> int:
    """Coordinates of a whole key: a fold's, its stem's traits, and zeros up to a multiple of eight."""
    return -(-(dim + TRAITS) // _EIGHT) * _EIGHT


def highest_rank(coordinates: int) -> int:
    """The highest rank whose whole keys have no more than so many coordinates; 0 or less: not even traits fit."""
    return (coordinates // _EIGHT * _EIGHT - TRAITS) // 2


def whole(folded: Float32, beside: Float32 | None = None) -> Float32:
    """Folded keys with traits beside them, or folded queries with trait weights: float32 (n, dim) and (n, TRAITS) ->
    (n, key_dim). None: zeros, to which traits tell nothing."""
    count, dim = folded.shape
    rows = np.zeros((count, key_dim(dim)), np.float32)
    rows[:, :dim] = folded
    if beside is not None:
        rows[:, dim : dim + TRAITS] = beside
    return rows


def keys_of(fold: HermitianFold, stem: StemEmbeddings) -> Float32:
    """The whole keys of a stem that has windows, unchecked: float32 (n, key_dim)."""
    return whole(fold.keys(stem.embedding), traits_of(stem))


@dataclass(frozen=True, eq=False)
class CheckedKeys:
    """Windows ready to be added: every embedding is finite and of unit norm, every id is unique among them."""

    ids: Int64  # (n,)
    embedding: npt.NDArray[np.complex64]  # (n, D)
    keys: Float32  # (n, key_dim)
    tails: Float32  # (n,), rounded up


def fold_stems(fold: HermitianFold, stems: Mapping[int, StemEmbeddings]) -> CheckedKeys:
    """Check the stems' windows and fold them, in the mapping's order.

    Raises:
        KeyRefused: FAISS drops NaN keys and accepts a duplicate id, both without a word. WrongShape.
    """
    ids = [window_ids(row, stem.windows) for row, stem in stems.items()]
    parts = [np.asarray(stem.embedding, dtype=np.complex64) for stem in stems.values()]
    flat_ids = np.concatenate([np.empty(0, np.int64), *ids])
    embedding = np.concatenate(
        [np.empty((0, fold.embedding_dim), np.complex64), *(part for part in parts if len(part))]
    )
    if len(flat_ids) != len(embedding):
        raise ValueError(f"{len(flat_ids)} window indices for {len(embedding)} embeddings")

    def place(position: int) -> dict[str, int]:
        row, window = split_ids(flat_ids[position : position + 1])
        return {"row": int(row[0]), "window": int(window[0])}

    unusable = np.flatnonzero(~np.isfinite(embedding).all(axis=1))
    if len(unusable):
        raise EmbeddingNotFinite(**place(int(unusable[0])))
    norms = np.linalg.norm(embedding, axis=1)
    unusable = np.flatnonzero(np.abs(norms - 1) > _NORM_TOLERANCE)
    if len(unusable):
        first = int(unusable[0])
        raise EmbeddingNotUnit(**place(first), norm=float(norms[first]))
    unique, first_seen = np.unique(flat_ids, return_index=True)
    if len(unique) != len(flat_ids):
        repeated = np.setdiff1d(np.arange(len(flat_ids)), first_seen)
        raise DuplicateWindow(**place(int(repeated[0])))
    traits = np.concatenate([np.empty((0, TRAITS), np.float32), *map(traits_of, stems.values())])
    return CheckedKeys(flat_ids, embedding, whole(fold.keys(embedding), traits), rounded_up(fold.key_tail(embedding)))


def rounded_up(values: npt.NDArray[np.float64]) -> Float32:
    return np.nextafter(values.astype(np.float32), np.float32(np.inf)) * (values > 0)
