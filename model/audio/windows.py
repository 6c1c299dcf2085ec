"""Waveforms: mono float32 samples at 16 kHz, silent or not, and the windows that each get one embedding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Waveform = NDArray[np.float32]

SAMPLE_RATE = 16_000
"""Samples a second of every waveform."""

TOO_SHORT = 16_384
"""A waveform of this many samples (1.024 s) or fewer cannot be analysed: the CQT reflects that many at either end."""

MIN_SECONDS = TOO_SHORT / SAMPLE_RATE
"""A clip must be longer than this, seconds."""

SILENCE_DB = -80.0
"""Audio whose peak lies below this, dBFS, is silent: three steps of 16 bits, so dithered silence counts."""

SILENCE = 10 ** (SILENCE_DB / 20)


@dataclass(frozen=True, eq=False)
class Windows:
    """Where the windows of one waveform lie, and how each is heard: as recorded, or in beat time and in several keys.

    starts, lengths: int64 (n,), samples. frames: of the CQT in beat time that every window fills, however long it
    lasts; None: clock time, where all are of one length and in their own key. inner: samples; each is then heard as all
    windows of that length which begin a step of the network apart in it, by one pass (`Phalar.embed_each_step`), and
    has their embeddings end to end. None: each is one window. semitones: in beat time each is heard in every key from
    so many down to so many up, by one pass (`Phalar.embed_in_keys`), and has their embeddings end to end.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    frames: int | None = None
    inner: int | None = None
    semitones: int = 0

    @classmethod
    def in_clock_time(cls, starts: NDArray[np.int64], length: int) -> Windows:
        """Of one length, samples."""
        return cls(starts, np.full(len(starts), length, np.int64))

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, which: slice | NDArray[np.int64] | NDArray[np.bool_]) -> Windows:
        return replace(self, starts=self.starts[which], lengths=self.lengths[which])

    @property
    def kind(self) -> tuple[int, int, int, int]:
        """What windows must have in common to be embedded in one batch."""
        length = int(self.lengths.max(initial=0)) if self.frames is None else 0
        return self.frames or 0, length, self.inner or 0, self.semitones

    def fit(self, samples: int) -> bool:
        """Whether all of them lie within a waveform of so many samples."""
        return not len(self) or bool(self.starts.min() >= 0 and (self.starts + self.lengths).max() <= samples)


def window_starts(samples: int, window: int, stride: int) -> NDArray[np.int64]:
    """Place windows over a clip.

    Args:
        samples: length of the clip, at least 1.
        window: length of a window in samples, at least 1.
        stride: from one start to the next in samples, at least 1.

    Returns:
        int64 (n,), rising from 0, a stride apart; the last one lies closer if it must, so that its window ends with the
        clip. Where stride <= window every sample is covered. A clip no longer than a window has one, at 0.

    Raises:
        ValueError: a number below 1.
    """
    if min(samples, window, stride) < 1:
        raise ValueError(f"samples={samples}, window={window} and stride={stride} must each be at least 1")
    last = max(samples - window, 0)
    starts = np.arange(0, last + 1, stride, dtype=np.int64)
    return starts if starts[-1] == last else np.append(starts, np.int64(last))


def cut_windows(waveform: Waveform, starts: NDArray[np.int64], window: int) -> Waveform:
    """Cut windows out of a waveform.

    Args:
        waveform: float32 (samples,).
        starts: int64 (n,), samples, as from `window_starts`.
        window: length of a window in samples.

    Returns:
        float32 (n, window), a copy; row i equals waveform[starts[i] : starts[i] + window]. A waveform shorter than a
        window is one window of its own length: (n, samples).

    Raises:
        ValueError: a window would reach outside the waveform.
    """
    length = min(window, len(waveform))
    if len(starts) and not (starts.min() >= 0 and starts.max() + length <= len(waveform)):
        raise ValueError(f"windows of {length} samples at {starts.min()}..{starts.max()} leave {len(waveform)} samples")
    return np.lib.stride_tricks.sliding_window_view(waveform, length)[starts]


def is_silent(waveform: Waveform) -> bool:
    """Whether no sample reaches -80 dBFS; such a clip or window gets no embedding."""
    return peak_of(waveform) < SILENCE


def peak_of(samples: Waveform) -> float:
    """The largest magnitude; NaN when there is one."""
    return float(max(samples.max(), -samples.min())) if samples.size else 0.0
