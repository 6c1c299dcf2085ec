"""Stems of which tempi a mix can have, and how much faster each is played for it."""

import numpy as np

from indexer import StemMusic
from model.audio.grid import LOWEST_BPM, Grid

SAME_TEMPO = 0.01  # tempi that differ by less are one, as far as hearing them goes


def speed_of(grid: Grid, music: StemMusic) -> float:
    """How many times faster a stem is played so that its beats fall on those of a grid."""
    assert music.beat_bpm is not None
    return grid.tempo_bpm / music.beat_bpm


def octaves_of(grid: Grid, max_stretch: float) -> list[tuple[Grid, tuple[float, float]]]:
    """A mix's grid with the tempi of the stems that may be played on it; and, where such stems lie beyond an end of the
    octave that tempi are told in, the grid at double or half tempo with theirs. At half, either beat may be the first.
    """
    bpm, widest = grid.tempo_bpm, float(np.sqrt(2))
    max_stretch = max(max_stretch, SAME_TEMPO)
    low = max(bpm * (1 - max_stretch), bpm / widest)
    high = min(bpm / (1 - max_stretch), bpm * widest)
    highest = 2 * LOWEST_BPM
    found = [(grid, (max(low, LOWEST_BPM), min(high, highest)))]
    if low < LOWEST_BPM:
        between = (grid.beats_s[1:] + grid.beats_s[:-1]) / 2
        double = Grid(np.sort(np.concatenate([grid.beats_s, between])), grid.source)
        found.append((double, (2 * low, highest)))
    if high >= highest and len(grid.beats_s) > 3:
        found += [(Grid(grid.beats_s[first::2], grid.source), (LOWEST_BPM, high / 2)) for first in (0, 1)]
    return found


def same_tempi(tempo_bpm: float) -> tuple[float, float]:
    """The slowest and the fastest tempo that is one with a mix's, in the octave of grids, where the slowest may lie
    above the fastest."""
    ends = tempo_bpm * (1 - SAME_TEMPO), tempo_bpm / (1 - SAME_TEMPO)
    slow, fast = (LOWEST_BPM * 2 ** (float(np.log2(bpm / LOWEST_BPM)) % 1) for bpm in ends)
    return slow, fast
