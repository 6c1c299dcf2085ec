"""What is heard in a clip, from its CQT: a steady tempo with its beats, and whether it plays notes.

Tempi are heard in sequenced music, which keeps its tempo: what drifts is said to have none.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from model.audio.grid import LOWEST_BPM, Grid
from model.audio.windows import SAMPLE_RATE, Waveform
from model.cqt import ScaledCQT
from model.phalar import PhalarConfig

MULTIPLES = 16
"""A beat's whole multiples at which onsets must meet again: they tell tempi apart that one beat could not."""

LEAST_BEATS = 8
"""A clip that is shorter than so many beats of the slowest tempo tells no tempo."""

TEMPO_STEP = 2.5e-4
"""Candidates lie so far apart, as a share: over 16 beats that is two milliseconds."""

LEAST_STEADY = 0.05
"""The mean correlation at a tempo's multiples that counts as steady: noise reaches 0.02, songs 0.06 to 0.87."""

PHASE_STEP_S = 1e-3

NEIGHBOURS = 3
"""A bin is compared with so many on either side of it."""

LEAST_CONTRAST_DB = 15.0
"""How far the strongest bin stands above its neighbours, usually, where notes are played: told apart so, 95 % of 330
rendered stems are right."""


@lru_cache(maxsize=1)
def _cqt() -> ScaledCQT:
    config = PhalarConfig()
    return ScaledCQT(
        config.sample_rate, config.hop, config.lowest_hz, config.bins, config.bins_per_octave, config.dynamic_range_db
    )


def onset_strength(waveform: Waveform) -> NDArray[np.float64]:
    """How much louder the bins became, frame by frame, about zero: (frames,), a frame being the CQT's hop."""
    with torch.inference_mode():
        decibels = _cqt()(torch.from_numpy(np.ascontiguousarray(waveform))[None])[0]
        rise = torch.clamp(decibels[:, 1:] - decibels[:, :-1], min=0).mean(dim=0).double().numpy()
    rise = np.concatenate([[0.0], rise])
    return np.asarray(rise - rise.mean())


def hear_grid(waveform: Waveform) -> Grid | None:
    """The beats of a clip of steady tempo.

    Args:
        waveform: float32 (samples,) at 16 kHz.

    Returns:
        A grid over the whole clip, source "heard"; None for a clip that is too short, or has no steady tempo.
        Half and double tempo are one, two thirds are not: there it may err.
    """
    frame_s = PhalarConfig().hop / SAMPLE_RATE
    slowest = 60.0 / LOWEST_BPM / frame_s  # frames
    onsets = onset_strength(waveform) if len(waveform) > _cqt().padding else np.zeros(0)
    if len(onsets) < LEAST_BEATS * slowest or not onsets.any():
        return None
    periods = slowest / 2 * np.exp(np.arange(0.0, np.log(2.0), TEMPO_STEP))
    agreement = _agreement(onsets, periods)
    best = int(np.argmax(agreement))
    if agreement[best] < LEAST_STEADY:
        return None
    period = float(periods[best])
    return Grid((_phase(onsets, period, frame_s) + np.arange(len(onsets) / period) * period) * frame_s, "heard")


def is_pitched(waveform: Waveform) -> bool:
    """Whether a clip plays notes, so that another key would change it, rather than drums.

    Args:
        waveform: float32 (samples,) at 16 kHz, longer than the CQT's padding.
    """
    with torch.inference_mode():
        clip = torch.from_numpy(np.ascontiguousarray(waveform))[None]
        magnitude = _cqt().magnitude(clip)[0, _cqt().settings.bins_per_octave * 2 :].double()  # from 65 Hz on
    decibels = 20 * torch.log10(magnitude.clamp_min(1e-10))
    decibels = torch.maximum(decibels, decibels.max() - 60.0)
    around = torch.nn.functional.pad(decibels.T[:, None], (NEIGHBOURS, NEIGHBOURS), mode="replicate")[:, 0]
    middle = around.unfold(1, 2 * NEIGHBOURS + 1, 1).median(dim=2).values.T  # (bins, frames)
    contrast = (decibels - middle).amax(dim=0)
    power = magnitude.square().sum(dim=0)
    return float((contrast * power).sum() / power.sum().clamp_min(1e-20)) > LEAST_CONTRAST_DB


def _agreement(onsets: NDArray[np.float64], periods: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean correlation of the onsets with themselves at the multiples of each period, (periods,)."""
    n = len(onsets)
    spectrum = np.fft.rfft(onsets, n=2 * n)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[:n]
    correlation = correlation / np.arange(n, 0, -1)  # by the overlap
    correlation /= correlation[0]
    multiples = np.arange(1, MULTIPLES + 1)
    lags = periods[:, None] * multiples
    inside = lags < 0.75 * n  # further out few onsets overlap
    at = np.interp(lags, np.arange(n), correlation)
    return np.asarray((at * inside).sum(axis=1) / inside.sum(axis=1))


def _phase(onsets: NDArray[np.float64], period: float, frame_s: float) -> float:
    """The first beat, frames: where a comb of this period gathers most."""
    phases = np.arange(0.0, period, PHASE_STEP_S / frame_s)
    teeth = phases[:, None] + np.arange(len(onsets) / period) * period
    gathered = np.interp(teeth, np.arange(len(onsets)), onsets, right=0.0).sum(axis=1)
    return float(phases[int(np.argmax(gathered))])
