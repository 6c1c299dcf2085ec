"""What is heard in a clip, from its CQT: a steady tempo with its beats, and whether it plays notes.

Tempi are heard in sequenced music, which keeps its tempo: what drifts is said to have none.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from model.audio.grid import LOWEST_BPM, Grid
from model.audio.harmony import HEARD_PROFILES, key_fits, key_name
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

SAID_WITHIN = 0.005
"""How far a said tempo may be off, as a share: names and tags hold whole numbers."""

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


def hear_grid(waveform: Waveform, tempo_bpm: float | None = None) -> Grid | None:
    """The beats of a clip of steady tempo.

    Args:
        waveform: float32 (samples,) at 16 kHz.
        tempo_bpm: that somebody said; then only its beats are heard for, within SAID_WITHIN of it. None: any.

    Returns:
        A grid over the whole clip, source "heard"; None for a clip that is too short, or has no steady tempo.
        Half and double tempo are one, two thirds are not: there it may err.
    """
    frame_s = PhalarConfig().hop / SAMPLE_RATE
    slowest = 60.0 / LOWEST_BPM / frame_s  # frames
    onsets = onset_strength(waveform) if len(waveform) > _cqt().padding else np.zeros(0)
    if not onsets.any() or (tempo_bpm is None and len(onsets) < LEAST_BEATS * slowest):
        return None
    periods = slowest / 2 * np.exp(np.arange(0.0, np.log(2.0), TEMPO_STEP))
    if tempo_bpm is not None:
        said = 60.0 / tempo_bpm / frame_s
        said *= 2.0 ** -np.floor(np.log2(said / (slowest / 2)))
        periods = said * np.exp(np.arange(-SAID_WITHIN, SAID_WITHIN, TEMPO_STEP))
    agreement = _agreement(onsets, periods)
    best = int(np.argmax(agreement))
    if tempo_bpm is None and agreement[best] < LEAST_STEADY:
        return None
    period = float(periods[best])
    if len(onsets) < 2 * period:
        return None
    beats = (_phase(onsets, period, frame_s) + np.arange(len(onsets) / period) * period) * frame_s
    return Grid(beats, "heard", float(np.clip(agreement[best], 0.0, 1.0)))


def hear_key(waveform: Waveform) -> tuple[str, float] | None:
    """The key of a clip that plays notes, and how far it is ahead of the next that is not its relative: 0 to 1.

    Args:
        waveform: float32 (samples,) at 16 kHz, longer than the CQT's padding.

    Returns:
        Such as ("F# minor", 0.2); None where every pitch class sounds alike.
    """
    with torch.inference_mode():
        magnitude = _cqt().magnitude(torch.from_numpy(np.ascontiguousarray(waveform))[None])[0].double()
    # Notes are peaks among the bins; each moment counts alike, however loud. Bins begin with C.
    peaks = torch.zeros_like(magnitude)
    inner = magnitude[1:-1]
    peaks[1:-1] = torch.where((inner > magnitude[:-2]) & (inner > magnitude[2:]), inner, 0.0)
    level = peaks.sum(dim=0)
    notes = peaks / (level + 1e-3 * level.max()).clamp_min(1e-20)
    chroma = notes[: len(notes) // 12 * 12].sum(dim=1).reshape(-1, 12).sum(dim=0).numpy()
    fits = key_fits(chroma, HEARD_PROFILES)
    if not fits:
        return None
    tonic, mode = max(fits, key=lambda key: fits[key])
    relative = ((tonic + (9 if mode == "major" else 3)) % 12, "minor" if mode == "major" else "major")
    others = max(fit for key, fit in fits.items() if key not in ((tonic, mode), relative))
    return key_name(tonic, mode), float(np.clip(fits[tonic, mode] - others, 0.0, 1.0))


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
