"""How much of the exact answer an index returns, measured with windows of the catalog itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.index.fold import HermitianFold
from indexer.index.keys import whole

Complex64 = npt.NDArray[np.complex64]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Search = Callable[[Float32, int], tuple[Float32, Int64]]

RECALL_AT = 10
DEEP_AT = 500
# Windows that a search scores again exactly, at least; see FEWEST_CANDIDATES in search.py.
RESCORED = 50

# Two windows of the same audio tie; an answer whose exact score is this close to the last right one is no miss.
_TIE = 1e-5
# Exact answers kept beyond the deepest recall, so that ties are seen.
_BEYOND = 100


@dataclass(frozen=True)
class Recall:
    """Shares of the exact best windows that the index returns, on average over the probes."""

    at: int  # RECALL_AT, or all windows if they are fewer
    probes: int
    value: float  # of the best `at`, among the index's first `at`
    rescored: float  # of the best `at`, among the index's first RESCORED: after these were scored again
    deep_at: int  # DEEP_AT, or all windows
    deep: float  # of the best `deep_at`, among the index's first `deep_at`


class RecallMeter:
    """Remembers each probe's exact best windows while they go by, and compares an index with them."""

    def __init__(self, fold: HermitianFold, probes: Complex64) -> None:
        """
        Args:
            fold: of the index that will be measured; the truth is its full form's, whatever its rank.
            probes: complex64 (n, D), the embeddings to ask with.
        """
        self._fold, self._probes = fold, probes
        self._windows = 0
        self._scores = np.empty((len(probes), 0), np.float32)
        self._ids = np.empty((len(probes), 0), np.int64)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """What `restored` needs to go on from here."""
        return {"probes": self._probes, "seen": np.array([self._windows]), "best": self._scores, "best_ids": self._ids}

    @classmethod
    def restored(cls, fold: HermitianFold, state: Mapping[str, npt.NDArray[Any]]) -> "RecallMeter":
        """A meter that has seen what the one behind `state` had."""
        meter = cls(fold, state["probes"])
        meter._windows, meter._scores, meter._ids = int(state["seen"][0]), state["best"], state["best_ids"]
        return meter

    def see(self, ids: Int64, embedding: Complex64) -> None:
        """Take some windows into account: int64 (n,) and complex64 (n, D)."""
        self._windows += len(ids)
        if not len(self._probes) or not len(ids):
            return
        found = self._fold.scores(self._probes, embedding)  # (probes, windows)
        scores = np.concatenate([self._scores, found], axis=1)
        every = np.concatenate([self._ids, np.broadcast_to(ids, found.shape)], axis=1)
        kept = min(DEEP_AT + _BEYOND, scores.shape[1])
        best = np.argpartition(-scores, kept - 1, axis=1)[:, :kept]
        self._scores = np.take_along_axis(scores, best, axis=1)
        self._ids = np.take_along_axis(every, best, axis=1)

    def measure(self, search: Search) -> Recall | None:
        """Ask `search` (queries of whole keys and k -> scores and window ids); None without probes or windows."""
        if not len(self._probes) or not self._windows:
            return None
        order = np.argsort(-self._scores, axis=1, kind="stable")
        scores = np.take_along_axis(self._scores, order, axis=1)
        ids = np.take_along_axis(self._ids, order, axis=1)
        at, deep_at = min(RECALL_AT, self._windows), min(DEEP_AT, self._windows)
        _, found = search(whole(self._fold.queries(self._probes)), deep_at)

        def share(best: int, among: int) -> float:
            shares = [
                min(best, len(np.intersect1d(ids[probe][scores[probe] >= scores[probe, best - 1] - _TIE], some))) / best
                for probe, some in enumerate(found[:, :among])
            ]
            return float(np.mean(shares))

        return Recall(
            at=at,
            probes=len(self._probes),
            value=share(at, at),
            rescored=share(at, RESCORED),
            deep_at=deep_at,
            deep=share(deep_at, deep_at),
        )
