"""How right tempo, beats and key are that are heard, against what is known of a track or between its own halves.

Of a rendered track its track.json knows the truth. Of any other, two disjoint submixes must agree: neither knows what
the other says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.audio import SAMPLE_RATE, Waveform
from model.audio.analysis import is_sure
from model.audio.grid import Grid, same_tempo
from model.audio.harmony import is_relative
from model.audio.hearing import LEAST_BEATS, Hearing
from model.evaluation.retrieval import draw_rng
from model.training.stems import StemBank

RIGHT_TEMPO = 0.005
"""Of a tempo, octaves folded, that counts as right."""

ON_THE_GRID_S = 0.02
"""From a half beat of the true grid, for half of the heard ones."""

FEWEST_ONSETS = 8
"""Of a single stem that may be expected to tell a tempo."""

PIECE_S = 8.0
"""Length of a mix's piece, drawn at random, that is heard alone."""

_MEASURES = ("tempo", "grid", "key", "stem_tempo", "submixes_tempo", "submixes_grid", "mix_8s_tempo", "mix_8s_either")
_CALLED_SURE = ("tempo_called_sure", "stem_called_sure", "mix_8s_called_sure")


def evaluate_analysis(
    bank: StemBank, tracks: Sequence[int], seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Shares that are right, for JSON: each {"share", "of"}.

    Where no truth is known, two submixes must agree, a single stem with all others of its track, and PIECE_S of the
    mix with the whole of it. Of what is called sure, "of" is how often that happens.

    Args:
        bank: of the stems.
        tracks: to measure on, by their place in the bank.
        seed: of the submixes, and of the stem and the piece that are heard alone.
        progress: called with tracks done and in all.
    """
    right: dict[str, list[bool]] = {name: [] for name in _MEASURES + _CALLED_SURE}
    for done, track in enumerate(tracks, start=1):
        _measure(bank, track, draw_rng(seed, bank.tracks[track].name), right)
        if progress is not None:
            progress(done, len(tracks))
    shares = {name: {"share": float(np.mean(told)), "of": len(told)} for name, told in right.items() if told}
    return {"tracks": len(tracks)} | shares


def _measure(bank: StemBank, track: int, rng: np.random.Generator, right: dict[str, list[bool]]) -> None:
    banked, stems = bank.tracks[track], bank.waveforms(track)
    mix = stems.sum(axis=0)
    seconds = len(mix) / SAMPLE_RATE
    known = banked.grid if banked.grid is not None and banked.grid.source == "said" else None
    heard = Hearing(mix).grid()
    if known is not None:
        right["tempo"].append(_agree(heard, known))
        right["grid"].append(heard is not None and same_grid(heard, known, seconds))
        if is_sure(heard):
            right["tempo_called_sure"].append(_agree(heard, known))
    else:
        halves = np.array_split(rng.permutation(len(stems)), 2)
        one, other = (Hearing(stems[half].sum(axis=0)).grid() for half in halves)
        right["submixes_tempo"].append(_agree(one, other))
        right["submixes_grid"].append(one is not None and other is not None and same_grid(one, other, seconds))
        if is_sure(one) and is_sure(other):
            right["tempo_called_sure"].append(_agree(one, other))
    alone = int(rng.integers(len(stems)))
    if _onsets(stems[alone]) >= FEWEST_ONSETS:
        stem = Hearing(stems[alone]).grid()
        against = known or Hearing(np.delete(stems, alone, axis=0).sum(axis=0)).grid()
        right["stem_tempo"].append(_agree(stem, against))
        if is_sure(stem):
            right["stem_called_sure"].append(_agree(stem, against))
    if len(mix) >= PIECE_S * SAMPLE_RATE:
        start = int(rng.integers(len(mix) - round(PIECE_S * SAMPLE_RATE) + 1))
        piece = Hearing(mix[start : start + round(PIECE_S * SAMPLE_RATE)])
        pieces: list[Grid | None] = [*piece.grids(most=2), None]
        told = [_agree(grid, known or heard) for grid in pieces]
        right["mix_8s_tempo"].append(told[0])
        right["mix_8s_either"].append(any(told))
        if is_sure(pieces[0]):
            right["mix_8s_called_sure"].append(told[0])
    if banked.key is not None and any(banked.pitched):
        key = Hearing(stems[np.array(banked.pitched)].sum(axis=0)).key()
        right["key"].append(key is not None and (key[0] == banked.key or is_relative(key[0], banked.key)))


def _agree(one: Grid | None, other: Grid | None) -> bool:
    return one is not None and other is not None and bool(same_tempo(one.tempo_bpm, other.tempo_bpm, RIGHT_TEMPO))


def same_grid(heard: Grid, known: Grid, seconds: float) -> bool:
    """Whether half of the heard beats of a clip lie within ON_THE_GRID_S of a half beat of the known grid."""
    halves: NDArray[np.float64] = known.seconds_at(np.arange(-2, 2 * len(known.beats_s) + 2) / 2)
    inside = heard.beats_s[(heard.beats_s >= halves[0]) & (heard.beats_s <= min(seconds, halves[-1]))]
    if not len(inside):
        return False
    nearest = np.abs(inside[:, None] - halves[None, :]).min(axis=1)
    return bool(np.median(nearest) <= ON_THE_GRID_S)


def _onsets(stem: Waveform) -> int:
    """Frames in which the sound rises more than before and after, and by a fifth of the most."""
    if len(stem) < LEAST_BEATS * SAMPLE_RATE // 4:
        return 0
    rise = Hearing(stem).onset_strength()
    peaks = (rise[1:-1] > rise[:-2]) & (rise[1:-1] >= rise[2:]) & (rise[1:-1] > 0.2 * rise.max())
    return int(np.count_nonzero(peaks))
