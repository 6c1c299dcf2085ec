"""Beat time: where the beats of a clip lie, and its seconds as if it were played at 120 BPM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.audio.windows import SAMPLE_RATE, Windows

BEAT_TIME_BPM = 120.0
"""The tempo that beat time is played at."""

LOWEST_BPM = BEAT_TIME_BPM / math.sqrt(2)
"""Tempi are folded into the octave from here on: half and double tempo are one."""

WINDOW_BEATS, STRIDE_BEATS = 10, 5
"""How long a window in beat time is, and how far apart they begin."""

FEWEST_BEATS = 3
"""A clip of fewer has no window in beat time: as played at 120 BPM a window must be longer than MIN_SECONDS."""

_ROUNDING_BEATS = 1e-6  # a loop's last beat is its end, but for the last bits

FRAMES_A_BEAT = 50
"""Of the CQT, at 120 BPM."""

Source = Literal["said", "heard"]


class BadGrid(ValueError):
    """Beats that cannot be those of their clip."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The beats of a clip: at least two, in order, their tempo within the octave from LOWEST_BPM on (see `folded`)."""

    beats_s: NDArray[np.float64]
    source: Source = "said"
    steadiness: float = 1.0  # of a heard one: how far its tempo is ahead of the next likeliest, 0 to 1

    @cached_property
    def tempo_bpm(self) -> float:
        """Beats a minute, by the median beat."""
        return 60.0 / float(np.median(np.diff(self.beats_s)))

    def seconds_at(self, beats: NDArray[np.floating[Any] | np.integer[Any]]) -> NDArray[np.float64]:
        """When each beat falls, whole or not, counted from the grid's first; evenly spaced beyond either end.

        Args:
            beats: of any shape; may be negative or beyond the last.

        Returns:
            float64 seconds from the clip's first sample, of the same shape.
        """
        places = np.arange(len(self.beats_s))
        first, last = self.beats_s[1] - self.beats_s[0], self.beats_s[-1] - self.beats_s[-2]
        inside = np.interp(beats, places, self.beats_s)
        before, after = np.minimum(beats, 0.0), np.maximum(beats - places[-1], 0.0)
        at: NDArray[np.float64] = inside + before * first + after * last
        return at

    def beats_at(self, seconds: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Which beat, whole or not, falls then: what `seconds_at` undoes.

        Args:
            seconds: from the clip's first sample, of any shape; may lie beyond either end.
        """
        places, first, last = np.arange(len(self.beats_s)), self.beats_s[0], self.beats_s[-1]
        before = np.minimum(seconds - first, 0.0) / (self.beats_s[1] - first)
        after = np.maximum(seconds - last, 0.0) / (last - self.beats_s[-2])
        at: NDArray[np.float64] = np.interp(seconds, self.beats_s, places) + before + after
        return at

    def starts(self, beats: int, seconds: float) -> NDArray[np.int64]:
        """The beats with which a window of so many beats may begin in a clip of so many seconds."""
        places = np.arange(-1, len(self.beats_s) + 1)
        begin, end = self.seconds_at(places), self.seconds_at(places + beats)
        return places[(begin >= 0) & (end <= seconds)]


def said_grid(beats_s: NDArray[np.floating[Any]], seconds: float) -> Grid:
    """The grid of beats that somebody knows, its tempo folded.

    Args:
        beats_s: seconds of each beat; the first begins a bar, where that is known.
        seconds: length of the clip.

    Raises:
        BadGrid: fewer than two beats, not finite, out of order, or outside the clip.
    """
    beats = np.asarray(beats_s, dtype=np.float64)
    if beats.ndim != 1 or len(beats) < 2:
        raise BadGrid("a grid needs two beats")
    if not np.isfinite(beats).all() or (np.diff(beats) <= 0).any():
        raise BadGrid("its beats are not in order")
    if beats[0] < 0 or beats[-1] > seconds:
        outside = beats[0] if beats[0] < 0 else beats[-1]
        raise BadGrid(f"a beat at {outside:g} s lies outside its {seconds:g} s")
    return Grid(folded(beats))


def folded(beats_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every other beat, or beats between, until their tempo lies in the octave from LOWEST_BPM on."""
    while 60.0 / np.median(np.diff(beats_s)) < LOWEST_BPM:
        between = (beats_s[1:] + beats_s[:-1]) / 2
        beats_s = np.sort(np.concatenate([beats_s, between]))
    while 60.0 / np.median(np.diff(beats_s)) >= 2 * LOWEST_BPM and len(beats_s) > 2:
        beats_s = beats_s[::2]
    return beats_s


def same_tempo(one: ArrayLike, other: ArrayLike, within: float) -> Any:
    """Whether two tempi, or two periods, differ by at most this share, whole octaves left out; of arrays, which."""
    octaves = np.log2(np.divide(one, other))
    return np.abs(octaves - np.round(octaves)) <= np.log2(1 + within)


def beat_windows(grid: Grid, samples: int) -> tuple[Windows, NDArray[np.float64]] | None:
    """Lay windows of WINDOW_BEATS over a clip.

    Args:
        grid: of the clip; of a loop that goes round, once.
        samples: how long it is.

    Returns:
        Windows STRIDE_BEATS apart from the first beat on, the last one nearer where it must be to end within a beat of
        the clip's end; those of a loop that goes round begin in its first round. And the beat that each begins on,
        float64 (n,). A clip that is shorter than a window has one, of as many whole beats as it has; one of fewer than
        FEWEST_BEATS has none: None.
    """
    ends = grid.beats_at(np.array([0.0, samples / SAMPLE_RATE]))
    first, end = math.ceil(ends[0] - _ROUNDING_BEATS), math.floor(ends[1] + _ROUNDING_BEATS)
    beats, round_again = min(WINDOW_BEATS, end - first), end > len(grid.beats_s)
    if beats < FEWEST_BEATS:
        return None
    last = min(end - beats, len(grid.beats_s) - 2)
    places = np.arange(first, last + 1, STRIDE_BEATS, dtype=np.float64)
    if places[-1] < last and not round_again:
        places = np.append(places, last)
    begin, end_at = grid.seconds_at(places), grid.seconds_at(places + beats)
    starts, stops = (np.round(at * SAMPLE_RATE).astype(np.int64) for at in (begin, end_at))
    inside = (starts >= 0) & (stops <= samples)
    return Windows(starts[inside], (stops - starts)[inside], frames=1 + beats * FRAMES_A_BEAT), places[inside]
