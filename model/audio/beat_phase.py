"""Where in a steady tempo its beats fall: learnt from renderings, whose beats are known.

Onsets alone tell a beat from its half and quarters in 97 of 100 mixes of renderings, 84 of real songs. What
also tells them: basses and chords change on beats. `python -m benchmarks.beat_phase` learns the weights and measures.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Curves = NDArray[np.float64]

PHASES = 16
"""Of a beat, at which the curves are read."""

LOW_BINS = (slice(12, 24), slice(24, 36))
"""The octaves from 33 and from 65 Hz on: bass and bass drum."""

LOW_RISE_FRAMES = 6

CHORD_BINS = slice(36, None)

CHORD_FRAMES = 12
"""What sounds so long before a moment is compared with what sounds so long after it."""

QUARTERS = 4
"""Of a beat, that may be the beat."""

LEARNT = Path(__file__).with_suffix(".json")
"""Of each curve at each sixteenth of a beat, from the beat on: what it adds where it lies above its mean."""


def beat_curves(onsets: NDArray[np.float64], decibels: Tensor) -> Curves:
    """What tells beats, frame by frame: onsets, rises in either octave of the bass, changes of chord.

    Args:
        onsets: float64 (frames,), see `Hearing.onset_strength`.
        decibels: float32 (bins, frames), of the CQT; at their lowest a bin is silent.

    Returns:
        float64 (4, frames), each of mean 0 and deviation 1, or 0 where it does not change.
    """
    frames = decibels.shape[1]
    curves = np.zeros((4, frames))
    curves[0] = onsets
    if frames > 2 * CHORD_FRAMES:
        curves[1:3, LOW_RISE_FRAMES:] = [rises(decibels[octave], LOW_RISE_FRAMES) for octave in LOW_BINS]
        chords = functional.normalize(decibels[CHORD_BINS] - decibels.min(), dim=0)
        held = functional.avg_pool1d(chords, CHORD_FRAMES, stride=1)  # from each frame on
        alike = functional.cosine_similarity(held[:, :-CHORD_FRAMES], held[:, CHORD_FRAMES:], dim=0)
        curves[3, CHORD_FRAMES:][: len(alike)] = 1 - alike.double().numpy()
    curves -= curves.mean(axis=1, keepdims=True)
    deviation = curves.std(axis=1, keepdims=True)
    return np.asarray(np.divide(curves, deviation, out=np.zeros_like(curves), where=deviation > 1e-9))


def rises(decibels: Tensor, frames: int) -> NDArray[np.float64]:
    """How much louder the bins are than so many frames ago, on average: float64 (all but so many frames,).

    A bin is compared with the loudest of its neighbours then, so that vibrato and glides are no onsets.

    Args:
        decibels: float32 (bins, frames).
        frames: fewer than there are.
    """
    before = functional.max_pool2d(decibels[None, :, :-frames], (3, 1), stride=1, padding=(1, 0))[0]
    return np.asarray(torch.clamp(decibels[:, frames:] - before, min=0).mean(dim=0).double().numpy())


def read_at_phases(curves: Curves, first: float, period: float) -> Curves:
    """The mean of each curve at each phase of all beats: float64 (curves, PHASES).

    Args:
        curves: float64 (curves, frames).
        first: frame of phase 0.
        period: frames of a beat.
    """
    frames = curves.shape[1]
    at = first + np.arange(PHASES)[:, None] / PHASES * period + np.arange(frames / period) * period
    return np.array([np.interp(at, np.arange(frames), curve, right=0.0).mean(axis=1) for curve in curves])


def by_quarter(read: Curves) -> Curves:
    """The same, seen from each quarter of a beat: (QUARTERS, curves, PHASES)."""
    return np.stack([np.roll(read, -quarter * PHASES // QUARTERS, axis=-1) for quarter in range(QUARTERS)])


def beat_quarter(curves: Curves, first: float, period: float) -> int:
    """How many quarters of a beat after `first` the beats fall; see `read_at_phases`."""
    read = by_quarter(read_at_phases(curves, first, period))
    return int(np.argmax((read * _weights()).sum(axis=(1, 2))))


@cache
def _weights() -> Curves:
    return np.array(json.loads(LEARNT.read_text(encoding="utf-8")))
