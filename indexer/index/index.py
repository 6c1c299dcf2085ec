"""What answers a search: a sealed base, some fresh keys and tombstones, seen as one and never changed."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, Protocol, Self

import faiss
import numpy as np
import numpy.typing as npt

from indexer.catalog.records import StemEmbeddings
from indexer.index.card import DEEPEST_ON_CARD, CardKeys
from indexer.index.fold import HermitianFold, NotFinite, WrongShape
from indexer.index.keys import CheckedKeys, fold_stems, split_ids, whole
from indexer.index.manifest import Manifest
from indexer.index.snapshot import Snapshot
from model.errors import Told

Status = Literal["starting", "ready", "rebuilding", "unreachable"]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

# FAISS's own stubs do not know that every parameter may be given by its name.
_PARAMETERS: Any = faiss.SearchParameters
_IVF_PARAMETERS: Any = faiss.SearchParametersIVF
# From so many query rows on FAISS multiplies matrices, which is up to five times faster; by itself it does from 128,000
# on. `python -m benchmarks.index_at_size` times a row alone and fifty.
faiss.cvar.distance_compute_blas_threshold = 8
# Query rows times keys up to which one thread compares them, in ten milliseconds at most.
_SCORES_OF_ONE_THREAD = 50_000
# Lists that a row is looked for in next, times those before, where these hold too few windows.
MORE_LISTS = 4
# Embeddings are of unit norm to 1e-4 (checked when they are added); the rounding bound is stated for norm 1.
_NORM_MARGIN = 1.001
# No stem has traits of a larger norm: the logarithm of 2**20 windows is 13.9.
_LARGEST_TRAITS = 15.0
# What float32 can add to an error for each unit of traits and their weights: no sum has more terms than these.
_TRAITS_ROUNDING = 2200 * 2.0**-24


class IndexUnavailable(Told):
    """No index can answer now; `status` says whether it is being loaded or rebuilt, or its server cannot be reached."""

    public = "The index is {status}; try again soon."
    status: Status
    retry_after_s: float = 2.0


class Base(Protocol):
    """A sealed generation's keys, of which some may be masked: FAISS in this process, or a collection elsewhere."""

    @property
    def dim(self) -> int:
        """Of a key: that of the fold, and the traits, which an index from before they were kept lacks."""

    @property
    def windows(self) -> int:
        """How many can be found."""

    @property
    def stems(self) -> int:
        """How many have a window that can be found."""

    @property
    def tombstones(self) -> frozenset[int]:
        """Rows of the stems that are masked."""

    @property
    def largest_errors(self) -> tuple[float, float]:
        """The largest dropped tail and rounding residual among the keys that can be found."""

    @property
    def approximate(self) -> bool:
        """Whether a search may overlook a window; it never does when fewer than k are left."""

    def without(self, changed: Int64) -> Self:
        """The same keys with these stems' windows masked."""

    def search(self, queries: Float32, k: int, allowed: Int64 | None) -> tuple[Float32, Int64]:
        """The best windows that are neither masked nor forbidden: (q, m) scores and ids, m <= k, descending.

        -inf and -1 where none is left. `allowed`: stem rows; None allows all.
        """


@dataclass(frozen=True, eq=False)
class KeysInMemory:
    """Keys by position, some of them perhaps masked: what came after the base, and a base of FAISS itself."""

    keys: Any  # FAISS index, addressed by position
    ids: Int64  # (n,)
    tails: Float32  # (n,)
    residuals: Float32  # (n,)
    live: npt.NDArray[np.bool_] | None = None  # (n,); None: all of them
    owner: Any = None  # whatever would free `keys` if it went away
    probed: int = 0  # lists of an approximate index that a search looks at; 0: every key is compared
    card: CardKeys | None = None  # the same keys on a graphics card

    @cached_property
    def rows(self) -> Int64:
        return split_ids(self.ids)[0]

    @property
    def dim(self) -> int:
        return int(self.keys.d)

    @cached_property
    def windows(self) -> int:
        return len(self.ids) if self.live is None else int(np.count_nonzero(self.live))

    @cached_property
    def stems(self) -> int:
        return len(np.unique(self.rows if self.live is None else self.rows[self.live]))

    @cached_property
    def tombstones(self) -> frozenset[int]:
        return frozenset() if self.live is None else frozenset(np.unique(self.rows[~self.live]).tolist())

    @cached_property
    def largest_errors(self) -> tuple[float, float]:
        live = slice(None) if self.live is None else self.live
        return (float(self.tails[live].max(initial=0.0)), float(self.residuals[live].max(initial=0.0)))

    @property
    def approximate(self) -> bool:
        return self.probed > 0

    def without(self, changed: Int64) -> "KeysInMemory":
        masked = np.isin(self.rows, changed)
        if not masked.any():
            return self
        live = ~masked if self.live is None else self.live & ~masked
        return replace(self, live=live)

    def search(self, queries: Float32, k: int, allowed: Int64 | None) -> tuple[Float32, Int64]:
        """See `Base.search`.

        A bitmap over positions: FAISS tests one bit a key, where IDSelectorBatch asks a Bloom filter and a hash set.
        """
        mask = self.live
        if allowed is not None:
            among = np.isin(self.rows, allowed)
            mask = among if mask is None else mask & among
        left = len(self.ids) if mask is None else int(np.count_nonzero(mask))
        k = min(k, left)
        if k == 0:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        if left == len(self.ids):
            mask = None
        if self.probed:
            scores, positions = self._search_lists(queries, k, mask)
        elif self.card is not None and mask is None and k <= DEEPEST_ON_CARD:
            scores, positions = self.card.search(queries, k)  # a card's index knows no selector
        elif mask is None:
            scores, positions = self.keys.search(queries, k)
        else:
            scores, positions = self._selected(
                mask, lambda sel: self.keys.search(queries, k, params=_PARAMETERS(sel=sel))
            )
        return np.where(positions < 0, np.float32(-np.inf), scores), np.where(positions < 0, -1, self.ids[positions])

    def _search_lists(self, queries: Float32, k: int, mask: npt.NDArray[np.bool_] | None) -> tuple[Float32, Int64]:
        """Some of the lists; more, in the end all, for the rows whose lists hold fewer than k, so that nothing seems to
        have run out."""
        scores = np.empty((len(queries), k), np.float32)
        positions = np.empty((len(queries), k), np.int64)
        lacking, probed = np.arange(len(queries)), self.probed
        while len(lacking):
            look = partial(self._in_lists, queries[lacking], k, probed)
            found: tuple[Float32, Int64] = look() if mask is None else self._selected(mask, look)
            scores[lacking], positions[lacking] = found
            if probed >= self.keys.nlist:
                break
            lacking = lacking[(found[1] < 0).any(axis=1)]
            probed = min(MORE_LISTS * probed, self.keys.nlist)
        return scores, positions

    def _in_lists(self, queries: Float32, k: int, probed: int, selector: Any = None) -> tuple[Float32, Int64]:
        found: tuple[Float32, Int64] = self.keys.search(queries, k, params=_IVF_PARAMETERS(sel=selector, nprobe=probed))
        return found

    @staticmethod
    def _selected(mask: npt.NDArray[np.bool_], search: Any) -> Any:
        bits = np.packbits(mask, bitorder="little")
        # The selector reads `bits` in place: both must outlive the search.
        selector = faiss.IDSelectorBitmap(len(mask), faiss.swig_ptr(bits))
        return search(selector)


@dataclass(frozen=True, eq=False)
class Index:
    """One state of what can be found, under one fingerprint. Immutable: a change makes a new Index.

    A search holds the Index it started with, so it is answered from one whole state while others are made beside it.
    FAISS searches of one index may run in any number of threads; nothing is ever added to an index that is searched.
    """

    manifest: Manifest  # of the sealed base
    fold: HermitianFold  # makes this index's queries
    base: Base  # the sealed part, as masked by the changes since
    _fresh: tuple[KeysInMemory, ...]  # each at least twice as large as the next: see _few_parts
    seq: int  # every change of the catalog up to this one is in

    @classmethod
    def of(cls, snapshot: Snapshot) -> "Index":
        """The index that a snapshot is, before any change."""
        keys = faiss.downcast_index(snapshot.keys.index)
        base = KeysInMemory(
            keys,
            snapshot.ids,
            snapshot.tails,
            snapshot.residuals,
            owner=snapshot.keys,
            probed=snapshot.manifest.probed,
            card=CardKeys.of(keys),
        )
        return cls(snapshot.manifest, snapshot.fold, base, (), snapshot.manifest.seq)

    @property
    def _parts(self) -> tuple[Base, ...]:
        return (self.base, *self._fresh)

    def on(self, base: Base, *, fresh: bool) -> "Index":
        """The same state on another form of its base, with or without the fresh part."""
        return replace(self, base=base, _fresh=self._fresh if fresh else ())

    def fresh_keys(self) -> tuple[Int64, Float32, Float32]:
        """What came after the base: ids int64 (n,), keys float32 (n, the base's dim) and their tails float32 (n,)."""
        if not self._fresh:
            return np.empty(0, np.int64), np.empty((0, self.base.dim), np.float32), np.empty(0, np.float32)
        joined = _joined(list(self._fresh))
        return joined.ids, _stored(joined.keys)[:, : self.base.dim].copy(), joined.tails

    @property
    def fingerprint(self) -> str:
        """The model whose embeddings are in here."""
        return self.manifest.fingerprint

    @property
    def generation(self) -> int:
        """The base's number; changes on top of it do not count."""
        return self.manifest.generation

    @property
    def tombstones(self) -> frozenset[int]:
        """Rows of the stems whose windows in the base are masked."""
        return self.base.tombstones

    @property
    def windows(self) -> int:
        """Windows that can be found."""
        return self.base.windows + self.fresh_windows

    @property
    def approximate(self) -> bool:
        """Whether a search may overlook a window, so that nothing it answers is proven."""
        return self.base.approximate

    @property
    def fresh_windows(self) -> int:
        """Windows outside the base; when there are many, it is time to seal a new one."""
        return sum(part.windows for part in self._fresh)

    @property
    def stems(self) -> int:
        """Stems that can be found."""
        return sum(part.stems for part in self._parts)  # no stem has windows in two parts

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
        base = self.base.without(changed)
        fresh = [part.without(changed) for part in self._fresh]
        if upserted:
            fresh.append(_part_of(fold_stems(self.fold, upserted)))
        return replace(self, base=base, _fresh=_few_parts(fresh), seq=seq)

    def search(
        self, queries: Float32, k: int, allowed: Int64 | None = None, trait_weights: Float32 | None = None
    ) -> tuple[Float32, Int64]:
        """The k best windows for each query, exact for what is stored unless the base is approximate; see `slack`.

        Several query rows go in one call: FAISS spreads them over its OpenMP threads, as many as the process allows
        (OMP_NUM_THREADS, or faiss.omp_set_num_threads at start). A search of a millisecond or two takes one thread: on
        a busy machine several would wait longer for each other.

        Args:
            queries: float32 (q, dim), made by `fold.queries`.
            k: windows wanted for each.
            allowed: int64 stem rows that may be answered, in any order; None allows all, an empty array none.
            trait_weights: float32 (q, TRAITS), what a stem's traits are multiplied by and add to its score, in all
                nothing or less. None, or where the base's keys have no traits: nothing.

        Returns:
            Scores float32 (q, k), descending, and window ids int64 (q, k); -inf and -1 where windows run out.

        Raises:
            WrongShape: the queries come from another fold. NotFinite. ValueError: k below 1.
        """
        if queries.ndim != 2 or queries.shape[1] != self.fold.dim:
            raise WrongShape("the queries", shape=queries.shape, expected=f"(q, {self.fold.dim})")
        if k < 1:
            raise ValueError(f"k is {k}, at least 1 is needed")
        if self.base.dim == self.fold.dim:  # with weights, stems that came since would rank too low
            trait_weights = None
        asked = whole(queries, trait_weights)
        if not np.isfinite(asked).all():
            raise NotFinite("the queries", count=int(np.count_nonzero(~np.isfinite(asked))))
        with _threads_for(len(queries) * self.windows):
            found = [part.search(np.ascontiguousarray(asked[:, : part.dim]), k, allowed) for part in self._parts]
        padding = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        scores = np.concatenate([part[0] for part in found] + [padding[0]], axis=1)
        ids = np.concatenate([part[1] for part in found] + [padding[1]], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)

    def slack(self, embedding: npt.NDArray[np.complex64], trait_weights: Float32 | None = None) -> Float64:
        """How far a score that `search` gives can lie from the exact one, for each query.

        It adds up what the rank drops (Cauchy-Schwarz over the two tails), what the index type rounds off, and float32.
        An approximate base may miss any window, so nothing is known of what it left out: the slack is then the whole
        range of scores, twice the largest |eigenvalue| for an embedding of unit norm, and all that traits can take off.

        Args:
            embedding: complex64 (q, D), before folding.
            trait_weights: as for `search`.

        Returns:
            float64 (q,).
        """
        norm = np.maximum(1.0, np.linalg.norm(embedding, axis=1).astype(np.float64)) * _NORM_MARGIN
        weight = 0.0 if trait_weights is None else np.linalg.norm(trait_weights.astype(np.float64), axis=1)
        if self.approximate:
            return np.asarray(2 * abs(self.fold.eigenvalues[0]) * norm + _LARGEST_TRAITS * weight)
        tail, residual = (max(errors) for errors in zip(*(part.largest_errors for part in self._parts), strict=True))
        slack = self.fold.query_tail(embedding) * tail + self.fold.rounding * norm
        slack += _TRAITS_ROUNDING * _LARGEST_TRAITS * weight
        if residual:
            query = np.linalg.norm(self.fold.queries(embedding).astype(np.float64), axis=1)
            slack += np.hypot(query, weight) * residual
        return np.asarray(slack * _NORM_MARGIN)


@contextmanager
def _threads_for(scores: int) -> Iterator[None]:
    """Within it FAISS takes one thread where there is little to do. OpenMP keeps this number for each caller's thread
    by itself."""
    allowed = faiss.omp_get_max_threads()
    if allowed > 1 and scores <= _SCORES_OF_ONE_THREAD:
        faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(allowed)


def _part_of(checked: CheckedKeys) -> KeysInMemory:
    keys = faiss.IndexFlatIP(checked.keys.shape[1])
    keys.add(checked.keys)
    return KeysInMemory(keys, checked.ids, checked.tails, np.zeros(len(checked.ids), np.float32))


def _few_parts(parts: Iterable[KeysInMemory]) -> tuple[KeysInMemory, ...]:
    """The same live keys in parts of which each has at least twice as many as the next.

    FAISS must not add to an index that is being searched, so new keys go into a new one. Merging by size copies each
    key at most log2(n) times; one index for all fresh keys would copy all of them for each new stem.
    """
    few: list[KeysInMemory] = []
    for part in parts:
        few.append(part)
        while len(few) > 1 and few[-2].windows < 2 * few[-1].windows:
            few[-2:] = [_joined(few[-2:])]
    return tuple(_joined([part]) if 2 * part.windows < len(part.ids) else part for part in few if part.windows)


def _joined(parts: list[KeysInMemory]) -> KeysInMemory:
    """The live keys of some fresh parts as one."""
    keys = faiss.IndexFlatIP(parts[0].keys.d)
    live = [np.arange(len(part.ids)) if part.live is None else np.flatnonzero(part.live) for part in parts]
    for part, positions in zip(parts, live, strict=True):
        if len(positions):
            keys.add(_stored(part.keys)[positions])
    ids, tails, residuals = (
        np.concatenate([getattr(part, name)[positions] for part, positions in zip(parts, live, strict=True)])
        for name in ("ids", "tails", "residuals")
    )
    return KeysInMemory(keys, ids, tails, residuals)


def _stored(keys: Any) -> Float32:
    """The keys of a flat index, float32 (n, dim), in its own memory."""
    stored: Float32 = faiss.rev_swig_ptr(keys.get_xb(), keys.ntotal * keys.d).reshape(keys.ntotal, keys.d)
    return stored
