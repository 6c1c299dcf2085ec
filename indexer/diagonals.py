"""Where a stem lies against a mix: exact scores along every diagonal.

A query window begins `offset_s` seconds into the mix. Laid against a window of a stem that begins `start_s` into the
stem, it says: the mix's second 0 sounds together with the stem's second start_s - offset_s. That difference is the
pair's place; pairs of one shift that agree on it form a diagonal.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from indexer.catalog.records import StemEmbeddings
from indexer.index.fold import HermitianFold

Complex64 = npt.NDArray[np.complex64]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

# Mean scores closer than this are a tie: the matrix product's last bits depend on what else is in the batch.
TIE_DECIMALS = 9
# A sample is 0.0625 ms, so a place can lie on half a millisecond exactly, where rounding would follow the float's last
# bit and tear a diagonal apart. This threshold is 0.01 ms away from every multiple of a sample.
_HALF_MS = 0.49
SAME_TIME_S = 1e-5
HALF_A_MS_S = 0.0005 + SAME_TIME_S  # places are told to the millisecond


@dataclass(frozen=True, eq=False)
class QueryWindows:
    """The windows of a mix at every shift. Silent ones are left out.

    embedding: complex64 (q, D), unit norm; offset_s: float64 (q,), the second of the mix where the window begins;
    shift: int (q,), number of the shift; window: int (q,), number of the window at that shift.
    """

    embedding: Complex64
    offset_s: Float64
    shift: Int64
    window: Int64


@dataclass(frozen=True)
class Extent:
    """A mix beyond the stretch of it that is searched: where its windows may begin, and how far apart they are."""

    first_s: float
    last_s: float
    stride_s: float

    @property
    def windows(self) -> int:
        return math.floor((self.last_s - self.first_s + HALF_A_MS_S) / self.stride_s) + 1


class Pair(NamedTuple):
    """A window of the mix laid against a window of a stem."""

    query: int  # row of the queries (of the fine ones after refinement, of the further ones where a longer mix went on)
    window: int  # position among the stem's windows
    score: float
    mix_s: float  # where the mix's window begins, seconds
    stem_s: float  # where the stem's window begins, seconds


@dataclass(frozen=True)
class Place:
    """Where a stem fits a mix best, and how well."""

    score: float  # mean over the pairs
    start_s: float  # second of the stem that sounds with the mix's second 0; negative: the stem enters later
    pairs: tuple[Pair, ...]
    # (displacement of the mix's windows in seconds, score there) around the place, ascending, itself at 0 included.
    # A neighbour's score is the place's plus the mean change over the pairs that both have.
    curve: tuple[tuple[float, float], ...]
    speed: float = 1.0  # how many times faster the stem is played
    transpose: int = 0  # semitones up

    @property
    def promise(self) -> float:
        """The score and the best beside it, if positive: a peak between two shifts shares itself out among both."""
        beside = (score for displacement_s, score in self.curve if displacement_s)
        return self.score + max(0.0, max(beside, default=0.0))

    @property
    def peak(self) -> float:
        """The highest score around it, as the parabola through it and its nearest neighbours draws it."""
        left = max((point for point in self.curve if point[0] < 0), default=None)
        right = min((point for point in self.curve if point[0] > 0), default=None)
        if left is None or right is None:
            return self.score
        slope, bend = parabola(self.score, left, right)
        if bend < 0 and left[0] < (at := -slope / (2 * bend)) < right[0]:
            return self.score + (slope + bend * at) * at
        return max(left[1], self.score, right[1])


@dataclass(frozen=True, eq=False)
class BestPlaces:
    """The best place of each stem. Its score is known; to tell the place takes longer than to find it."""

    scores: Mapping[int, float]  # by the caller's number of the stem; mean over the place's pairs
    _diagonals: "_Diagonals | None"
    _winners: Mapping[int, int]

    def place(self, number: int, *, curve: bool = True) -> Place:
        """Its place; without the curve around it, which takes most of the time, where nobody looks further."""
        assert self._diagonals is not None
        return self._diagonals.place_of(self._winners[number], curve=curve)


def best_places(
    fold: HermitianFold, queries: QueryWindows, stems: Mapping[int, StemEmbeddings], extent: Extent | None = None
) -> BestPlaces:
    """Stage 2: each stem's best diagonal, by the exact complex score.

    A diagonal counts if it has at least half as many pairs as the shorter of mix (at that shift) and stem has windows,
    rounded up; its score is the mean over its pairs. Of equal ones the one with more pairs wins, then the place nearest
    to 0, then the smaller place, then the earlier shift. The last window of a stem ends with the clip and so begins off
    the stride's grid; it makes diagonals of its own, since only places are compared.

    Args:
        fold: its full form scores, whatever its rank.
        stems: by any number, the stem row for one; a window that is silent is not among them.

    Returns:
        By the same number; a stem of which no diagonal counts is left out.
    """
    found = _Diagonals.of(fold, queries, stems, extent)
    if found is None:
        return BestPlaces({}, None, {})
    winners = {found.numbers[int(found.owner[winner])]: int(winner) for winner in found.winners()}
    return BestPlaces({number: float(found.mean[winner]) for number, winner in winners.items()}, found, winners)


def promising_places(
    fold: HermitianFold,
    queries: QueryWindows,
    stems: Mapping[int, StemEmbeddings],
    each: int,
    apart_s: float,
    extent: Extent | None = None,
) -> dict[int, list[Place]]:
    """Several places of each stem that may turn out the best once they are known on a finer grid.

    A grid of shifts meets one place of a stem almost exactly and the next one almost half a shift beside it, so their
    scores on it are not fair to each other; see `Place.promise` for what nearly is. The best place of all comes first,
    the others in the order of their promise.

    Args:
        each: most places of one stem.
        apart_s: places nearer to each other than this are one.
        extent: as in `best_places`.

    Returns:
        By the number of `stems`, as in `best_places`.
    """
    found = _Diagonals.of(fold, queries, stems, extent)
    if found is None:
        return {}
    promise = found.promise()
    result: dict[int, list[Place]] = {}
    for winner in found.winners():
        mine = np.flatnonzero((found.owner == found.owner[winner]) & np.isfinite(found.mean))
        chosen = [int(winner)]
        for diagonal in mine[np.argsort(-promise[mine], kind="stable")]:
            if len(chosen) == each or promise[diagonal] == -np.inf:
                break
            if all(abs(found.place[diagonal] - found.place[other]) > apart_s * 1000 for other in chosen):
                chosen.append(int(diagonal))
        result[found.numbers[int(found.owner[winner])]] = [found.place_of(diagonal) for diagonal in chosen]
    return result


@dataclass(frozen=True, eq=False)
class _Diagonals:
    """Every diagonal of a mix against some stems, ascending by stem, then shift, then place."""

    queries: QueryWindows
    numbers: list[int]  # the caller's number of each stem
    start_s: Float64  # (windows,) of all stems in a row
    first: Int64  # (stems + 1,) where each stem's windows begin in that row
    scores: Float64  # (q, windows)
    order: Int64  # positions in `scores`, diagonal by diagonal
    begin: Int64  # (diagonals,) where each begins in `order`
    counts: Int64  # (diagonals,) pairs
    mean: Float64  # (diagonals,) mean score; -inf where there are too few pairs to count
    owner: Int64  # (diagonals,) position of the stem in `numbers`
    shift: Int64  # (diagonals,)
    place: Int64  # (diagonals,) ms
    gaps: Int64  # (shifts - 1,) ms from each shift to the next

    @classmethod
    def of(
        cls,
        fold: HermitianFold,
        queries: QueryWindows,
        stems: Mapping[int, StemEmbeddings],
        extent: Extent | None = None,
    ) -> "_Diagonals | None":
        """None when there is not one pair."""
        numbers = [number for number, stem in stems.items() if len(stem.starts_s)]
        if not numbers or not len(queries.offset_s):
            return None
        sizes = np.array([len(stems[number].starts_s) for number in numbers])
        start_s = np.concatenate([stems[number].starts_s for number in numbers])
        embedding = np.concatenate([stems[number].embedding for number in numbers])
        scores = fold.form_rows(queries.embedding) @ fold.real_rows(embedding).T  # (q, windows)

        shifts, shift = np.unique(queries.shift, return_inverse=True)
        mix_windows = np.bincount(shift)
        stem = np.repeat(np.arange(len(numbers)), sizes)
        place = places_ms(start_s[None, :], queries.offset_s[:, None])  # (q, windows)
        lowest = int(place.min())
        width = int(place.max()) - lowest + 1
        # One number for each diagonal, ascending by stem, then shift, then place.
        number_of = (stem[None, :] * len(shifts) + shift[:, None]) * width + (place - lowest)
        order = np.argsort(number_of, axis=None, kind="stable")
        ordered = number_of.ravel()[order]
        begin = np.flatnonzero(np.diff(ordered, prepend=-1))  # (diagonals,), positions in `order`
        counts = np.diff(begin, append=len(ordered))
        mean = np.round(np.add.reduceat(scores.ravel()[order], begin) / counts, TIE_DECIMALS)
        owner, at_shift = np.divmod(ordered[begin] // width, len(shifts))
        needed = (np.minimum(mix_windows[at_shift], sizes[owner]) + 1) // 2
        mean[counts < needed] = -np.inf
        diagonal_place = ordered[begin] % width + lowest
        if extent is not None:
            counting = np.isfinite(mean)
            spanning = counting & _spans(extent, [stems[number].starts_s for number in numbers], owner, diagonal_place)
            has_one = np.zeros(len(numbers), np.bool_)
            has_one[owner[spanning]] = True
            mean[counting & ~spanning & has_one[owner]] = -np.inf
        earliest = np.full(len(shifts), np.inf)
        np.minimum.at(earliest, shift, queries.offset_s)
        return cls(
            queries=queries,
            numbers=numbers,
            start_s=start_s,
            first=np.concatenate([[0], np.cumsum(sizes)]),
            scores=scores,
            order=order,
            begin=begin,
            counts=counts,
            mean=mean,
            owner=owner,
            shift=at_shift,
            place=diagonal_place,
            gaps=np.round(np.diff(earliest) * 1000).astype(np.int64),
        )

    def winners(self) -> Int64:
        """The best diagonal of each stem that has one which counts."""
        by_stem = np.searchsorted(self.owner, np.arange(len(self.numbers)))
        top = np.maximum.reduceat(self.mean, by_stem)
        tied = np.flatnonzero((self.mean == top[self.owner]) & np.isfinite(self.mean))
        keys = (self.shift, self.place, np.abs(self.place), -self.counts, self.owner)
        tied = tied[np.lexsort([key[tied] for key in keys])]  # those that share a stem's top score, its winner first
        _, winners = np.unique(self.owner[tied], return_index=True)
        return tied[winners]

    def promise(self) -> Float64:
        """The mean of each diagonal and the better of its neighbours at the shifts before and after, if positive.

        -inf for a diagonal with a better neighbour: that one stands for the peak they share.
        """
        lowest, width = int(self.place.min()), int(self.place.max() - self.place.min()) + 1
        shifts = len(self.gaps) + 1
        number = (self.owner * shifts + self.shift) * width + (self.place - lowest)

        def neighbour(step: int) -> Float64:
            inside = (self.shift + step >= 0) & (self.shift + step < shifts)
            gap = np.zeros(len(number), np.int64)
            gap[inside] = self.gaps[np.minimum(self.shift, self.shift + step)[inside]]
            moved = self.place - step * gap  # a later window lies at an earlier place
            inside &= (moved >= lowest) & (moved < lowest + width)
            wanted = (self.owner * shifts + self.shift + step) * width + (moved - lowest)
            at = np.minimum(np.searchsorted(number, wanted), len(number) - 1)
            return np.where(inside & (number[at] == wanted), self.mean[at], -np.inf)

        beside = np.maximum(neighbour(-1), neighbour(1))
        return np.where(beside > self.mean, -np.inf, self.mean + np.maximum(0.0, beside))

    @cached_property
    def _around(self) -> tuple[Int64, Int64]:
        return _neighbours(self.queries.offset_s)

    def place_of(self, diagonal: int, *, curve: bool = True) -> Place:
        """A diagonal with all that a caller wants to know of it."""
        begin, offset_s = self.begin[diagonal], self.queries.offset_s
        members = self.order[begin : begin + self.counts[diagonal]]
        rows, columns = np.divmod(members, len(self.start_s))
        first = self.first[self.owner[diagonal]]
        told = (rows, columns - first, self.scores[rows, columns], offset_s[rows], self.start_s[columns])
        pairs = tuple(Pair(*pair) for pair in zip(*(values.tolist() for values in told), strict=True))
        score = float(np.mean(told[2]))
        return Place(
            score=score,
            start_s=int(self.place[diagonal]) / 1000,
            pairs=pairs,
            curve=self._curve(rows, columns, score) if curve else ((0.0, score),),
        )

    def _curve(self, rows: Int64, columns: Int64, score: float) -> tuple[tuple[float, float], ...]:
        offset_s = self.queries.offset_s
        before, after = self._around
        around = np.concatenate([before[rows], after[rows]])
        here, column = np.tile(rows, 2)[around >= 0], np.tile(columns, 2)[around >= 0]
        around = around[around >= 0]
        moved = places_ms(offset_s[around], offset_s[here])  # (neighbouring pairs,), ms
        changes = self.scores[around, column] - self.scores[here, column]
        curve = {int(ms): score + float(changes[moved == ms].mean()) for ms in np.unique(moved)} | {0: score}
        return tuple((ms / 1000, curve[ms]) for ms in sorted(curve))


def _spans(extent: Extent, starts_s: list[Float64], owner: Int64, place_ms: Int64) -> npt.NDArray[np.bool_]:
    """At which of these places half of the windows that mix and stem both have lie against each other.

    Args:
        extent: of the mix.
        starts_s: each stem's windows, ascending.
        owner: int64 (places,), ascending, positions in `starts_s`.
        place_ms: int64 (places,).
    """
    result = np.zeros(len(owner), np.bool_)
    bounds = np.searchsorted(owner, np.arange(len(starts_s) + 1))
    for starts, begin, end in zip(starts_s, bounds[:-1], bounds[1:], strict=True):
        place_s = place_ms[begin:end] / 1000
        below = np.searchsorted(starts, extent.first_s + place_s - HALF_A_MS_S, side="left")
        inside = np.searchsorted(starts, extent.last_s + place_s + HALF_A_MS_S, side="right") - below
        result[begin:end] = 2 * inside >= min(extent.windows, len(starts))
    return result


def places_ms(start_s: Float64, offset_s: Float64) -> Int64:
    """The difference in whole milliseconds, int64; see _HALF_MS."""
    return np.floor((start_s - offset_s) * 1000 + _HALF_MS).astype(np.int64)


def _neighbours(offset_s: Float64) -> tuple[Int64, Int64]:
    """For each query row the rows that begin next before and next after it in the mix, -1 where there is none.

    By time, not by shift: the last shift of a window and the first shift of the next window are neighbours too.
    """
    times = np.sort(offset_s)
    times = times[np.diff(times, prepend=-np.inf) > SAME_TIME_S]
    order = np.argsort(offset_s, kind="stable")
    row_at = order[np.searchsorted(offset_s[order], times - SAME_TIME_S / 2)]  # (different times,)
    position = np.searchsorted(times, offset_s + SAME_TIME_S / 2, side="right") - 1
    padded = np.concatenate([[-1], row_at, [-1]])
    return padded[position], padded[position + 2]


def parabola(score: float, left: tuple[float, float], right: tuple[float, float]) -> tuple[float, float]:
    """The parabola through a score at 0 and two points around it: its slope at 0, and half its curvature."""
    before, after = (left[1] - score) / left[0], (right[1] - score) / right[0]
    bend = (after - before) / (right[0] - left[0])
    return after - bend * right[0], bend
