"""Gain and noise, for each side of an example by itself, on the device where it lies."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from model.audio import SAMPLE_RATE
from model.training.recipe import AugmentSettings

NOISES = ("white", "pink", "brown", "band", "transients")

_EXPONENTS = {"white": 0.0, "pink": 1.0, "brown": 2.0}
"""Power falls with frequency to this exponent: 0, 10 and 20 dB a decade."""

_FLATTEST_HZ = 20.0
"""Below, coloured noise stays as strong as here: brown noise would be all rumble."""


_OCTAVES_FROM_HZ = 31.25
"""The lowest knot of the equaliser; the others lie an octave apart, up to the Nyquist frequency."""


def augment(waveforms: Tensor, settings: AugmentSettings, generator: torch.Generator) -> Tensor:
    """Change each waveform's tone and level and put noise under some of them.

    Args:
        waveforms: float32, (n, samples) at 16 kHz.
        settings: how much.
        generator: every choice is drawn from it, on the CPU, so a seed means the same on every device.

    Returns:
        float32, (n, samples), on the same device.
    """
    n, length = waveforms.shape
    gain_db = settings.gain_db * (2 * torch.rand(n, generator=generator) - 1)
    noisy = torch.rand(n, generator=generator) < settings.noise
    snr_db = torch.empty(n).uniform_(settings.loudest_snr_db, settings.quietest_snr_db, generator=generator)
    kinds = torch.randint(len(NOISES), (n,), generator=generator)
    under = torch.zeros(n, length)
    for row in torch.nonzero(noisy).flatten().tolist():
        under[row] = noise(NOISES[int(kinds[row])], length, generator)
    if settings.equaliser_db:
        waveforms = equalise(waveforms, settings.equaliser_db, generator)
    rms = waveforms.square().mean(dim=1, keepdim=True).sqrt()
    level = 10 ** (-snr_db / 20)
    gain = 10 ** (gain_db / 20)
    device = waveforms.device
    return (waveforms + under.to(device) * level.to(device)[:, None] * rms) * gain.to(device)[:, None]


def equalise(waveforms: Tensor, most_db: float, generator: torch.Generator) -> Tensor:
    """Filter each waveform by itself: another gain for each octave, smooth between them, without delay.

    Args:
        waveforms: float32, (n, samples) at 16 kHz.
        most_db: an octave is raised or lowered by at most so much.
        generator: on the CPU.

    Returns:
        float32, (n, samples), on the same device.
    """
    n, length = waveforms.shape
    frequency = torch.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    octaves = round(math.log2(SAMPLE_RATE / 2 / _OCTAVES_FROM_HZ))
    gains_db = most_db * (2 * torch.rand(n, octaves + 1, generator=generator) - 1)
    position = (frequency / _OCTAVES_FROM_HZ).clamp_min(1e-9).log2().clamp(0, octaves)
    below = position.floor().clamp_max(octaves - 1).long()
    part = position - below
    curve_db = gains_db[:, below] * (1 - part) + gains_db[:, below + 1] * part  # (n, frequencies)
    response = (10 ** (curve_db / 20)).to(waveforms.device)
    filtered: Tensor = torch.fft.irfft(torch.fft.rfft(waveforms) * response, n=length)
    return filtered


def samples_at_speed(length: int, semitones: float, rng: np.random.Generator) -> int:
    """How many samples become `length` when they are played faster or slower by up to so many semitones.

    One speed a batch: were each pair out of tune by itself, its tuning alone would tell it from the others.
    """
    if not semitones:
        return length
    return 2 * round(length / 2 * 2 ** (float(rng.uniform(-semitones, semitones)) / 12))


def played_at(waveforms: Tensor, length: int) -> Tensor:
    """The same sound in another number of samples: faster and higher in fewer, slower and lower in more.

    Args:
        waveforms: float32, (n, samples).
        length: samples wanted, even.

    Returns:
        float32, (n, length): what lies below the lower of both Nyquist frequencies, each clip taken as periodic.
    """
    given = waveforms.shape[1]
    if given == length:
        return waveforms
    spectrum = torch.fft.rfft(waveforms)[:, : length // 2]
    played: Tensor = torch.fft.irfft(spectrum, n=length) * (length / given)
    return played


def noise(kind: str, length: int, generator: torch.Generator) -> Tensor:
    """Noise of RMS 1.

    Args:
        kind: of NOISES. Power is level for white, falls by 10 dB a decade for pink and 20 for brown (from 20 Hz on);
            band is white noise between two frequencies at least an octave apart; transients are a few decaying bursts.
        length: samples at 16 kHz, at least 2.
        generator: on the CPU.

    Returns:
        float32, (length,).
    """
    white = torch.randn(length, generator=generator)
    if kind == "transients":
        shaped = white * _bursts(length, generator)
    else:
        frequency = torch.fft.rfftfreq(length, 1 / SAMPLE_RATE)
        if kind == "band":
            low = 60.0 * 2 ** (6 * float(torch.rand(1, generator=generator)))  # 60 Hz to 3.8 kHz
            high = low * 2 ** (1 + 2 * float(torch.rand(1, generator=generator)))
            response = ((frequency >= low) & (frequency <= high)).float()
        else:
            response = frequency.clamp_min(_FLATTEST_HZ) ** (-_EXPONENTS[kind] / 2)
        response[0] = 0
        shaped = torch.fft.irfft(torch.fft.rfft(white) * response, n=length)
    return shaped / shaped.square().mean().sqrt().clamp_min(1e-9)


def _bursts(length: int, generator: torch.Generator) -> Tensor:
    """An envelope of two to ten bursts, each falling to a thousandth in 20 to 200 ms; float32 (length,)."""
    envelope = torch.zeros(length)
    for _ in range(2 + int(torch.randint(9, (1,), generator=generator))):
        start = int(torch.randint(length, (1,), generator=generator))
        fall_s = 0.02 * 10 ** float(torch.rand(1, generator=generator))
        t = torch.arange(length - start) / SAMPLE_RATE
        envelope[start:] += torch.exp(-6.9 * t / fall_s)
    return envelope
