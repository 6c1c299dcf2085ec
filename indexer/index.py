"""What answers a search: a sealed base, some fresh keys and tombstones, seen as one and never changed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from indexer.fold import HermitianFold, NotFinite, WrongShape
from indexer.records import StemEmbeddings
from indexer.snapshot import CheckedKeys, Snapshot, fold_stems, split_ids, window_ids

__all__ = ["FingerprintMismatch", "Index", "split_ids", "window_ids"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

# FAISS's own stubs do not know that every parameter may be given by its name.
_PARAMETERS: Any = faiss.SearchParameters
# Embeddings are of unit norm to 1e-4 (checked when they are added); the rounding bound is stated for norm 1.
_NORM_MARGIN = 1.001


class FingerprintMismatch(Exception):
    """Embeddings of one model meet an index that another model made."""

    def __init__(self, *, expected: str, found: str) -> None:
        super().__init__(f"the index was made by the model {expected[:16]}, not by {found[:16]}")
        self.expected, self.found = expected, found


@dataclass(frozen=True, eq=False)
class _Part:
    """Keys by position, some of them perhaps masked."""

    keys: Any  # flat FAISS index, addressed by position
    ids: Int64  # (n,)
    tails: Float32  # (n,)
    residuals: Float32  # (n,)
    live: npt.NDArray[np.bool_] | None = None  # (n,); None: all of them
    owner: Any = None  # whatever would free `keys` if it went away

    @cached_property
    def rows(self) -> Int64:
        return split_ids(self.ids)[0]

    @cached_property
    def windows(self) -> int:
        return len(self.ids) if self.live is None else int(np.count_nonzero(self.live))

    @cached_property
    def live_rows(self) -> Int64:
        """Rows of the stems that have a live window, ascending."""
        return np.unique(self.rows if self.live is None else self.rows[self.live])

    @cached_property
    def largest_errors(self) -> tuple[float, float]:
        """The largest dropped tail and rounding residual among the live keys."""
        live = slice(None) if self.live is None else self.live
        return (float(self.tails[live].max(initial=0.0)), float(self.residuals[live].max(initial=0.0)))

    def without(self, changed: Int64) -> "_Part":
        """The same keys with these stems' windows masked."""
        masked = _is_among(self.rows, changed)
        if not masked.any():
            return self
        live = ~masked if self.live is None else self.live & ~masked
        return replace(self, live=live)

    def search(self, queries: Float32, k: int, allowed: Int64 | None) -> tuple[Float32, Int64]:
        """The best live and allowed windows: (q, m) scores and ids, m <= k, descending, -inf and -1 where none is left.

        A bitmap over positions: FAISS tests one bit a key, where IDSelectorBatch asks a Bloom filter and a hash set.
        """
        mask = self.live
        if allowed is not None:
            among = _is_among(self.rows, allowed)
            mask = among if mask is None else mask & among
        left = len(self.ids) if mask is None else int(np.count_nonzero(mask))
        k = min(k, left)
        if k == 0:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        if mask is None or left == len(mask):
            scores, positions = self.keys.search(queries, k)
        else:
            bits = np.packbits(mask, bitorder="little")
            # The selector reads `bits` in place: both must outlive the search.
            selector = faiss.IDSelectorBitmap(len(mask), faiss.swig_ptr(bits))
            scores, positions = self.keys.search(queries, k, params=_PARAMETERS(sel=selector))
        return np.where(positions < 0, np.float32(-np.inf), scores), np.where(positions < 0, -1, self.ids[positions])


@dataclass(frozen=True, eq=False)
class Index:
    """One state of what can be found, under one fingerprint. Immutable: a change makes a new Index.

    A search holds the Index it started with, so it is answered from one whole state while others are made beside it.
    FAISS searches of one index may run in any number of threads; nothing is ever added to an index that is searched.
    """

    _snapshot: Snapshot
    _base: _Part
    _fresh: tuple[_Part, ...]  # each at least twice as large as the next: see _few_parts
    seq: int  # every change of the catalog up to this one is in
    tombstones: frozenset[int] = field(default=frozenset())  # stem rows whose windows in the base are masked

    @classmethod
    def of(cls, snapshot: Snapshot) -> "Index":
        """The index that a snapshot is, before any change."""
        keys = faiss.downcast_index(snapshot.keys.index)
        base = _Part(keys, snapshot.ids, snapshot.tails, snapshot.residuals, owner=snapshot.keys)
        return cls(snapshot, base, (), snapshot.manifest.seq)

    @classmethod
    def load(cls, folder: Path) -> "Index":
        """The index of the snapshot in `folder`. Raises SnapshotMissing, SnapshotCorrupt."""
        return cls.of(Snapshot.load(folder))

    @property
    def _parts(self) -> tuple[_Part, ...]:
        return (self._base, *self._fresh)

    @property
    def snapshot(self) -> Snapshot:
        """The sealed base."""
        return self._snapshot

    @property
    def fold(self) -> HermitianFold:
        """Makes this index's queries."""
        return self._snapshot.fold

    @property
    def fingerprint(self) -> str:
        """The model whose embeddings are in here."""
        return self._snapshot.manifest.fingerprint

    @property
    def generation(self) -> int:
        """The base's number; changes on top of it do not count."""
        return self._snapshot.manifest.generation

    @property
    def windows(self) -> int:
        """Windows that can be found."""
        return self._base.windows + self.fresh_windows

    @property
    def fresh_windows(self) -> int:
        """Windows outside the base; when there are many, it is time to seal a new one."""
        return sum(part.windows for part in self._fresh)

    @cached_property
    def stem_rows(self) -> Int64:
        """Rows of the stems that can be found, ascending."""
        return np.unique(np.concatenate([part.live_rows for part in self._parts]))

    @property
    def stems(self) -> int:
        """Stems that can be found."""
        return len(self.stem_rows)

    def require_fingerprint(self, fingerprint: str) -> None:
        """Raise FingerprintMismatch when another model made the index: its scores would mean nothing."""
        if fingerprint != self.fingerprint:
            raise FingerprintMismatch(expected=self.fingerprint, found=fingerprint)

    def with_changes(self, upserted: Mapping[int, StemEmbeddings], deleted: Iterable[int], seq: int) -> "Index":
        """A new index in which these stems are as given and those are gone; this one stays as it is.

        Args:
            upserted: by stem row; all windows of a stem, which replace what was there. No windows: it is found no more.
            deleted: stem rows; one that was never there is no error.
            seq: the catalog's change number that the result covers. Applying the same changes twice changes nothing.

        Raises:
            KeyRefused: an embedding that is not finite or not of unit norm, a window twice.
            ValueError: a stem both upserted and deleted, or a `seq` from before this index.
        """
        gone = frozenset(int(row) for row in deleted)
        if both := gone & upserted.keys():
            raise ValueError(f"stem rows both upserted and deleted: {sorted(both)}")
        if seq < self.seq:
            raise ValueError(f"changes up to {seq} are older than this index, which covers {self.seq}")
        changed = np.fromiter(gone | upserted.keys(), np.int64)
        base = self._base.without(changed)
        buried = self.tombstones.union(self._base.rows[_is_among(self._base.rows, changed)].tolist())
        fresh = [part.without(changed) for part in self._fresh]
        if upserted:
            fresh.append(_part_of(fold_stems(self.fold, upserted)))
        return replace(self, _base=base, _fresh=_few_parts(fresh), seq=seq, tombstones=buried)

    def search(self, queries: Float32, k: int, allowed: Int64 | None = None) -> tuple[Float32, Int64]:
        """The k best windows for each query, exact for what the index stores (see `slack`).

        Several query rows go in one call: FAISS spreads them over its OpenMP threads. How many it may take is the
        process's choice (OMP_NUM_THREADS, or faiss.omp_set_num_threads at start); nothing here changes it.

        Args:
            queries: float32 (q, dim), made by `fold.queries`.
            k: windows wanted for each.
            allowed: int64 stem rows that may be answered, in any order; None allows all, an empty array none.

        Returns:
            Scores float32 (q, k), descending, and window ids int64 (q, k); -inf and -1 where windows run out.

        Raises:
            WrongShape: the queries come from another fold. NotFinite. ValueError: k below 1.
        """
        if queries.ndim != 2 or queries.shape[1] != self.fold.dim:
            raise WrongShape("the queries", shape=queries.shape, expected=f"(q, {self.fold.dim})")
        if k < 1:
            raise ValueError(f"k is {k}, at least 1 is needed")
        if not np.isfinite(queries).all():
            raise NotFinite("the queries", count=int(np.count_nonzero(~np.isfinite(queries))))
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        found = [part.search(queries, k, allowed) for part in self._parts]
        padding = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        scores = np.concatenate([part[0] for part in found] + [padding[0]], axis=1)
        ids = np.concatenate([part[1] for part in found] + [padding[1]], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)

    def slack(self, embedding: npt.NDArray[np.complex64]) -> Float64:
        """How far a score that `search` gives can lie from the exact one, for each query.

        What the rank drops (Cauchy-Schwarz over the two tails), what the index type rounds off, and float32.

        Args:
            embedding: complex64 (q, D), unit norm, before folding.

        Returns:
            float64 (q,).
        """
        tail, residual = (max(errors) for errors in zip(*(part.largest_errors for part in self._parts), strict=True))
        slack = self.fold.query_tail(embedding) * tail + self.fold.rounding
        if residual:
            slack += np.linalg.norm(self.fold.queries(embedding).astype(np.float64), axis=1) * residual
        return np.asarray(slack * _NORM_MARGIN)


def _part_of(checked: CheckedKeys) -> _Part:
    keys = faiss.IndexFlatIP(checked.keys.shape[1])
    keys.add(checked.keys)
    return _Part(keys, checked.ids, checked.tails, np.zeros(len(checked.ids), np.float32))


def _few_parts(parts: Iterable[_Part]) -> tuple[_Part, ...]:
    """The same live keys in parts of which each has at least twice as many as the next.

    FAISS must not add to an index that is being searched, so new keys need a new one; merging by size copies each key
    log2(n) times at most, where one fresh index would copy all keys for each stem that arrives.
    """
    few: list[_Part] = []
    for part in parts:
        few.append(part)
        while len(few) > 1 and few[-2].windows < 2 * few[-1].windows:
            few[-2:] = [_joined(few[-2:])]
    return tuple(_joined([part]) if 2 * part.windows < len(part.ids) else part for part in few if part.windows)


def _joined(parts: list[_Part]) -> _Part:
    """The live keys of some fresh parts as one."""
    keys = faiss.IndexFlatIP(parts[0].keys.d)
    live = [np.arange(len(part.ids)) if part.live is None else np.flatnonzero(part.live) for part in parts]
    for part, positions in zip(parts, live, strict=True):
        if len(positions):
            stored = faiss.rev_swig_ptr(part.keys.get_xb(), part.keys.ntotal * part.keys.d)
            keys.add(stored.reshape(part.keys.ntotal, part.keys.d)[positions])
    ids, tails, residuals = (
        np.concatenate([getattr(part, name)[positions] for part, positions in zip(parts, live, strict=True)])
        for name in ("ids", "tails", "residuals")
    )
    return _Part(keys, ids, tails, residuals)


def _is_among(rows: Int64, wanted: Int64) -> npt.NDArray[np.bool_]:
    return np.isin(rows, np.asarray(wanted, dtype=np.int64))
