"""The retrieval protocol without tempo: every clip at 120 BPM, each window on a beat of its own song.

The paper's protocol lets a detector of tempo do well, for its negatives come from songs at other tempi. Here an anchor
must find its positive among clips of one tempo; what is left is harmony and groove, and what a recording's own tempo
leaves in its sound: attacks, echoes and the CQT's kernels last as long at any tempo. So candidates are also drawn among
songs of like tempo alone, as a search does. Beside it: does the same pair score lower in another key, or a part of a
beat late?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.audio.grid import BEAT_TIME_BPM
from model.evaluation.retrieval import (
    RetrievalSettings,
    Share,
    TooFewTracks,
    all_scores,
    candidate_shares,
    draw_in_turns,
    embedder,
    mean_with_interval,
    odds_all_beaten,
    pieces_of,
    shares_beaten,
)
from model.evaluation.systems import System, embed_in_beat_time
from model.training.batches import BeatWindow, beat_clips, draw_beat_pair
from model.training.stems import StemBank

KEYS = (1, -1, 2, -2, 3, 5, 6)
"""Semitones that the positive is moved by: up, or down where negative."""

LIKE_TEMPO = 1.12
"""Tempi that differ by no more than this factor, octaves folded, are alike: a search stretches no further by itself."""

LATE = {"sixteenth": 0.25, "eighth": 0.5, "beat": 1.0}
"""Beats that the positive is late by."""


class NoBeats(TooFewTracks):
    """Fewer than two pieces have a steady tempo and a pair on their beats."""

    says = (
        "{usable} of {given} tracks have a steady tempo and a window on their beats in which two stems sound; two are "
        "needed, of different pieces"
    )


@dataclass(frozen=True)
class Changed:
    """The positive changed: its mean score, and for how many pairs that is lower than unchanged."""

    score: float
    lower: Share

    def as_dict(self) -> dict[str, Any]:
        """For JSON; blind guessing would be lower for half of the pairs."""
        shares = self.lower.as_dict("share_lower").items()
        return {"score": self.score} | {name: value for name, value in shares if name != "chance"}


@dataclass(frozen=True)
class MatchedResult:
    """What one system reached on one set of tracks, tempo apart."""

    beats: int
    tracks: int
    pairs: int
    candidates: dict[int, Share]  # by n_candidates
    of_like_tempo: dict[int, Share]  # the same, all candidates of LIKE_TEMPO; over pairs that have as many
    keys: dict[int, Changed]  # by semitones; over pairs whose positive is pitched
    keys_of_pitched_pairs: dict[int, Changed]  # the same, over pairs whose anchor is pitched too: drums know no key
    late: dict[str, Changed]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, beside `RetrievalResult.as_dict`."""
        return {
            "matched": {str(count): share.as_dict("accuracy") for count, share in self.candidates.items()},
            "of_like_tempo": {str(count): share.as_dict("accuracy") for count, share in self.of_like_tempo.items()},
            "keys": {str(semitones): changed.as_dict() for semitones, changed in self.keys.items()},
            "keys_of_pitched_pairs": {
                str(semitones): changed.as_dict() for semitones, changed in self.keys_of_pitched_pairs.items()
            },
            "late": {name: changed.as_dict() for name, changed in self.late.items()},
            "matched_tracks": self.tracks,
            "matched_notes": list(self.notes),
        }


@torch.no_grad()
def evaluate_matched(
    system: System,
    bank: StemBank,
    tracks: Sequence[int],
    settings: RetrievalSettings,
    progress: Callable[[int, int], None] | None = None,
) -> MatchedResult:
    """Measure how often an anchor's best candidate is its own positive, all of them at one tempo and on their beats.

    As `evaluate_retrieval`, of windows that last `settings.seconds` in beat time. Tempi are folded into one octave. A
    track whose grid is neither said nor heard is left out, and named.

    Args:
        system: what is measured.
        bank: of the stems.
        tracks: to measure on, by their place in the bank.
        settings: of the protocol; without `delays_ms` nothing is changed, only candidates are counted.
        progress: called with windows embedded and, in all, to be embedded.

    Raises:
        NoBeats: fewer than two pieces have a pair.
    """
    beats = round(settings.seconds * BEAT_TIME_BPM / 60)
    steady = [track for track in tracks if bank.tracks[track].grid is not None]
    notes = [f"{bank.tracks[track].name}: no steady tempo" for track in tracks if bank.tracks[track].grid is None]
    lacking = f"no window of {beats} beats in which two stems sound"
    pairs, without = draw_in_turns(bank, steady, settings, partial(draw_beat_pair, bank, beats=beats), lacking)
    notes += without
    pieces = pieces_of(bank, [anchor.track for anchor, _ in pairs])
    if len(set(pieces)) < 2:
        raise NoBeats(len({anchor.track for anchor, _ in pairs}), len(tracks))
    pitched = [place for place, (_, positive) in enumerate(pairs) if _is_pitched(bank, positive)]
    changed: dict[int | str, tuple[list[int], list[BeatWindow]]] = {}
    if settings.delays_ms:
        for semitones in KEYS:
            changed[semitones] = pitched, [replace(pairs[place][1], transpose=semitones) for place in pitched]
        for name, later in LATE.items():
            # Cut that much earlier, so that no silence tells it.
            moved = [replace(positive, first=positive.first - later) for _, positive in pairs]
            inside = [place for place, window in enumerate(moved) if _begins_inside(bank, window)]
            changed[name] = inside, [moved[place] for place in inside]
    most = 2 * len(pairs) + sum(len(windows) for _, windows in changed.values())

    def embed_some(windows: Sequence[BeatWindow]) -> Tensor:
        return embed_in_beat_time(system, beat_clips(bank, windows))

    embed = embedder(embed_some, settings.batch, most, progress)
    anchors, positives = (embed(side) for side in zip(*pairs, strict=True))
    scores = all_scores(system, anchors, positives)
    on_tracks = np.array([anchor.track for anchor, _ in pairs])
    candidates, few = candidate_shares(scores, on_tracks, pieces, settings)
    of_like_tempo = _of_like_tempo(bank, scores, on_tracks, pieces, settings)
    in_place = np.diag(scores)

    def compared(places: NDArray[np.intp], scores: NDArray[np.float32]) -> Changed:
        lower = (scores < in_place[places]).astype(np.float64)
        share = Share(*mean_with_interval(lower, pieces[places], settings.seed), 0.5, len(places))
        return Changed(float(scores.mean()), share)

    both = np.array([_is_pitched(bank, anchor) and _is_pitched(bank, positive) for anchor, positive in pairs])
    keys: dict[int, Changed] = {}
    keys_of_both: dict[int, Changed] = {}
    late: dict[str, Changed] = {}
    for change, (places, windows) in changed.items():
        if not places:
            continue
        at, others = np.array(places), torch.split(embed(windows), 1)
        rows = [all_scores(system, anchors[[place]], other) for place, other in zip(places, others, strict=True)]
        lowered = np.concatenate(rows).reshape(-1)
        if isinstance(change, str):
            late[change] = compared(at, lowered)
            continue
        keys[change] = compared(at, lowered)
        if both[at].any():
            keys_of_both[change] = compared(at[both[at]], lowered[both[at]])
    used = len({anchor.track for anchor, _ in pairs})
    return MatchedResult(beats, used, len(pairs), candidates, of_like_tempo, keys, keys_of_both, late, (*notes, *few))


def _of_like_tempo(
    bank: StemBank,
    scores: NDArray[np.floating[Any]],
    on_tracks: NDArray[np.int64],
    pieces: NDArray[np.str_],
    settings: RetrievalSettings,
) -> dict[int, Share]:
    beaten, allowed = shares_beaten(scores, on_tracks, pieces)
    grids = {track: bank.tracks[track].grid for track in on_tracks.tolist()}
    octaves = {track: np.log2(grid.tempo_bpm) for track, grid in grids.items() if grid is not None}
    own = np.array([octaves[track] for track in on_tracks.tolist()])
    apart = np.abs(own[:, None] - np.array([octaves[track] for track in np.unique(on_tracks).tolist()])) % 1
    allowed &= np.minimum(apart, 1 - apart) <= np.log2(LIKE_TEMPO)
    found = {}
    for count in settings.n_candidates:
        enough = allowed.sum(axis=1) >= count - 1
        if len(set(pieces[enough])) > 1:
            odds = odds_all_beaten(beaten[enough], allowed[enough], count - 1)
            found[count] = Share(*mean_with_interval(odds, pieces[enough], settings.seed), 1 / count, len(odds))
    return found


def _is_pitched(bank: StemBank, window: BeatWindow) -> bool:
    return any(bank.tracks[window.track].pitched[stem] for stem in window.stems)


def _begins_inside(bank: StemBank, window: BeatWindow) -> bool:
    grid = bank.tracks[window.track].grid
    return grid is not None and float(grid.seconds_at(np.array(window.first))) >= 0
