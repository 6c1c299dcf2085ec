"""What is asked of an index: candidate stems for a mix, and whether they are proven."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from indexer.diagonals import QueryWindows
from indexer.index.index import Index
from indexer.index.keys import split_ids

Complex64 = npt.NDArray[np.complex64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

# Candidate stems for each hit that is wanted, and at least; re-scoring a hundred stems takes milliseconds.
CANDIDATES_PER_HIT = 4
FEWEST_CANDIDATES = 50
# Windows asked of the index for each query row, at most: a 20-minute stem has 480.
LARGEST_K = 4096


@dataclass(frozen=True, eq=False)
class Candidates:
    """The stems worth scoring exactly, best window first, and what is known of all others."""

    rows: Int64  # (m,) stem rows
    best: Float32  # (m,) the best window's score, as the index gives it
    slack: Float64  # (q,) how far the index's scores may be off
    k: int  # windows asked for each row
    ceiling: float  # no stem outside scores above this, at any place on the shifts' grid

    def first(self, n: int) -> "Candidates":
        """The n best of them; the ceiling rises to cover the others."""
        if n >= len(self.rows):
            return self
        dropped = float(self.best[n]) + float(self.slack.max())
        return replace(self, rows=self.rows[:n], best=self.best[:n], ceiling=max(self.ceiling, dropped))

    @property
    def complete(self) -> bool:
        """Whether every window that may be answered is in: asking for more finds nothing new."""
        return self.ceiling == -math.inf


def candidates(
    index: Index, queries: QueryWindows, limit: int, allowed: Int64 | None = None, *, k: int | None = None
) -> Candidates:
    """Stage 1: the stems that own the best windows of each query row.

    Asks for twice as many windows until four stems for each hit wanted (50 at least) have come, or none are left.

    Args:
        index: searched; its fold makes the queries.
        queries: of one mix, all shifts at once; what their trait weights take off is off all scores here.
        limit: hits wanted.
        allowed: int64 stem rows that may be answered; None allows all.
        k: windows for each row to begin with; to widen an earlier answer, give twice its `k`.

    Returns:
        Every stem that came up, which may be many more than asked for; see `Candidates.first`.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}, at least 1 is needed")
    wanted = max(FEWEST_CANDIDATES, CANDIDATES_PER_HIT * limit)
    k = wanted if k is None else min(k, LARGEST_K)
    folded = index.fold.queries(queries.embedding)
    while True:
        scores, ids = index.search(folded, k, allowed, queries.trait_weights)
        rows, best = _best_by_stem(scores, ids)
        threshold = scores[:, -1].astype(np.float64)  # no window outside scores above it; -inf: none is outside
        if len(rows) >= wanted or np.isneginf(threshold).all() or k >= LARGEST_K:
            break
        k = min(2 * k, LARGEST_K)
    slack = index.slack(queries.embedding, queries.trait_weights)
    ceiling = float((threshold + slack).max(initial=-np.inf))
    return Candidates(rows, best, slack, k, ceiling)


def _best_by_stem(scores: Float32, ids: Int64) -> tuple[Int64, Float32]:
    found = ids >= 0
    flat_rows, flat_scores = split_ids(ids[found])[0], scores[found]
    order = np.lexsort((flat_rows, -flat_scores))
    _, first = np.unique(flat_rows[order], return_index=True)
    best = order[np.sort(first)]
    return flat_rows[best], flat_scores[best]


def proven(scores: Iterable[float], found: Candidates, limit: int) -> bool:
    """Whether the `limit` best of these stems are the best there are, on the shifts' grid.

    A stem's score is a mean over pairs, so no stem outside the candidates scores above their ceiling.

    Args:
        scores: of all of `found.rows`, before refinement, in any order.
    """
    best = sorted(scores, reverse=True)
    if len(best) < limit:
        return found.complete
    return best[limit - 1] >= found.ceiling
