"""A mix -> what is heard of it, and the windows that are asked about: which stretch of it, at which places."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from indexer import QueryWindows
from model.audio import SAMPLE_RATE, Windows
from model.audio.analysis import SURE_KEY, is_sure
from model.audio.grid import FEWEST_BEATS, FRAMES_A_BEAT, STRIDE_BEATS, WINDOW_BEATS, Grid, folded
from model.audio.hearing import Hearing

STRIDES = 2  # of a long mix that are looked at: a place that is right fits in both of its halves
HEARD_S = 60  # of a mix, from which its tempo and its key are heard
LIKELIEST = 2  # tempi of a mix that are tried where the first is not sure
ALIKE_S = 0.028  # of two windows of one mix, so far apart, the embeddings' cosine is exp(-1/2)

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
    sources: dict[str, str] = {}
    sure: dict[str, bool] = {}
    hearing = Hearing(waveform[: HEARD_S * SAMPLE_RATE])
    audible = bool(np.any(waveform[: HEARD_S * SAMPLE_RATE]))
    grids = hearing.grids(tempo_bpm, most=LIKELIEST) if audible else []
    if grids and tempo_bpm is not None:
        beats = folded(np.arange(len(grids[0].beats_s) + 1) * 60 / tempo_bpm)  # as fast as said, from a heard beat on
        grids = [Grid(grids[0].beats_s[0] + beats)]
    if grids:
        sources["tempo_bpm"] = grids[0].source
        if tempo_bpm is None:
            sure["tempo_bpm"] = is_sure(grids[0])
            grids = grids[:1] if is_sure(grids[0]) else grids
    if key is not None:
        sources["key"] = "said"
    elif audible and hearing.is_pitched() and (told := hearing.key()):
        key, ahead = told
        sources["key"], sure["key"] = "heard", ahead >= SURE_KEY
    return HeardMix(tuple(grids), key, sources, sure)


@dataclass(frozen=True, eq=False)
class Plan:
    """The windows of a mix that are asked about, in seconds or in beats of the mix's own grid.

    `laid`: the windows. `offset`, float64 (q,): where each begins, seconds or beats. `shift`, int64 (q,): windows of
    one number lie strides apart. `step`, `shifts`: how far apart the embedded delays lie, samples, and how many there
    are. `grid`: None in clock time.
    """

    laid: Windows
    offset: NDArray[np.float64]
    shift: NDArray[np.int64]
    step: int
    shifts: int
    grid: Grid | None = None

    @property
    def begin(self) -> int:
        """The first sample that is looked at."""
        return int(self.laid.starts.min())

    @property
    def end(self) -> int:
        """The one after the last."""
        return int((self.laid.starts + self.laid.lengths).max())

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

    @property
    def tried(self) -> tuple[int, int]:
        """How many delays in all, and how many samples they lie apart: in clock time one is drawn between two."""
        drawn = self.grid is None and self.shifts > 1
        return (2 * self.shifts - 1, self.step // 2) if drawn else (self.shifts, self.step)

    def queries(self, embedding: NDArray[np.complex64], chosen: NDArray[np.bool_]) -> QueryWindows:
        """The chosen ones of its windows, with their embeddings, and what is drawn between them."""
        embedded = QueryWindows(embedding[chosen], self.offset[chosen], self.shift[chosen])
        return draw_between(embedded, self.step / SAMPLE_RATE) if self.grid is None else embedded


def draw_between(queries: QueryWindows, step_s: float) -> QueryWindows:
    """Add the windows that begin halfway between two, as the four around them tell.

    Embeddings of one mix change with time as a Gaussian process does whose deviation is ALIKE_S, so the best guess
    is a weighted sum. Beside a silent window, and at either end, nothing is drawn.

    Args:
        queries: of one mix, in clock time.
        step_s: between windows that follow each other; far beyond ALIKE_S nothing can be told of what is between.

    Returns:
        The same and the drawn ones, of unit norm. Shifts are numbered anew, in half steps.
    """
    order = np.argsort(queries.offset_s, kind="stable")
    embedding, offset_s, shift = queries.embedding[order], queries.offset_s[order], 2 * queries.shift[order]
    four = np.arange(max(0, len(order) - 3))[:, None] + np.arange(4)
    apart = np.round(np.diff(offset_s[four], axis=1) * SAMPLE_RATE)
    four = four[(apart == round(step_s * SAMPLE_RATE)).all(axis=1)]
    at = np.arange(4.0)  # steps
    weights = np.linalg.solve(_alike((at[:, None] - at) * step_s), _alike((at - 1.5) * step_s))
    guess = np.einsum("w,qwd->qd", weights.astype(np.float32), embedding[four])
    guess /= np.linalg.norm(guess, axis=1, keepdims=True)
    before = four[:, 1]
    return QueryWindows(
        np.concatenate([embedding, guess]),
        np.concatenate([offset_s, offset_s[before] + step_s / 2]),
        np.concatenate([shift, shift[before] + 1]),
    )


def _alike(apart_s: NDArray[np.float64]) -> NDArray[np.float64]:
    alike: NDArray[np.float64] = np.exp(-0.5 * np.square(apart_s / ALIKE_S))
    return alike


def plan_windows(waveform: NDArray[np.float32], *, window: int, stride: int, step: int, search: bool) -> Plan:
    """Lay windows over a mix in clock time.

    The catalog's windows start on a grid, one stride apart; a mix may start anywhere beside it. With `search` windows
    are laid for each `step` of a stride, so that one laying meets the grid to within half a step; a mix shorter than
    window + stride allows fewer, and of a longer one only some strides are looked at. Without, all are laid once, from
    the mix's start.

    Args:
        waveform: float32 (samples,), 16 kHz.
        window, stride, step: samples.
        search: see above.
    """
    length = min(window, len(waveform))
    room = len(waveform) - length  # how far the first window can move
    shifts = min(-(-stride // step), room // step + 1) if search else 1
    first = np.arange(0, room + 1, stride)
    if search:
        first = _loudest(waveform, first, length, last=room - (shifts - 1) * step)
    layings = [at[at <= room] for at in (first + shift * step for shift in range(shifts))]
    starts = np.concatenate(layings)
    shift = np.repeat(np.arange(shifts), [len(laying) for laying in layings])
    return Plan(Windows.in_clock_time(starts, length), starts / SAMPLE_RATE, shift, step, shifts)


def plan_beats(waveform: NDArray[np.float32], grid: Grid) -> Plan | None:
    """Lay windows over a mix, beginning on every beat of a stride; of a longer mix some strides are looked at.

    Args:
        waveform: float32 (samples,), 16 kHz.
        grid: the mix's, of steady tempo.

    Returns:
        None: the mix is too short for a window.
    """
    beat_s = 60 / grid.tempo_bpm
    begin = math.ceil(-grid.beats_s[0] / beat_s - 1e-6)  # the first beat within the mix
    room = int((len(waveform) / SAMPLE_RATE - float(grid.seconds_at(np.array(begin)))) / beat_s + 1e-3)
    beats = min(WINDOW_BEATS, room)
    if beats < FEWEST_BEATS:
        return None
    shifts = min(STRIDE_BEATS, room - beats + 1)
    length = min(round(beats * beat_s * SAMPLE_RATE), len(waveform))

    def samples_at(places: NDArray[np.int64]) -> NDArray[np.int64]:
        at = np.round(grid.seconds_at(begin + places) * SAMPLE_RATE).astype(np.int64)
        return np.clip(at, 0, len(waveform) - length)

    first = np.arange(0, room - beats + 1, STRIDE_BEATS)
    last = samples_at(np.array([room - beats - shifts + 1]))
    first = first[np.isin(samples_at(first), _loudest(waveform, samples_at(first), length, last=int(last[0])))]
    layings = [at[at <= room - beats] for at in (first + shift for shift in range(shifts))]
    places = np.concatenate(layings)
    lengths, none = np.full(len(places), length, np.int64), np.zeros(len(places), np.int64)
    shift = np.repeat(np.arange(shifts), [len(laying) for laying in layings])
    laid = Windows(samples_at(places), lengths, none, 1 + beats * FRAMES_A_BEAT)
    return Plan(laid, (begin + places).astype(np.float64), shift, round(beat_s * SAMPLE_RATE), shifts, grid)


def only(waveform: NDArray[np.float32], laid: Windows) -> tuple[NDArray[np.float32], Windows]:
    """What of a waveform its windows need, end to end, and the windows in that."""
    order = np.argsort(laid.starts, kind="stable")
    starts, ends = laid.starts[order], np.maximum.accumulate((laid.starts + laid.lengths)[order])
    gaps = np.concatenate([[starts[0]], np.maximum(0, starts[1:] - ends[:-1])])  # that nobody needs, before each
    begins = np.flatnonzero(gaps[1:]) + 1
    spans = zip(starts[np.concatenate([[0], begins])], ends[np.concatenate([begins - 1, [-1]])], strict=True)
    moved = np.empty_like(starts)
    moved[order] = starts - np.cumsum(gaps)
    return np.concatenate([waveform[start:end] for start, end in spans]), replace(laid, starts=moved)


def _loudest(waveform: NDArray[np.float32], starts: NDArray[np.int64], length: int, last: int) -> NDArray[np.int64]:
    """Of windows, STRIDES at most: the loudest of as many equal parts of the mix. Where there is a choice, none that
    starts after `last`."""
    if len(starts) <= STRIDES:
        return starts
    fitting = starts[starts <= last]
    loudness = np.array([np.square(waveform[at : at + length]).sum(dtype=np.float64) for at in fitting])
    parts = np.array_split(np.arange(len(fitting)), STRIDES)
    return fitting[[part[np.argmax(loudness[part])] for part in parts if len(part)]]
