"""A mix -> what is heard of it, and the windows that are asked about: which stretch of it, at which places."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from indexer import QueryWindows
from model.audio import MIN_SECONDS, SAMPLE_RATE, Windows
from model.audio.analysis import SURE_KEY, SURE_STEADINESS
from model.audio.grid import FEWEST_BEATS, FRAMES_A_BEAT, STRIDE_BEATS, WINDOW_BEATS, Grid, folded
from model.audio.hearing import hear_grid, hear_key, is_pitched

HOP = SAMPLE_RATE // 100  # 10 ms, the grid on which places are told
ENERGY_HOPS = 6000  # whose energy is summed at once: a minute
STRIDES = 3  # windows of a mix for each place on its beats, spread over it
BEAT_PARTS = 2  # places on a beat's grid: halves
HEARD_S = 60  # of a mix, from which its tempo and its key are heard

Align = Literal["beats", "search", "grid"]


@dataclass(frozen=True)
class HeardMix:
    """Tempo and key of a mix, each with its source ("said" or "heard"), and how sure it is where it was heard."""

    grids: tuple[Grid, ...]  # the likeliest first; none: it has no tempo
    key: str | None
    sources: dict[str, str]
    sure: dict[str, bool]


def hear_mix(waveform: NDArray[np.float32], tempo_bpm: float | None = None, key: str | None = None) -> HeardMix:
    """What the asker says of a mix, else what is heard in it.

    Args:
        waveform: float32 (samples,), 16 kHz.
        tempo_bpm: its tempo, half and double being the same; None: heard.
        key: its key, such as "F# minor"; None: heard.
    """
    heard = waveform[: HEARD_S * SAMPLE_RATE]
    sources: dict[str, str] = {}
    sure: dict[str, bool] = {}
    audible = len(heard) > MIN_SECONDS * SAMPLE_RATE and bool(np.any(heard))
    grid = hear_grid(heard, tempo_bpm) if audible else None
    if grid is not None and tempo_bpm is not None:
        beats = folded(np.arange(len(grid.beats_s) + 1) * 60 / tempo_bpm)  # as fast as was said, from a heard beat on
        grid = replace(grid, beats_s=grid.beats_s[0] + beats, source="said")
    if grid is not None:
        sources["tempo_bpm"] = grid.source
        if tempo_bpm is None:
            sure["tempo_bpm"] = grid.steadiness >= SURE_STEADINESS
    if key is not None:
        sources["key"] = "said"
    elif audible and is_pitched(heard) and (told := hear_key(heard)):
        key, ahead = told
        sources["key"], sure["key"] = "heard", ahead >= SURE_KEY
    return HeardMix(() if grid is None else (grid,), key, sources, sure)


@dataclass(frozen=True, eq=False)
class Plan:
    """The windows of a mix that are asked about, in seconds or in beats of the mix's own grid.

    `begin` and `end`: the stretch that is looked at, samples. `laid`: the windows. `offset`, float64 (q,): where each
    begins, seconds or beats. `shift`, int64 (q,): windows of one number lie a stride apart. `step`, `shifts`: how far
    apart the tried delays lie, samples, and how many there are. `grid`: None in clock time.
    """

    begin: int
    end: int
    laid: Windows
    offset: NDArray[np.float64]
    shift: NDArray[np.int64]
    step: int
    shifts: int
    grid: Grid | None = None

    @property
    def range_s(self) -> float:
        """The longest delay tried, seconds."""
        return (self.shifts - 1) * self.step / SAMPLE_RATE

    def in_keys(self, semitones: Sequence[int]) -> "Plan":
        """The same windows in each of these keys, one key after the other."""
        every = Windows(
            np.tile(self.laid.starts, len(semitones)),
            np.tile(self.laid.lengths, len(semitones)),
            np.repeat(np.array(semitones, np.int64), len(self.laid)),
            self.laid.frames,
        )
        offset, shift = np.tile(self.offset, len(semitones)), np.tile(self.shift, len(semitones))
        return replace(self, laid=every, offset=offset, shift=shift)

    def queries(self, embedding: NDArray[np.complex64], chosen: NDArray[np.bool_]) -> QueryWindows:
        """The chosen ones of its windows, with their embeddings."""
        return QueryWindows(embedding[chosen], self.offset[chosen], self.shift[chosen])


def plan_windows(
    waveform: NDArray[np.float32], *, window: int, stride: int, step: int, longest: int, search: bool
) -> Plan:
    """Lay windows over a mix in clock time.

    The catalog's windows start on a grid, one stride apart; a mix may start anywhere beside it. With `search` the
    windows are laid once for each `step` of a stride, so that one laying meets the grid to within half a step; a mix
    shorter than window + stride allows fewer. Without, they are laid once, from the mix's start.

    Args:
        waveform: float32 (samples,), 16 kHz.
        window, stride, step: samples.
        longest: samples of the mix that are looked at: its loudest stretch where there is a choice, its beginning
            when not searching, since the grid is counted from there.
    """
    begin = _loudest(waveform, longest) if search else 0
    end = min(len(waveform), begin + longest)
    length = min(window, end - begin)
    room = end - begin - length  # how far the first window can move
    shifts = min(-(-stride // step), room // step + 1) if search else 1
    layings = [np.arange(d * step, room + 1, stride) for d in range(shifts)]
    starts = begin + np.concatenate(layings)
    shift = np.repeat(np.arange(shifts), [len(laying) for laying in layings])
    return Plan(begin, end, Windows.in_clock_time(starts, length), starts / SAMPLE_RATE, shift, step, shifts)


def plan_beats(waveform: NDArray[np.float32], grid: Grid) -> Plan | None:
    """Lay windows over a mix, beginning on every half beat of a stride; of a longer mix some strides, over all of it.

    Args:
        waveform: float32 (samples,), 16 kHz.
        grid: the mix's, of steady tempo.

    Returns:
        None: the mix is too short for a window.
    """
    beat_s, step = 60 / grid.tempo_bpm, 1 / BEAT_PARTS
    first = float(np.ceil((-grid.beats_s[0] / beat_s - 1e-6) / step)) * step  # beats
    room = (len(waveform) / SAMPLE_RATE - float(grid.seconds_at(np.array(first)))) / beat_s + 1e-3
    beats = min(WINDOW_BEATS, int(room))
    if beats < FEWEST_BEATS:
        return None
    shifts = np.arange(0, min(STRIDE_BEATS, room - beats), step)
    layings = [_spread(np.arange(at, room - beats, STRIDE_BEATS), STRIDES) for at in shifts]
    places = first + np.concatenate(layings)
    starts = np.maximum(0, np.round(grid.seconds_at(places) * SAMPLE_RATE)).astype(np.int64)
    length = min(round(beats * beat_s * SAMPLE_RATE), len(waveform) - int(starts.max()))
    lengths, none = np.full(len(starts), length, np.int64), np.zeros(len(starts), np.int64)
    shift = np.repeat(np.arange(len(layings)), [len(laying) for laying in layings])
    laid = Windows(starts, lengths, none, 1 + beats * FRAMES_A_BEAT)
    return Plan(0, len(waveform), laid, places, shift, round(step * beat_s * SAMPLE_RATE), len(layings), grid)


def _spread(values: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """So many of them at most, from the first to the last."""
    if len(values) <= most:
        return values
    chosen: NDArray[np.float64] = values[np.round(np.linspace(0, len(values) - 1, most)).astype(int)]
    return chosen


def _loudest(waveform: NDArray[np.float32], longest: int) -> int:
    """Where the stretch of most energy begins, on the 10 ms grid."""
    if len(waveform) <= longest:
        return 0
    of_hop = [  # a long mix at once, in float64, would take five times its own memory
        np.square(waveform[at : at + ENERGY_HOPS * HOP][: len(waveform) // HOP * HOP - at], dtype=np.float64)
        .reshape(-1, HOP)
        .sum(axis=1)
        for at in range(0, len(waveform) // HOP * HOP, ENERGY_HOPS * HOP)
    ]
    energy = np.concatenate([[0.0], np.cumsum(np.concatenate(of_hop))])
    hops = longest // HOP
    begins = np.arange(0, (len(waveform) - longest) // HOP + 1)
    return int(begins[np.argmax(energy[begins + hops] - energy[begins])]) * HOP
