"""What it costs to play a stem faster, slower or in another key, and where its notes go badly with the mix's; and stems
of which tempi a mix can have so."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from indexer import StemMusic
from model.audio.grid import LOWEST_BPM, Grid

OTHERWISE_COST = 2.0  # of a stem's score, for not being played as it was recorded
STRETCH_COST = 0.5  # and for each factor e of speed: 0.05 for ten per cent
TRANSPOSE_COST = 0.05  # and for each semitone
HARMONY_COST = 3.0  # for notes that have nothing to do with the mix's; none for those that sound as often there
NO_NOTES = 0.25  # the correlation that counts where a stem or the mix plays no notes, or none are known
SAME_TEMPO = 0.01  # tempi that differ by less are one, as far as hearing them goes


def speed_of(grid: Grid, music: StemMusic) -> float:
    """How many times faster a stem is played so that its beats fall on those of a grid."""
    assert music.beat_bpm is not None
    return grid.tempo_bpm / music.beat_bpm


def cost_of(speed: float, semitones: int) -> float:
    """What of a stem's score is taken off for playing it so."""
    stretch = abs(float(np.log(speed)))
    if stretch < SAME_TEMPO and semitones == 0:
        return 0.0
    return OTHERWISE_COST + STRETCH_COST * stretch + TRANSPOSE_COST * abs(semitones)


def harmony_costs(
    mix: NDArray[np.float32] | None, stems: Sequence[NDArray[np.float32] | None], keys: Sequence[int]
) -> NDArray[np.float64]:
    """What of stems' scores is taken off for how badly their notes, all through them, go with the mix's.

    Args:
        mix: chroma of the mix, see `harmony.of_chroma`; None: it plays no notes.
        stems: chroma of n stems, likewise.
        keys: semitones that they are moved up, k of them.

    Returns:
        float64 (n, k), 0 to 2 HARMONY_COST.
    """
    correlation = np.full((len(stems), len(keys)), NO_NOTES)
    known = [at for at, stem in enumerate(stems) if stem is not None]
    if known and mix is not None:
        moved_down = np.stack([np.roll(mix, -key) for key in keys], axis=1)
        correlation[known] = np.stack([stem for stem in stems if stem is not None]) @ moved_down
    return HARMONY_COST * (1 - correlation.clip(-1, 1))


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
