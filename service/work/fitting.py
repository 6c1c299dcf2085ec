"""Audio at another speed and in another key, from a place of the recording: what a hit says, done."""

import math
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray
from python_stretch import Signalsmith

from model.audio import AudioError

Samples = NDArray[np.float32]

SPEEDS = (0.5, 2.0)
"""Least and greatest speed; beyond, nothing sounds like itself."""

TRANSPOSITIONS = (-12.0, 12.0)
"""Semitones, likewise."""

BLOCK_S = 0.12
"""What the stretcher looks at around each instant, seconds; it is given so much before the start and after the end."""

STEP_S = 0.04
"""From one look to the next. Its preset takes 30 ms and a third more time, and sounds no nearer to music that is played
at the other tempo (1.73 dB from it over bands and frames; with this 1.74)."""

JOIN_S = 0.003
"""How long before a loop's end its last samples lean towards its first."""

SEED = 1
"""The stretcher draws phases at random where it slows down much; the same request gives the same samples."""


class StartBeyondEnd(AudioError):
    code = "start-beyond-end"
    says = "The recording is {seconds:g} s long; it has nothing from second {start_s:g} on."
    start_s: float
    seconds: float


@dataclass(frozen=True)
class Fitting:
    """How a stem is to sound: `speed` times as fast and `transpose` semitones higher, the one independent of the other.

    `start_s` is the second of the recording where the first sample lies, `duration_s` the length of what comes out,
    in its own seconds (None: up to the recording's end). Before its beginning and beyond its end lies silence; with
    `loop` it goes round, both ways. `rate` is that of what comes out, Hz (None: the recording's).
    """

    speed: float = 1.0
    transpose: float = 0.0
    start_s: float = 0.0
    duration_s: float | None = None
    loop: bool = False
    rate: int | None = None

    @property
    def ratio(self) -> float:
        """By how much frequencies rise."""
        return float(2 ** (self.transpose / 12))


def frames_needed(fitting: Fitting, rate: int) -> tuple[int, int | None]:
    """The frames of a recording at `rate` Hz that `fit` looks at: the first, and how many (None: all that follow)."""
    if fitting.loop:
        return 0, None
    start, margin = round(fitting.start_s * rate), math.ceil(_margin(fitting, rate) * fitting.speed * rate) + 1
    first = max(0, start - margin)
    if fitting.duration_s is None:
        return first, None
    return first, max(0, start - first + math.ceil(fitting.duration_s * fitting.speed * rate) + margin + 1)


def fit(samples: Samples, rate: int, fitting: Fitting, *, first: int = 0) -> Samples:
    """A recording as `fitting` says.

    It is stretched so long that, played faster or slower by the transposition's ratio, it lasts as long as it should:
    the stretcher's own transposition is off by up to 20 cents in the bass.

    Args:
        samples: float32 (channels, n), finite; any layout.
        rate: of `samples`, Hz.
        first: which frame of the recording `samples` begin with; they hold what `frames_needed` says.

    Returns:
        float32 (channels, round(duration_s * rate of the output)), contiguous. At speed 1 and untransposed, at the
        recording's rate, its very samples. Else onsets lie within 2 ms of where the speed puts them, while
        speed / ratio lies between 0.55 and 1.6. Two channels keep their phases to each other; of more, each pair does.

    Raises:
        StartBeyondEnd: `start_s` lies at or after the recording's end, and it does not go round.
    """
    start, end = round(fitting.start_s * rate), first + samples.shape[1]
    if fitting.loop:
        start %= end
    if start >= end:
        raise StartBeyondEnd(fitting.start_s, round(end / rate, 3))
    out_rate = fitting.rate or rate
    seconds = (end - start) / rate / fitting.speed if fitting.duration_s is None else fitting.duration_s
    wanted, margin = round(seconds * out_rate), round(_margin(fitting, rate) * out_rate)
    every = fitting.speed * rate / out_rate  # frames of the recording to one of what comes out
    count = wanted + 2 * margin
    begin, read = start - first - round(margin * every), round(count * every)
    out = _joined(samples, rate, begin, read) if fitting.loop else _cut(samples, begin, read)
    stretched = round(read * fitting.ratio / fitting.speed)
    if stretched != read:
        out = _stretched(out, rate, stretched)
    if rate * fitting.ratio != out_rate:
        out = soxr.resample(out.T, rate * fitting.ratio, out_rate, quality="HQ").T
    return _cut(out, margin, wanted)


def _margin(fitting: Fitting, rate: int) -> float:
    """Seconds on either side of what comes out, for the stretcher and the resampler to look at: a whole number of
    samples before and after."""
    out_rate = fitting.rate or rate
    if fitting.speed == fitting.ratio == 1 and out_rate == rate:
        return 0.0
    step = 1 / math.gcd(rate, out_rate)
    return math.ceil(BLOCK_S / step) * step


def _cut(samples: Samples, begin: int, count: int) -> Samples:
    """So many frames from one on, which may be negative; silence where there are none."""
    out = np.zeros((len(samples), count), np.float32)
    low, high = max(0, begin), min(samples.shape[1], begin + count)
    if low < high:
        out[:, low - begin : high - begin] = samples[:, low:high]
    return out


def _joined(samples: Samples, rate: int, begin: int, count: int) -> Samples:
    """So many frames of a loop that goes on for ever. Its last samples are led to its first, which stay as they are:
    there the beat lies, and a fade would blunt it."""
    lead = min(round(JOIN_S * rate), samples.shape[1])
    ramp = np.sin(np.linspace(0, np.pi / 2, lead, dtype=np.float32)) ** 2
    once = np.array(samples, np.float32)
    once[:, -lead:] += (samples[:, :1] - samples[:, -1:]) * ramp
    return np.take(once, np.arange(begin, begin + count), axis=1, mode="wrap")


def _stretched(samples: Samples, rate: int, count: int) -> Samples:
    """Frames stretched to `count`: the stretcher does two channels at most, and accounts for its own latency."""
    pairs = []
    for at in range(0, len(samples), 2):
        pair = np.array(samples[at : at + 2], np.float32, order="C")  # it misreads views, and refuses what is read-only
        stretch = Signalsmith.Stretch(SEED)
        stretch.configure(len(pair), round(BLOCK_S * rate), round(STEP_S * rate))
        stretch.timeFactor = pair.shape[1] / count
        pairs.append(_cut(np.asarray(stretch.process(pair)), 0, count))
    return np.concatenate(pairs)
