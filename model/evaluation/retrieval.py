"""The paper's retrieval protocol: an anchor must find its positive among the positives of other tracks.

Beside it, apart, since the protocol cannot tell: does a system hear *time*? The same track's other windows as
negatives, and the true positive delayed by some milliseconds.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.audio import SAMPLE_RATE
from model.checkpoints.heard import piece_of
from model.errors import Told
from model.evaluation.systems import System
from model.training.examples import Example, draw_example, mix_stretches
from model.training.stems import ACTIVITY_HOP, StemBank

Item = TypeVar("Item")

RESAMPLES = 2000
"""Of the bootstrap."""

ANCHORS_PER_BLOCK = 256
"""Rows of the matrix of scores that are computed at once."""

APART_S = 0.5
"""Another window of a track starts at least this far from the true one."""


class TooFewTracks(Told, ValueError):
    says = "{usable} of {given} tracks have a window in which two stems sound; two are needed, of different pieces"
    usable: int
    given: int


@dataclass(frozen=True)
class RetrievalSettings:
    """What is measured; the defaults are the paper's protocol and both measures of time."""

    n_candidates: tuple[int, ...] = (8, 16, 64)  # the positive and its negatives
    seconds: float = 5.0  # of a window
    seed: int = 0  # of the pairs and of the bootstrap
    pairs_per_track: int = 4
    most_pairs: int | None = None  # in all; for systems whose scores are dear
    other_windows: int = 7  # of the same track, as negatives; 0: not measured
    delays_ms: tuple[int, ...] = (10, 20, 40, 80, 125, 250, 500)  # of the positive; none: not measured
    batch: int = 32  # windows embedded at once

    def __post_init__(self) -> None:
        if not self.n_candidates or min(self.n_candidates) < 2:
            raise ValueError(f"n_candidates must be 2 or more each, not {self.n_candidates}")

    @property
    def samples(self) -> int:
        """Length of a window."""
        return round(self.seconds * SAMPLE_RATE)


@dataclass(frozen=True)
class Share:
    """The share of `pairs` for which something holds, its 95 % interval, and what blind guessing gives."""

    value: float
    low: float
    high: float
    chance: float
    pairs: int

    def as_dict(self, name: str) -> dict[str, Any]:
        """For JSON, with the share under `name`."""
        return {name: self.value, "low": self.low, "high": self.high, "chance": self.chance, "pairs": self.pairs}


@dataclass(frozen=True)
class Delay:
    """The positive delayed: its mean score, and for how many pairs that is lower than in place (None at 0 ms)."""

    delay_ms: int
    score: float
    lower: Share | None


@dataclass(frozen=True)
class RetrievalResult:
    """What one system reached on one set of tracks."""

    settings: RetrievalSettings
    tracks: int
    pairs: int
    candidates: dict[int, Share]  # by n_candidates
    time: Share | None  # the true window before other windows of its track
    delays: tuple[Delay, ...]
    notes: tuple[str, ...]  # what could not be measured as asked, and why

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        time = None
        if self.time is not None:
            time = {"candidates": self.settings.other_windows + 1, **self.time.as_dict("accuracy")}
        return {
            "candidates": {str(count): share.as_dict("accuracy") for count, share in self.candidates.items()},
            "time": time,
            "delays": {
                str(delay.delay_ms): {"score": delay.score}
                | (delay.lower.as_dict("share_lower") if delay.lower is not None else {})
                for delay in self.delays
            },
            "tracks": self.tracks,
            "pairs": self.pairs,
            "seconds": self.settings.seconds,
            "seed": self.settings.seed,
            "notes": list(self.notes),
        }


Cut = tuple[int, int, tuple[int, ...]]
"""A submix: a track, its first sample, and which of its stems."""


def embedder(
    embed: Callable[[Sequence[Item]], Tensor], batch: int, most: int, progress: Callable[[int, int], None] | None
) -> Callable[[Sequence[Item]], Tensor]:
    """A function that embeds items, so many at once, and counts them, `most` in all."""
    done = 0

    def embed_all(items: Sequence[Item]) -> Tensor:
        nonlocal done
        parts = []
        for some in _batches(items, batch):
            parts.append(embed(some))
            done += len(some)
            if progress is not None:
                progress(done, most)
        return torch.cat(parts)

    return embed_all


@torch.no_grad()
def evaluate_retrieval(
    system: System,
    bank: StemBank,
    tracks: Sequence[int],
    settings: RetrievalSettings,
    progress: Callable[[int, int], None] | None = None,
) -> RetrievalResult:
    """Measure how often an anchor's best candidate is its own positive.

    arXiv:2605.03929v4, the retrieval evaluation: K candidates, of which K - 1 are positives of other tracks. Each
    pair's accuracy is its exact mean over every choice of K - 1 other tracks and of one window of each
    (`odds_all_beaten`), so no luck in choosing negatives is left in it. A tie is a miss, and so is a score that is no
    number. Renderings of one piece ("name@1", "name@2") are never each other's negatives. Where there are fewer than K
    tracks, as many candidates as there are take its place, and `notes` says so.

    Args:
        system: what is measured.
        bank: of the stems.
        tracks: to measure on, by their place in the bank.
        settings: of the protocol.
        progress: called with windows embedded and, at most, in all.

    Returns:
        Shares with 95 % intervals: percentiles of a bootstrap over pieces, the choice of candidates' tracks held
        fixed. Where every pair is right, or every one wrong, such an interval has no width.

    Raises:
        TooFewTracks: fewer than two pieces have a pair.
    """
    pairs, notes = draw_pairs(bank, tracks, settings)
    pieces = pieces_of(bank, [pair.track for pair in pairs])
    used = len({pair.track for pair in pairs})
    if len(set(pieces)) < 2:
        raise TooFewTracks(used, len(tracks))
    others, late = _other_windows(bank, pairs, settings), _delayed(pairs, settings)
    most = 2 * len(pairs) + sum(map(len, (*others.values(), *late.values())))

    def embed_some(cuts: Sequence[Cut]) -> Tensor:
        return system.embed(mix_stretches(bank, cuts, settings.samples))

    embed = embedder(embed_some, settings.batch, most, progress)
    anchors = embed([(pair.track, pair.start, pair.anchor) for pair in pairs])
    positives = embed([(pair.track, pair.start, pair.positive) for pair in pairs])

    def scores_beside(variants: dict[int, list[Cut]]) -> NDArray[np.float32]:
        """Each anchor's score of its positive in place, then of the variants: (pairs with variants, 1 + variants)."""
        rows = []
        each = len(next(iter(variants.values())))
        for some in _batches(list(variants), max(1, settings.batch // each)):
            embeddings = embed([cut for pair in some for cut in variants[pair]])
            for pair, others in zip(some, torch.split(embeddings, each), strict=True):
                # In place once more, in the same product: what sounds the same scores the same, to the bit.
                columns = torch.cat([positives[pair : pair + 1], others])
                rows.append(all_scores(system, anchors[pair : pair + 1], columns))
        return np.concatenate(rows)

    def share(holds: NDArray[np.floating[Any]], of: Sequence[int], chance: float) -> Share:
        return Share(*mean_with_interval(holds, pieces[list(of)], settings.seed), chance, len(holds))

    scores = all_scores(system, anchors, positives)
    candidates, few = candidate_shares(scores, np.array([pair.track for pair in pairs]), pieces, settings)
    notes += few
    time = None
    if others:
        variants = scores_beside(others)
        best: NDArray[np.bool_] = np.all(variants[:, :1] > variants[:, 1:], axis=1)
        time = share(best.astype(np.float64), list(others), 1 / variants.shape[1])
    if settings.other_windows and len(others) < len(pairs):
        lacking = f"{settings.other_windows} other windows in which all stems of the positive sound"
        notes.append(f"{len(pairs) - len(others)} of {len(pairs)} pairs lack {lacking}: not in `time`")
    delays: list[Delay] = []
    if late:
        variants = scores_beside(late)
        delays.append(Delay(0, float(variants[:, 0].mean()), None))
        for delay_ms, delayed in zip(settings.delays_ms, variants[:, 1:].T, strict=True):
            lower = share((delayed < variants[:, 0]).astype(np.float64), list(late), 0.5)
            delays.append(Delay(delay_ms, float(delayed.mean()), lower))
    if settings.delays_ms and len(late) < len(pairs):
        soon = f"start less than {max(settings.delays_ms)} ms into their track"
        notes.append(f"{len(pairs) - len(late)} of {len(pairs)} pairs {soon}: not in `delays`")
    return RetrievalResult(settings, used, len(pairs), candidates, time, tuple(delays), tuple(notes))


def draw_pairs(bank: StemBank, tracks: Sequence[int], settings: RetrievalSettings) -> tuple[list[Example], list[str]]:
    """The anchors and positives of `draw_in_turns`, and what there was too little of."""
    lacking = f"no window of {settings.seconds:g} s in which two stems sound"
    return draw_in_turns(bank, tracks, settings, partial(draw_example, bank, samples=settings.samples), lacking)


def draw_in_turns(
    bank: StemBank, tracks: Sequence[int], settings: RetrievalSettings, draw: Callable[..., Item | None], lacking: str
) -> tuple[list[Item], list[str]]:
    """Pairs of tracks, each by `draw(track, rng=...)`: a track's depend on its name and the seed alone.

    Returns:
        One pair of every track, then a second of every track, and so on, up to `most_pairs`; and the tracks that have
        none, each named as `lacking` it.
    """
    of_track: list[list[Item]] = []
    notes: list[str] = []
    for track in tracks:
        name = bank.tracks[track].name
        rng = draw_rng(settings.seed, name)
        drawn = [draw(track, rng=rng) for _ in range(settings.pairs_per_track)]
        of_track.append([pair for pair in drawn if pair is not None])
        if not of_track[-1]:
            notes.append(f"{name}: {lacking}")
    if settings.most_pairs is not None:  # then not every track may have its turn: which ones, the seed says
        order = np.random.default_rng(settings.seed).permutation(len(of_track))
        of_track = [of_track[place] for place in order]
    pairs = [pairs[turn] for turn in range(settings.pairs_per_track) for pairs in of_track if turn < len(pairs)]
    return pairs[: settings.most_pairs], notes


def pieces_of(bank: StemBank, tracks: Sequence[int]) -> NDArray[np.str_]:
    """Which piece each of some tracks is a rendering of."""
    return np.array([piece_of(bank.tracks[track].name) for track in tracks], dtype=np.str_)


def candidate_shares(
    scores: NDArray[np.floating[Any]], tracks: NDArray[np.int64], pieces: NDArray[np.str_], settings: RetrievalSettings
) -> tuple[dict[int, Share], list[str]]:
    """The accuracy by number of candidates, and which numbers there were too few tracks for; as `shares_beaten`."""
    beaten, allowed = shares_beaten(scores, tracks, pieces)
    largest = int(allowed.sum(axis=1).min()) + 1
    candidates, notes = {}, []
    for wanted in settings.n_candidates:
        count = min(wanted, largest)
        if count < wanted:
            notes.append(
                f"{wanted} candidates need {wanted - 1} other tracks; there are {largest - 1}: {count} instead"
            )
        odds = odds_all_beaten(beaten, allowed, count - 1)
        candidates[count] = Share(*mean_with_interval(odds, pieces, settings.seed), 1 / count, len(odds))
    return candidates, notes


def shares_beaten(
    scores: NDArray[np.floating[Any]], tracks: NDArray[np.int64], pieces: NDArray[np.str_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """How much of each track an anchor's own positive beats.

    Args:
        scores: (pairs, pairs), anchor by positive.
        tracks: (pairs,), of each pair.
        pieces: (pairs,), of each pair; tracks of one piece are no negatives of each other.

    Returns:
        float64 (pairs, tracks), the share of a track's positives that score lower than the anchor's own; and bool,
        of the same shape, whether the track may be a negative.
    """
    lower = scores < np.diag(scores)[:, None]
    _, first, column = np.unique(tracks, return_index=True, return_inverse=True)
    member = np.eye(len(first))[column]  # (pairs, tracks)
    allowed: NDArray[np.bool_] = pieces[:, None] != pieces[first]
    return lower @ member / member.sum(axis=0), allowed


def odds_all_beaten(beaten: NDArray[np.float64], allowed: NDArray[np.bool_], negatives: int) -> NDArray[np.float64]:
    """The probability that all of some tracks, drawn at random, are beaten, with one window drawn of each.

    The mean, over every choice of that many of the allowed tracks, of the product of their shares: an elementary
    symmetric polynomial divided by the number of choices, built up track by track.

    Args:
        beaten: float64, (pairs, tracks), each from 0 to 1.
        allowed: bool, (pairs, tracks); at least `negatives` in each row.
        negatives: how many different tracks are drawn.

    Returns:
        float64, (pairs,).
    """
    sizes = np.arange(1, negatives + 1)
    odds = np.zeros((len(beaten), negatives + 1))  # column m: over every choice of m of the tracks seen so far
    odds[:, 0] = 1.0
    seen = np.zeros((len(beaten), 1))
    for share, may in zip(beaten.T[:, :, None], allowed.T[:, :, None], strict=True):
        seen += may
        among = sizes / np.maximum(seen, 1)  # the probability that this track is among the m
        with_it = np.where(among <= 1, (1 - among) * odds[:, 1:] + among * share * odds[:, :-1], 0.0)
        odds[:, 1:] = np.where(may, with_it, odds[:, 1:])
    return odds[:, negatives]


def mean_with_interval(
    values: NDArray[np.floating[Any]], groups: NDArray[np.str_], seed: int = 0
) -> tuple[float, float, float]:
    """The mean, and its 95 % interval by a bootstrap over groups: whole groups are drawn, with replacement.

    Args:
        values: (n,).
        groups: (n,), what each value belongs to; values of one group are not independent.
        seed: of the resamples.

    Returns:
        Mean, lower and upper end.
    """
    names, group = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(group, weights=values), np.bincount(group)
    often = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    means = (often @ sums) / (often @ counts)
    mean = float(np.mean(values))
    low, high = np.percentile(means, (2.5, 97.5))
    return mean, min(float(low), mean), max(float(high), mean)


def _other_windows(bank: StemBank, pairs: Sequence[Example], settings: RetrievalSettings) -> dict[int, list[Cut]]:
    """For each pair, by its place: its positive at other starts, where every stem of it sounds."""
    if not settings.other_windows:
        return {}
    variants = {}
    for place, pair in enumerate(pairs):
        banked = bank.tracks[pair.track]
        # The same tenths of a second as the table of what sounds when, counted from the true start.
        starts = np.arange(pair.start % ACTIVITY_HOP, banked.samples - settings.samples + 1, ACTIVITY_HOP)
        starts = starts[np.abs(starts - pair.start) >= APART_S * SAMPLE_RATE]
        cuts: list[Cut] = []
        for start in draw_rng(settings.seed, f"{banked.name} {pair.start}").permutation(starts):
            if bank.audible(pair.track, int(start), settings.samples)[list(pair.positive)].all():
                cuts.append((pair.track, int(start), pair.positive))
                if len(cuts) == settings.other_windows:
                    variants[place] = cuts
                    break
    return variants


def _delayed(pairs: Sequence[Example], settings: RetrievalSettings) -> dict[int, list[Cut]]:
    """For each pair, by its place: its positive, delayed. Cut that much earlier, so that no silence tells it."""
    if not settings.delays_ms:
        return {}
    delays = [round(delay_ms * SAMPLE_RATE / 1000) for delay_ms in settings.delays_ms]
    return {
        place: [(pair.track, pair.start - delay, pair.positive) for delay in delays]
        for place, pair in enumerate(pairs)
        if pair.start >= max(delays)
    }


def all_scores(system: System, anchors: Tensor, positives: Tensor) -> NDArray[np.float32]:
    blocks = [system.score(some, positives).float().cpu().numpy() for some in torch.split(anchors, ANCHORS_PER_BLOCK)]
    return np.concatenate(blocks)


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def draw_rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
