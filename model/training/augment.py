"""Gain and noise, for each side of an example by itself, on the device where it lies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.audio import SAMPLE_RATE
from model.device import upload
from model.training.recipe import AugmentSettings

NOISES = ("white", "pink", "brown", "band", "transients")

_EXPONENTS = {"white": 0, "pink": 1, "brown": 2}
"""Power falls with frequency to this exponent: 0, 10 and 20 dB a decade."""

_FLATTEST_HZ = 20.0
"""Below, coloured noise stays as strong as here: brown noise would be all rumble."""


MOST_BURSTS = 10
"""Of a row of transients; two at least, each falling to a thousandth in 20 to 200 ms."""

CPU = torch.device("cpu")


def augment(waveforms: Tensor, settings: AugmentSettings, generator: torch.Generator) -> Tensor:
    """Change each waveform's level and put noise under some of them.

    Args:
        waveforms: float32, (n, samples) at 16 kHz.
        settings: how much.
        generator: every choice is drawn from it, on the CPU, so a seed means the same on every device; but the samples
            of noise under a card's waveforms are drawn there.

    Returns:
        float32, (n, samples), on the same device.
    """
    n, length = waveforms.shape
    gain_db = settings.gain_db * (2 * torch.rand(n, generator=generator) - 1)
    noisy = torch.rand(n, generator=generator) < settings.noise
    snr_db = torch.empty(n).uniform_(settings.loudest_snr_db, settings.quietest_snr_db, generator=generator)
    kinds = torch.randint(len(NOISES), (n,), generator=generator)
    rows = noisy.nonzero().flatten()
    device = waveforms.device
    under = noise([NOISES[kind] for kind in kinds[rows].tolist()], length, generator, device)
    level, gain, at = (upload(fact, device) for fact in (10 ** (-snr_db[rows] / 20), 10 ** (gain_db / 20), rows))
    rms = waveforms[at].square().mean(dim=1, keepdim=True).sqrt()
    return waveforms.index_add(0, at, under * level[:, None] * rms) * gain[:, None]


def noise(kinds: Sequence[str], length: int, generator: torch.Generator, device: torch.device = CPU) -> Tensor:
    """Noise of RMS 1, a row each.

    Args:
        kinds: of NOISES. Power is level for white, falls by 10 dB a decade for pink and 20 for brown (from 20 Hz on);
            band is white noise between two frequencies at least an octave apart; transients are a few decaying bursts.
        length: samples at 16 kHz, at least 2.
        generator: on the CPU.
        device: where the noise is made.

    Returns:
        float32, (kinds, length), on that device.
    """
    n = len(kinds)
    on_cpu = device.type == "cpu"
    white = torch.empty(n, length, device=device)
    exponents = torch.zeros(n, dtype=torch.int64)
    lowest, highest = torch.zeros(n), torch.full((n,), float(SAMPLE_RATE))
    starts, falls_s = torch.full((n, MOST_BURSTS), length), torch.ones(n, MOST_BURSTS)
    for row, kind in enumerate(kinds):
        if on_cpu:
            torch.randn(length, generator=generator, out=white[row])
        if kind == "transients":
            for burst in range(2 + int(torch.randint(MOST_BURSTS - 1, (1,), generator=generator))):
                starts[row, burst] = int(torch.randint(length, (1,), generator=generator))
                falls_s[row, burst] = 0.02 * 10 ** float(torch.rand(1, generator=generator))
        elif kind == "band":
            lowest[row] = 60.0 * 2 ** (6 * float(torch.rand(1, generator=generator)))  # 60 Hz to 3.8 kHz
            highest[row] = lowest[row] * 2 ** (1 + 2 * float(torch.rand(1, generator=generator)))
        else:
            exponents[row] = _EXPONENTS[kind]
    if not on_cpu:
        torch.cuda.manual_seed_all(int(torch.randint(2**62, (1,), generator=generator)))
        white.normal_()
    shaped = torch.empty_like(white)
    bursts, steady = (
        [row for row, kind in enumerate(kinds) if (kind == "transients") is burst] for burst in (True, False)
    )
    if steady:
        at, *facts = (
            upload(fact, device) for fact in (torch.tensor(steady), exponents[steady], lowest[steady], highest[steady])
        )
        shaped[at] = _coloured(white[at], *facts)
    if bursts:
        at, *facts = (upload(fact, device) for fact in (torch.tensor(bursts), starts[bursts], falls_s[bursts]))
        shaped[at] = white[at] * _envelopes(length, *facts)
    return shaped / shaped.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-9)


def _coloured(white: Tensor, exponents: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """float32 (n, samples), with power falling to the exponent (int64), between two frequencies, Hz; each (n,)."""
    length = white.shape[1]
    frequency = torch.fft.rfftfreq(length, 1 / SAMPLE_RATE, device=white.device)
    colours = frequency.clamp_min(_FLATTEST_HZ) ** (-torch.arange(3, device=white.device)[:, None] / 2)
    response = colours[exponents] * ((frequency >= lowest[:, None]) & (frequency <= highest[:, None]))
    response[:, 0] = 0
    coloured: Tensor = torch.fft.irfft(torch.fft.rfft(white) * response, n=length)
    return coloured


def _envelopes(length: int, starts: Tensor, falls_s: Tensor) -> Tensor:
    """Bursts, each falling to a thousandth in `falls_s` seconds from its first sample on: float32 (n, length).

    Args:
        length: samples; a burst that starts there is none.
        starts, falls_s: (n, bursts).
    """
    at = torch.arange(length, device=starts.device)
    rates = 6.9 / SAMPLE_RATE / falls_s
    envelope = torch.zeros(len(starts), length, device=starts.device)
    for start, rate in zip(starts.T[..., None], rates.T[..., None], strict=True):  # one by one: they would be large
        level = (start - at) * rate
        envelope += level.exp().masked_fill_(level > 0, 0.0)
    return envelope
