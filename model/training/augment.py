"""Gain and noise, for each side of an example by itself, on the device where it lies."""

from __future__ import annotations

import torch
from torch import Tensor

from model.audio import SAMPLE_RATE
from model.training.recipe import AugmentSettings

NOISES = ("white", "pink", "brown", "band", "transients")

_EXPONENTS = {"white": 0.0, "pink": 1.0, "brown": 2.0}
"""Power falls with frequency to this exponent: 0, 10 and 20 dB a decade."""

_FLATTEST_HZ = 20.0
"""Below, coloured noise stays as strong as here: brown noise would be all rumble."""


def augment(waveforms: Tensor, settings: AugmentSettings, generator: torch.Generator) -> Tensor:
    """Change each waveform's level and put noise under some of them.

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
    rms = waveforms.square().mean(dim=1, keepdim=True).sqrt()
    level = 10 ** (-snr_db / 20)
    gain = 10 ** (gain_db / 20)
    device = waveforms.device
    return (waveforms + under.to(device) * level.to(device)[:, None] * rms) * gain.to(device)[:, None]


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
