"""Where a stem lies against a mix: exact scores along every diagonal.

A query window begins `offset_s` seconds into the mix. Laid against a window of a stem that begins `start_s` into the
stem, it says: the mix's second 0 sounds together with the stem's second start_s - offset_s. That difference is the
pair's place; pairs of one shift that agree on it form a diagonal.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from indexer.catalog.records import StemEmbeddings
from indexer.index.fold import HermitianFold

Complex64 = npt.NDArray[np.complex64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

# Mean scores closer than this are a tie: the matrix product's last bits depend on what else is in the batch.
TIE_DECIMALS = 9
# A sample is 0.0625 ms, so a place can lie on half a millisecond exactly, where rounding would follow the float's last
# bit and tear a diagonal apart. This threshold is 0.01 ms away from every multiple of a sample.
_HALF_MS = 0.49
SAME_TIME_S = 1e-5
# The shifts before and after one lie no further apart; between a laying and the next there may be seconds.
NEIGHBOURS_WITHIN_S = 0.25


@dataclass(frozen=True, eq=False)
class QueryWindows:
    """The windows of a mix at every shift. Silent ones are left out.

    embedding: complex64 (q, D), of norm 1, or more to raise their scores; offset_s: float64 (q,), the second of the mix
    where the window begins; shift: int (q,), number of the shift; trait_weights: for the index, see
    `Index.search`. In beat time, beats stand where seconds do, here and in stems.
    """

    embedding: Complex64
    offset_s: Float64
    shift: Int64
    trait_weights: Float32 | None = None

    def some(self, which: npt.NDArray[np.bool_]) -> "QueryWindows":
        """Those of them that are chosen."""
        trait_weights = None if self.trait_weights is None else self.trait_weights[which]
        return QueryWindows(self.embedding[which], self.offset_s[which], self.shift[which], trait_weights)


class Pair(NamedTuple):
    """A window of the mix laid against a window of a stem."""

    query: int  # row of the queries (of the fine ones after refinement, of the further ones where a longer mix went on)
    window: int  # position among the stem's windows
    score: float
    mix_s: float  # where the mix's window begins, seconds
    stem_s: float  # where the stem's window begins, seconds


@dataclass(frozen=True)
class Place:
    """Where a stem fits a mix best, how well, and how it is played there."""

    score: float  # mean over the pairs, less what it costs to play the stem so
    start_s: float  # second of the stem that sounds with the mix's second 0; negative: the stem enters later
    pairs: tuple[Pair, ...]
    speed: float = 1.0  # times faster than recorded
    transpose: int = 0  # semitones up
    cost: float = 0.0  # of speed and transposition
    harmony_cost: float = 0.0
    length_cost: float = 0.0


@dataclass(frozen=True, eq=False)
class BestPlaces:
    """The best place of each stem. Its score is known; to tell the place takes longer than to find it."""

    scores: Mapping[int, float]  # by the caller's number of the stem; mean over the place's pairs, less its cost
    shifts: Mapping[int, int]  # of the place
    _diagonals: "_Diagonals | None"
    _winners: Mapping[int, int]

    def place(self, number: int, *, between: bool = False) -> Place:
        """Its place; with `between`, at the peak that its score and those at the shifts before and after draw."""
        assert self._diagonals is not None
        return self._diagonals.place_of(self._winners[number], between=between)


def best_places(
    fold: HermitianFold, queries: QueryWindows, stems: Mapping[int, StemEmbeddings], costs: Float64 | None = None
) -> BestPlaces:
    """Stage 2: each stem's best diagonal, by the exact complex score.

    A diagonal counts if it has pairs for more than half of the windows of the shorter of mix (at that shift) and stem,
    or for half of them where the stem has no such diagonal; its score is the mean over its pairs. Of equal ones the one
    with more pairs wins, then the place nearest to 0, then the smaller place, then the earlier shift. The last window
    of a stem ends with the clip and so begins off the stride's grid; it makes diagonals of its own, since only places
    are compared.

    Args:
        fold: its full form scores, whatever its rank.
        stems: by any number, the stem row for one; a window that is silent is not among them.
        costs: float64 (stems, shifts), what a stem's score loses at each shift, ascending; infinite: it may not lie
            there.

    Returns:
        By the same number; a stem of which no diagonal counts is left out.
    """
    found = _Diagonals.of(fold, queries, stems, costs)
    if found is None:
        return BestPlaces({}, {}, None, {})
    winners = {found.numbers[int(found.owner[winner])]: int(winner) for winner in found.winners()}
    shifts = np.unique(queries.shift)
    return BestPlaces(
        {number: float(found.mean[winner]) for number, winner in winners.items()},
        {number: int(shifts[found.shift[winner]]) for number, winner in winners.items()},
        found,
        winners,
    )


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
    mean: Float64  # (diagonals,) mean score less its cost; -inf where there are too few pairs to count
    owner: Int64  # (diagonals,) position of the stem in `numbers`
    shift: Int64  # (diagonals,)
    place: Int64  # (diagonals,) ms

    @classmethod
    def of(
        cls, fold: HermitianFold, queries: QueryWindows, stems: Mapping[int, StemEmbeddings], costs: Float64 | None
    ) -> "_Diagonals | None":
        """None when there is not one pair."""
        lasting = np.array([len(stem.starts_s) > 0 for stem in stems.values()], np.bool_)
        numbers = [number for number, lasts in zip(stems, lasting, strict=True) if lasts]
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
        fewer = np.minimum(mix_windows[at_shift], sizes[owner])
        cost = np.zeros(len(mean)) if costs is None else costs[lasting][owner, at_shift]
        mean -= cost
        counts_at_all = np.isfinite(cost)
        most = counts_at_all & (counts > fewer // 2)
        has_one = np.zeros(len(numbers), np.bool_)
        has_one[owner[most]] = True
        mean[np.where(has_one[owner], ~most, ~counts_at_all | (2 * counts < fewer))] = -np.inf
        diagonal_place = ordered[begin] % width + lowest
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

    def place_of(self, diagonal: int, *, between: bool = False) -> Place:
        """A diagonal with all that a caller wants to know of it."""
        begin, offset_s = self.begin[diagonal], self.queries.offset_s
        members = self.order[begin : begin + self.counts[diagonal]]
        rows, columns = np.divmod(members, len(self.start_s))
        first = self.first[self.owner[diagonal]]
        told = (rows, columns - first, self.scores[rows, columns], offset_s[rows], self.start_s[columns])
        pairs = tuple(Pair(*pair) for pair in zip(*(values.tolist() for values in told), strict=True))
        start_s = int(self.place[diagonal]) / 1000 - (self._peak(rows, columns) if between else 0.0)
        return Place(score=float(np.mean(told[2])), start_s=start_s, pairs=pairs)

    def _peak(self, rows: Int64, columns: Int64) -> float:
        """How much later in the mix than these windows the score peaks, by the parabola through it and its
        neighbours; 0 where a neighbour is missing."""
        before, after = self._around
        offset_s = self.queries.offset_s
        both = (before[rows] >= 0) & (after[rows] >= 0)
        both &= offset_s[after[rows]] - offset_s[before[rows]] <= NEIGHBOURS_WITHIN_S
        rows, columns = rows[both], columns[both]
        if not len(rows):
            return 0.0
        before, after = before[rows], after[rows]
        left_s, right_s = (float((offset_s[beside] - offset_s[rows]).mean()) for beside in (before, after))
        fall, rise = (float((self.scores[at, columns] - self.scores[rows, columns]).mean()) for at in (before, after))
        slope_before, slope_after = fall / left_s, rise / right_s
        bend = (slope_after - slope_before) / (right_s - left_s)
        if bend >= 0:
            return 0.0
        return float(np.clip(-(slope_after - bend * right_s) / (2 * bend), left_s / 2, right_s / 2))

    @cached_property
    def _around(self) -> tuple[Int64, Int64]:
        return _neighbours(self.queries.offset_s)


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
