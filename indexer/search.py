"""What is asked of an index: candidate stems for a mix, whether they are proven, and their places on a finer grid."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from indexer.catalog.records import StemEmbeddings
from indexer.diagonals import (
    HALF_A_MS_S,
    SAME_TIME_S,
    TIE_DECIMALS,
    Extent,
    Pair,
    Place,
    QueryWindows,
    parabola,
    places_ms,
)
from indexer.index.fold import HermitianFold
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

_FEWEST_TRIPLES = 5  # of neighbouring shifts, to tell how fast the score varies


class Searched(Protocol):
    """What a search needs of an index; a cluster's client can offer the same."""

    @property
    def fold(self) -> HermitianFold: ...

    def search(self, queries: Float32, k: int, allowed: Int64 | None = None) -> tuple[Float32, Int64]: ...

    def slack(self, embedding: Complex64) -> Float64: ...


@dataclass(frozen=True, eq=False)
class Candidates:
    """The stems worth scoring exactly, best window first, and what is known of all others."""

    rows: Int64  # (m,) stem rows
    best: Float32  # (m,) the best window's score, as the index gives it
    threshold: Float64  # (q,) no window outside the answer scores above it in this row; -inf: none is outside
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


def missed_by_half(fold: HermitianFold, queries: QueryWindows) -> float | None:
    """How much of the score a grid of every second shift would miss, if lines were drawn between its shifts.

    The score is linear in the folded query, so one number holds for every key: how far the middle one of three shifts
    lies from the line through the others (root mean square), over the size of the queries. The grid of all shifts
    misses less. A slow model on slow music is near 0, noise is above 1.

    Returns:
        None where there are too few shifts to tell.
    """
    before, after = neighbouring_shifts(queries)
    inner, left, right = np.intersect1d(after, before, return_indices=True)
    if len(inner) < _FEWEST_TRIPLES:
        return None
    return missed_between(fold, queries, before[left], after[right], queries.embedding[inner])


def neighbouring_shifts(queries: QueryWindows, most: int | None = None) -> tuple[Int64, Int64]:
    """The rows of windows that lie one shift apart.

    Args:
        queries: of a mix.
        most: pairs wanted; where there are more, these are spread over all of them. None: all.

    Returns:
        int64 (pairs,) twice: the earlier row of each, and the later.
    """
    order = np.lexsort((queries.shift, queries.window))
    shift, window = queries.shift[order], queries.window[order]
    at = np.flatnonzero((np.diff(shift) == 1) & (np.diff(window) == 0))
    if most is not None and len(at) > most:
        at = at[np.round(np.linspace(0, len(at) - 1, most)).astype(int)]
    return order[at], order[at + 1]


def missed_between(
    fold: HermitianFold, queries: QueryWindows, before: Int64, after: Int64, between: Complex64
) -> float:
    """How much of the score a straight line misses halfway between some windows, for any key: 0 none, 1 all.

    Args:
        queries: of a mix.
        before, after: int64 (pairs,), rows of the windows on either side.
        between: complex64 (pairs, D), the embeddings of those halfway.
    """
    here = fold.queries(between).astype(np.float64)
    around = fold.queries(queries.embedding[before]).astype(np.float64) + fold.queries(queries.embedding[after])
    missed = here - around / 2
    return float(np.sqrt((missed**2).sum(axis=1).mean() / max(1e-30, float((here**2).sum(axis=1).mean()))))


def candidates(
    index: Searched, queries: QueryWindows, limit: int, allowed: Int64 | None = None, *, k: int | None = None
) -> Candidates:
    """Stage 1: the stems that own the best windows of each query row.

    Asks for twice as many windows until four stems for each hit wanted (50 at least) have come, or none are left.

    Args:
        index: searched; its fold makes the queries.
        queries: of one mix, all shifts at once.
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
        scores, ids = index.search(folded, k, allowed)
        rows, best = _best_by_stem(scores, ids)
        threshold = scores[:, -1].astype(np.float64)
        if len(rows) >= wanted or np.isneginf(threshold).all() or k >= LARGEST_K:
            break
        k = min(2 * k, LARGEST_K)
    slack = index.slack(queries.embedding)
    ceiling = float((threshold + slack).max(initial=-np.inf))
    return Candidates(rows, best, threshold, slack, k, ceiling)


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


def refine_offsets(
    places: Iterable[Place], *, shift_s: float, fine_shift_s: float, first_s: float, last_s: float, drawn: bool = False
) -> Float64:
    """Where in the mix more windows must be embedded to know these places on the fine grid.

    Where the score varies slowly enough for the grid, the peak lies within half a shift of the best shift. Of the two
    neighbouring shifts the one with the higher score tells its side:
    - the grid is halved: one fine shift on that side is tried;
    - it gets finer than that: that side up to half a shift, and one fine shift on the other;
    - the score is `drawn`: the peak of the parabola through the three alone, unless it is known.
    Where a neighbour is missing (first and last shift, or a single one), both sides are tried.

    Args:
        places: of the hits to be refined.
        shift_s: the grid they were found on, seconds.
        fine_shift_s: the grid wanted, seconds.
        first_s, last_s: earliest and latest second of the mix where a window may begin; usually 0 and the mix's
            duration less a window. Windows beyond are left out.
        drawn: whether the grid of shifts draws the score well; see `missed_between`.

    Returns:
        float64 (m,), seconds, ascending, without repetitions: hits share them.
    """
    offsets = {
        round(pair.mix_s + step * fine_shift_s, 6)
        for place in places
        for step in _fine_steps(place, shift_s, fine_shift_s, drawn)
        for pair in place.pairs
    }
    return np.array(
        sorted(offset for offset in offsets if first_s - SAME_TIME_S <= offset <= last_s + SAME_TIME_S), np.float64
    )


def _fine_steps(place: Place, shift_s: float, fine_shift_s: float, drawn: bool) -> list[int]:
    reach = int(shift_s / 2 / fine_shift_s + 1e-6)
    near = [point for point in place.curve if abs(point[0]) < 1.5 * shift_s]
    left = max((point for point in near if point[0] < 0), default=None)
    right = min((point for point in near if point[0] > 0), default=None)
    if left is None or right is None or reach == 0:
        steps = {-reach, -(reach // 2), reach // 2, reach} if drawn else set(range(-reach, reach + 1))
        return sorted(steps - {0})
    slope, bend = parabola(place.score, left, right)
    side = 1 if slope >= 0 else -1
    if drawn:
        peak = -slope / (2 * bend) / fine_shift_s if bend < 0 else side * reach
        step = max(-reach, min(reach, round(peak)))
        return [] if any(abs(at - step * fine_shift_s) < fine_shift_s / 2 for at, _ in near) else [step]
    return [side] if reach == 1 else sorted([-side] + [side * step for step in range(1, reach + 1)])


def refined(
    fold: HermitianFold,
    places: Mapping[int, Place],
    stems: Mapping[int, StemEmbeddings],
    fine_embedding: Complex64,
    fine_offset_s: Float64,
    *,
    shift_s: float,
) -> dict[int, Place]:
    """The places with their best neighbour on the fine grid, or as they were where none is better.

    Args:
        fold: scores exactly, as in `best_places`.
        places: by stem row.
        stems: the same stems' embeddings as given to `best_places`, at least those of `places`.
        fine_embedding: complex64 (m, D), the windows of `refine_offsets`; silent ones may be missing.
        fine_offset_s: float64 (m,), the second of the mix where each begins.
        shift_s: the grid the places were found on; a place moves by half of it at most.

    Returns:
        By stem row, with what was learnt in their curves. Neighbours are compared by the mean change over the pairs
        they have, at least half of the place's: at either end of the mix some pairs cannot be moved. The score is the
        mean over the pairs at the new place.
    """
    if not len(fine_offset_s):
        return dict(places)
    left = fold.form_rows(fine_embedding)  # (m, 2D)
    result: dict[int, Place] = {}
    for row, place in places.items():
        windows = [pair.window for pair in place.pairs]
        scores = left @ fold.real_rows(stems[row].embedding[windows]).T  # (m, pairs)
        moved = places_ms(fine_offset_s[:, None], np.array([pair.mix_s for pair in place.pairs])[None, :])
        changes = scores - np.array([pair.score for pair in place.pairs])[None, :]
        best, best_ms, best_change = place, 0, 0.0
        curve = {round(at * 1000): score for at, score in place.curve} | {0: place.score}
        reached = {int(ms) for ms in moved[np.abs(moved) <= shift_s * 500 + 1] if ms}
        for ms in sorted(reached, key=lambda ms: (abs(ms), ms)):
            rows, columns = np.nonzero(moved == ms)
            change = round(float(changes[rows, columns].mean()), TIE_DECIMALS)
            if 2 * len(np.unique(columns)) < len(place.pairs):
                continue
            curve[ms] = place.score + change
            if change <= best_change:
                continue
            pairs = tuple(
                place.pairs[j]._replace(query=int(q), score=float(scores[q, j]), mix_s=float(fine_offset_s[q]))
                for q, j in zip(rows, columns, strict=True)
            )
            start_ms = places_ms(np.array([pairs[0].stem_s]), np.array([pairs[0].mix_s]))
            best = Place(float(np.mean([pair.score for pair in pairs])), int(start_ms[0]) / 1000, pairs, ())
            best_ms, best_change = ms, change
        rise = best.score - (place.score + best_change)  # of the mean, where pairs were lost on the way
        around = tuple(((ms - best_ms) / 1000, curve[ms] + rise) for ms in sorted(curve))
        result[row] = replace(best, curve=around)
    return result


def further_pairs(place: Place, stem: StemEmbeddings, most: int, extent: Extent) -> list[tuple[int, float]]:
    """What else of a longer mix lies against windows of the stem, if the place is right.

    Args:
        place: found in a stretch of the mix.
        stem: the place's.
        most: windows wanted; where there are more, these are spread over all of them.
        extent: of the mix.

    Returns:
        (position among the stem's windows, second of the mix where its window begins), ascending, without the pairs
        that the place has.
    """
    offset_s = stem.starts_s - place.start_s
    inside = (offset_s >= extent.first_s - HALF_A_MS_S) & (offset_s <= extent.last_s + HALF_A_MS_S)
    known = {pair.window for pair in place.pairs}
    others = [window for window in np.flatnonzero(inside).tolist() if window not in known]
    if len(others) > most:
        others = [others[at] for at in np.round(np.linspace(0, len(others) - 1, most)).astype(int)]
    return [(window, round(min(max(float(offset_s[window]), extent.first_s), extent.last_s), 6)) for window in others]


def with_pairs(
    fold: HermitianFold, place: Place, stem: StemEmbeddings, further: Iterable[tuple[int, float]], mix: QueryWindows
) -> Place:
    """The place with further pairs, its score the mean over all.

    Args:
        fold: scores exactly, as in `best_places`.
        place: of the stem.
        stem: embeddings and starts.
        further: as from `further_pairs`; those whose second no window of `mix` begins at are left out: silence.
        mix: the windows that were asked for.
    """
    row_at = {round(float(at_s), 6): row for row, at_s in enumerate(mix.offset_s)}
    added = [(window, row_at[at_s]) for window, at_s in further if at_s in row_at]
    if not added:
        return place
    windows, rows = np.array(added).T
    left = fold.form_rows(mix.embedding[rows])  # (pairs, 2D)
    scores = np.sum(left * fold.real_rows(stem.embedding[windows]), axis=1)
    told = (rows, windows, scores, mix.offset_s[rows], stem.starts_s[windows])
    pairs = place.pairs + tuple(Pair(*pair) for pair in zip(*(values.tolist() for values in told), strict=True))
    score = float(np.mean([pair.score for pair in pairs]))
    return Place(score, place.start_s, pairs, ((0.0, score),))
