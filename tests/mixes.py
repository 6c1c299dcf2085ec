"""Mixes and stems made of embeddings drawn at random, and their places by plain loops."""

import math
from collections import defaultdict
from functools import partial

import numpy as np
import numpy.typing as npt

from indexer.catalog.records import StemEmbeddings
from indexer.diagonals import Place, QueryWindows, best_places
from indexer.index.fold import HermitianFold
from tests.embeddings import random_fold, random_rows

DIMENSION = 16
WINDOW_S, STRIDE_S, SHIFT_S = 5.0, 2.5, 0.04
# Means over float64 products, summed in another order.
SCORE_TOLERANCE = 1e-9

make_fold = partial(random_fold, DIMENSION)
unit_rows = partial(random_rows, dimension=DIMENSION)


def stem_starts(seconds: float) -> npt.NDArray[np.float64]:
    """As in the catalog: one stride apart, the last window ends with the clip."""
    if seconds <= WINDOW_S:
        return np.zeros(1)
    starts = np.arange(0, seconds - WINDOW_S + 1e-9, STRIDE_S)
    last = round(seconds - WINDOW_S, 4)
    return starts if last - starts[-1] < 1e-6 else np.append(starts, last)


def align_all(fold: HermitianFold, queries: QueryWindows, stems: dict[int, StemEmbeddings]) -> dict[int, Place]:
    """The best place of each stem."""
    found = best_places(fold, queries, stems)
    return {number: found.place(number) for number in found.scores}


def align(
    fold: HermitianFold, queries: QueryWindows, embedding: npt.NDArray[np.complex64], start_s: npt.NDArray[np.float64]
) -> Place | None:
    """The best place of one stem."""
    return align_all(fold, queries, {0: StemEmbeddings.in_clock_time(np.arange(len(start_s)), start_s, embedding)}).get(
        0
    )


def make_stem(rng: np.random.Generator, seconds: float) -> StemEmbeddings:
    starts = stem_starts(seconds)
    return StemEmbeddings.in_clock_time(np.arange(len(starts)), starts, unit_rows(rng, len(starts)))


def make_queries(
    rng: np.random.Generator, seconds: float, *, begin_s: float = 0.0, shift_s: float = SHIFT_S
) -> QueryWindows:
    """Every window of the mix at every shift of one stride, as far as the mix goes."""
    rows = []
    for shift in range(math.ceil(STRIDE_S / shift_s - 1e-9)):
        window = 0
        while shift * shift_s + window * STRIDE_S + WINDOW_S <= seconds + 1e-9:
            rows.append((begin_s + shift * shift_s + window * STRIDE_S, shift))
            window += 1
    offset_s, shift_of = (np.array(column) for column in zip(*rows, strict=True))
    return QueryWindows(unit_rows(rng, len(rows)), offset_s, shift_of)


def plant(queries: QueryWindows, stem: StemEmbeddings, start_s: float, fold: HermitianFold, shift: int) -> int:
    """Make the stem's windows score highest against the windows of one shift, at one place; how many pairs that is."""
    best = np.linalg.eigh(fold.hermitian)[1][:, -1].astype(np.complex64)
    pairs = 0
    for row in np.flatnonzero(queries.shift == shift):
        for window in np.flatnonzero(np.abs(stem.starts_s - queries.offset_s[row] - start_s) < 1e-6):
            queries.embedding[row] = stem.embedding[window] = best
            pairs += 1
    return pairs


def exhaustive(fold: HermitianFold, queries: QueryWindows, stem: StemEmbeddings) -> tuple[float, float, int] | None:
    """Every diagonal by plain loops: the best one's score, place and number of pairs."""
    form = fold.hermitian
    diagonals: dict[tuple[int, int], list[float]] = defaultdict(list)
    for q in range(len(queries.offset_s)):
        x = queries.embedding[q].astype(np.complex128)
        for j in range(len(stem.starts_s)):
            place = round((float(stem.starts_s[j]) - float(queries.offset_s[q])) * 1000)
            score = (x.conj() @ form @ stem.embedding[j].astype(np.complex128)).real
            diagonals[int(queries.shift[q]), place].append(float(score))
    best: tuple[float, float, int] | None = None
    for share in (0.501, 0.5):  # more than half, or, where there is no such diagonal, half
        for (shift, place), scores in diagonals.items():
            mix_windows = int((queries.shift == shift).sum())
            if len(scores) < share * min(mix_windows, len(stem.starts_s)):
                continue
            found = (sum(scores) / len(scores), place / 1000, len(scores))
            if best is None or found[0] > best[0]:
                best = found
        if best is not None:
            break
    return best


class SmoothMusic:
    """A made-up mix and stem: the embedding turns with time, so that the score falls smoothly with the delay."""

    def __init__(self, seed: int, lean: float = 0.0, speed: float = 22.0) -> None:
        rng = np.random.default_rng(seed)
        # Half of the score is gone at a delay of 40 ms, like the short-trained model's.
        self.speed = rng.normal(lean, speed, DIMENSION)
        self.fold = HermitianFold(np.eye(DIMENSION, dtype=complex))
        self.scenes = unit_rows(rng, 400)

    def embed(self, times: npt.NDArray[np.float64]) -> npt.NDArray[np.complex64]:
        # A scene every 1.25 s, fading into the next: windows far apart have nothing to do with each other.
        at = np.maximum(times / 1.25 + 100, 0)
        scene = at.astype(int)
        part = (at - scene)[:, None]
        mixed = self.scenes[scene] * np.cos(np.pi / 2 * part) + self.scenes[scene + 1] * np.sin(np.pi / 2 * part)
        rows = mixed * np.exp(1j * times[:, None] * self.speed)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.complex64)

    def search(self, true_start_s: float, mix_s: float) -> tuple[Place, Place]:
        """The mix is the stem from `true_start_s` on; the place on the grid of shifts, and the one between them."""
        stem_start_s = stem_starts(30.0)
        stem = StemEmbeddings.in_clock_time(np.arange(len(stem_start_s)), stem_start_s, self.embed(stem_start_s))
        found = best_places(self.fold, self.queries(true_start_s, mix_s, SHIFT_S), {5: stem})
        return found.place(5), found.place(5, between=True)

    def queries(self, true_start_s: float, mix_s: float, shift_s: float) -> QueryWindows:
        queries = make_queries(np.random.default_rng(0), mix_s, shift_s=shift_s)
        queries.embedding[:] = self.embed(queries.offset_s + true_start_s)
        return queries
