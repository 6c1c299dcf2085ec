"""A mix -> what is heard of it, and the windows that are asked about: which stretch of it, at which places."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from indexer import QueryWindows
from model.audio import SAMPLE_RATE, Windows, is_silent
from model.audio.analysis import SURE_KEY, is_sure
from model.audio.grid import FEWEST_BEATS, FRAMES_A_BEAT, STRIDE_BEATS, WINDOW_BEATS, Grid
from model.audio.harmony import chroma_of
from model.audio.hearing import Hearing
from model.phalar import PhalarConfig

NETWORK_STEP = PhalarConfig().step
DELAY = NETWORK_STEP // 16  # 20 ms: from one delay that is tried to the next, in clock time
KEPT = 0.95  # of its score, by a window that is embedded in a pass with others
STRIDES = 2  # of a long mix that are looked at: a place that is right fits in both of its halves
HEARD_S = 60  # of a mix, from which its tempo and its key are heard; half minutes of silence before it are left out
LIKELIEST = 2  # tempi of a mix that are tried where the first is not sure

Align = Literal["beats", "search", "grid"]


@dataclass(frozen=True)
class HeardMix:
    """Tempo and key of a mix, each with its source ("said" or "heard"), and how sure it is where it was heard.

    chroma: float32 (12,), how much of each pitch class sounds, see `harmony.chroma_of`; None: it plays no notes.
    """

    grids: tuple[Grid, ...]  # the likeliest first; none: it has no tempo
    key: str | None
    sources: dict[str, str]
    sure: dict[str, bool]
    chroma: NDArray[np.float32] | None = None


def hear_mix(waveform: NDArray[np.float32], tempo_bpm: float | None = None, key: str | None = None) -> HeardMix:
    """What the asker says of a mix, else what is heard in it.

    Args:
        waveform: float32 (samples,), 16 kHz.
        tempo_bpm: its tempo, half and double being the same; None: heard.
        key: its key, such as "F# minor"; None: heard.
    """
    sources: dict[str, str] = {}
    sure: dict[str, bool] = {}
    half = HEARD_S * SAMPLE_RATE // 2
    begin = next((at for at in range(0, len(waveform), half) if not is_silent(waveform[at : at + half])), 0)
    waveform = waveform[begin : begin + HEARD_S * SAMPLE_RATE]
    hearing, audible = Hearing(waveform), bool(np.any(waveform))
    grids = hearing.grids(tempo_bpm, most=LIKELIEST) if audible else []
    if grids and tempo_bpm is not None:
        octaves = round(math.log2(grids[0].tempo_bpm / tempo_bpm))
        beats = np.arange(len(grids[0].beats_s)) * 60 / (tempo_bpm * 2**octaves)
        grids = [Grid(grids[0].beats_s[0] + beats)]  # as fast as said, from a heard beat on
    grids = [_begun_earlier(grid, begin / SAMPLE_RATE) for grid in grids]
    if grids:
        sources["tempo_bpm"] = grids[0].source
        if tempo_bpm is None:
            sure["tempo_bpm"] = is_sure(grids[0])
            grids = grids[:1] if is_sure(grids[0]) else grids
    pitched = audible and hearing.is_pitched()
    if key is not None:
        sources["key"] = "said"
    elif pitched and (told := hearing.key()):
        key, ahead = told
        sources["key"], sure["key"] = "heard", ahead >= SURE_KEY
    return HeardMix(tuple(grids), key, sources, sure, chroma_of(hearing.pitch_classes) if pitched else None)


def _begun_earlier(grid: Grid, seconds: float) -> Grid:
    """The grid of a mix, given that of what comes so many seconds after its beginning."""
    earlier = int(seconds * grid.tempo_bpm / 60)
    return replace(grid, beats_s=seconds + grid.seconds_at(np.arange(-earlier, len(grid.beats_s))))


@dataclass(frozen=True, eq=False)
class Plan:
    """The windows of a mix that are asked about, in seconds or in beats of the mix's own grid.

    `laid`: the windows, or clips that hold them. `offset`, float64 (q,): where each window begins, seconds or beats, in
    each of its keys. `shift`, int64 (q,): windows of one number lie strides apart, in one key. `step`, `shifts`: how
    far apart the delays lie, samples, and how many there are. `grid`: None in clock time.
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

    def in_keys(self, semitones: int) -> "Plan":
        """Each window in every key up to so many semitones away; of equal scores the nearer key will win."""
        keys = np.arange(-semitones, semitones + 1)
        nearest_first = np.argsort(np.argsort(np.abs(keys), kind="stable"))
        shift = (self.shift[:, None] + (self.shift.max() + 1) * nearest_first).ravel()
        laid = replace(self.laid, semitones=semitones)
        return replace(self, laid=laid, offset=np.repeat(self.offset, len(keys)), shift=shift)

    @property
    def key(self) -> NDArray[np.int64]:
        """Semitones that a stem is to be moved up to meet each window, which is moved as far down: int64 (q,)."""
        semitones = self.laid.semitones
        return np.resize(np.arange(semitones, -semitones - 1, -1), len(self.offset))

    @property
    def window(self) -> int:
        """Samples of a window in clock time."""
        return self.laid.inner or int(self.laid.lengths[0])

    def queries(
        self, waveform: NDArray[np.float32], embedded: NDArray[np.complex64]
    ) -> tuple[QueryWindows, NDArray[np.int64]]:
        """Its windows that sound, and the `key` of each. What a shared pass takes from their scores is given back.

        Args:
            waveform: float32 (samples,), that it was laid over.
            embedded: complex64, a row for each of `laid`, as `Queue.embed` answers: zeros where one is silent.
        """
        embedding = embedded.reshape(len(self.offset), -1)
        audible = np.abs(embedding).any(axis=1)
        if self.laid.inner is not None:
            starts = np.round(self.offset * SAMPLE_RATE).astype(np.int64).tolist()
            audible &= np.array([not is_silent(waveform[at : at + self.laid.inner]) for at in starts])
            embedding = embedding / np.float32(KEPT)
        return QueryWindows(embedding[audible], self.offset[audible], self.shift[audible]), self.key[audible]


def plan_windows(waveform: NDArray[np.float32], *, window: int, stride: int, search: bool) -> Plan:
    """Lay windows over a mix in clock time.

    The catalog's windows start on a grid, one stride apart; a mix may start anywhere beside it. With `search` one
    begins every 20 ms; of a mix longer than a window and two strides, in two of its strides. Those that begin whole
    steps of the network apart are laid as one clip, to be embedded by one pass. Without, they lie a stride apart.

    Args:
        waveform: float32 (samples,), 16 kHz.
        window, stride: samples.
        search: see above.
    """
    length = min(window, len(waveform))
    room = len(waveform) - length  # how far the first window can move
    if not search:
        starts = np.arange(0, room + 1, stride)
        return Plan(Windows.in_clock_time(starts, length), starts / SAMPLE_RATE, np.zeros_like(starts), stride, 1)
    first, reach = np.zeros(1, np.int64), -(-stride // NETWORK_STEP) * NETWORK_STEP - DELAY
    if room <= max(STRIDES * stride, reach):
        reach = room
    else:
        first = _loudest(waveform, np.arange(0, room + 1, stride), length, last=room - reach)
    delays = reach // DELAY + 1
    clips = min(NETWORK_STEP // DELAY, delays)
    windows = delays // clips  # in each
    begins = (first[:, None] + DELAY * np.arange(clips)).ravel()
    laid = Windows.in_clock_time(begins, length + (windows - 1) * NETWORK_STEP)
    starts = (begins[:, None] + NETWORK_STEP * np.arange(windows)).ravel()
    shift = np.round(starts % stride / DELAY).astype(np.int64)
    return Plan(replace(laid, inner=length), starts / SAMPLE_RATE, shift, DELAY, len(np.unique(shift)))


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
    shift = np.repeat(np.arange(shifts), [len(laying) for laying in layings])
    lengths = np.full(len(places), length, np.int64)
    laid = Windows(samples_at(places), lengths, 1 + beats * FRAMES_A_BEAT)
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
