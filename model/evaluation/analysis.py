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
from model.audio.analysis import SURE_STEADINESS
from model.audio.grid import Grid
from model.audio.harmony import is_relative
from model.audio.hearing import LEAST_BEATS, hear_grid, hear_key, onset_strength
from model.evaluation.retrieval import draw_rng
from model.training.stems import StemBank

SAME_TEMPO = 0.005
"""Of a tempo, octaves folded, that counts as right."""

ON_THE_GRID_S = 0.02
"""From a half beat of the true grid, for half of the heard ones."""

FEWEST_ONSETS = 8
"""Of a single stem that may be expected to tell a tempo."""


def evaluate_analysis(
    bank: StemBank,
    tracks: Sequence[int],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Shares that are right, for JSON: each {"share", "of"}.

    Args:
        bank: of the stems.
        tracks: to measure on, by their place in the bank.
        seed: of the two submixes, and of the stem that is heard alone.
        progress: called with tracks done and in all.
    """
    right: dict[str, list[bool]] = {
        name: []
        for name in ("tempo", "grid", "tempo_called_sure", "key", "stem_tempo", "submixes_tempo", "submixes_grid")
    }
    for done, track in enumerate(tracks, start=1):
        _measure(bank, track, draw_rng(seed, bank.tracks[track].name), right)
        if progress is not None:
            progress(done, len(tracks))
    shares = {name: {"share": float(np.mean(told)), "of": len(told)} for name, told in right.items() if told}
    return {"tracks": len(tracks)} | shares


def _measure(bank: StemBank, track: int, rng: np.random.Generator, right: dict[str, list[bool]]) -> None:
    banked, stems = bank.tracks[track], bank.waveforms(track)
    mix = stems.sum(axis=0)
    known = banked.grid if banked.grid is not None and banked.grid.source == "said" else None
    heard = hear_grid(mix)
    if known is not None:
        right["tempo"].append(heard is not None and same_tempo(heard, known))
        right["grid"].append(heard is not None and same_grid(heard, known, len(mix) / SAMPLE_RATE))
        if heard is not None and heard.steadiness >= SURE_STEADINESS:
            right["tempo_called_sure"].append(same_tempo(heard, known))
        stem = stems[int(rng.integers(len(stems)))]
        if _onsets(stem) >= FEWEST_ONSETS:
            alone = hear_grid(stem)
            right["stem_tempo"].append(alone is not None and same_tempo(alone, known))
    if banked.key is not None and any(banked.pitched):
        told = hear_key(stems[np.array(banked.pitched)].sum(axis=0))
        right["key"].append(told is not None and (told[0] == banked.key or is_relative(told[0], banked.key)))
    if known is not None:
        return
    one, other = (hear_grid(stems[some].sum(axis=0)) for some in np.array_split(rng.permutation(len(stems)), 2))
    if one is None or other is None:
        right["submixes_tempo"].append(False)
        right["submixes_grid"].append(False)
        return
    right["submixes_tempo"].append(same_tempo(one, other))
    right["submixes_grid"].append(same_grid(one, other, len(mix) / SAMPLE_RATE))
    if min(one.steadiness, other.steadiness) >= SURE_STEADINESS:
        right["tempo_called_sure"].append(same_tempo(one, other))


def same_tempo(heard: Grid, known: Grid) -> bool:
    """Whether two tempi, octaves folded, are within SAME_TEMPO of each other."""
    octaves = np.log2(heard.tempo_bpm / known.tempo_bpm)
    return bool(abs(octaves - round(octaves)) <= np.log2(1 + SAME_TEMPO))


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
    rise = onset_strength(stem)
    peaks = (rise[1:-1] > rise[:-2]) & (rise[1:-1] >= rise[2:]) & (rise[1:-1] > 0.2 * rise.max())
    return int(np.count_nonzero(peaks))
