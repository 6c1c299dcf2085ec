"""Gain, noise, tone and saturation, for each side of an example by itself, on the device where it lies."""

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

OCTAVES = 8
"""From the lowest band of the equaliser to the highest."""

LOWEST_HZ = 31.25
"""Of the equaliser's bands."""

MOST_BURSTS = 10
"""Of a row of transients; two at least, each falling to a thousandth in 20 to 200 ms."""

CPU = torch.device("cpu")


def augment(
    waveforms: Tensor, settings: AugmentSettings, generator: torch.Generator, samples: Tensor | None = None
) -> Tensor:
    """Change each waveform's level, put noise under some of them, bend some by an equaliser, drive some into a limit,
    let only a stretch of some sound.

    Args:
        waveforms: float32, (n, samples) at 16 kHz.
        settings: how much.
        generator: every choice is drawn from it, on the CPU, so a seed means the same on every device; but the samples
            of noise under a card's waveforms are drawn there.
        samples: int64, (n,), of each waveform alone, on the CPU; None: all.

    Returns:
        float32, (n, samples), on the same device.
    """
    n, length = waveforms.shape
    device = waveforms.device

    def some(part: float) -> tuple[Tensor, Tensor]:
        """Rows drawn, on the CPU and on the device."""
        rows = (torch.rand(n, generator=generator) < part).nonzero().flatten()
        return rows, upload(rows, device)

    gain_db = settings.gain_db * (2 * torch.rand(n, generator=generator) - 1)
    rows, at = some(settings.noise)
    snr_db = torch.empty(n).uniform_(settings.loudest_snr_db, settings.quietest_snr_db, generator=generator)
    kinds = torch.randint(len(NOISES), (n,), generator=generator)
    under = noise([NOISES[kind] for kind in kinds[rows].tolist()], length, generator, device)
    level, gain = (upload(fact, device) for fact in (10 ** (-snr_db[rows] / 20), 10 ** (gain_db / 20)))
    rms = waveforms[at].square().mean(dim=1, keepdim=True).sqrt()
    heard = waveforms.index_add(0, at, under * level[:, None] * rms) * gain[:, None]
    if settings.equalised:
        rows, at = some(settings.equalised)
        response = upload(tone(len(rows), settings.equaliser_db, length, generator), device)
        heard = heard.index_copy(0, at, torch.fft.irfft(torch.fft.rfft(heard[at]) * response, n=length))
    if settings.saturated:
        rows, at = some(settings.saturated)
        times_rms = upload(2 * 10 ** torch.empty(len(rows), 1).uniform_(-0.6, 0.6, generator=generator), device)
        limit = heard[at].square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6) * times_rms
        heard = heard.index_copy(0, at, torch.tanh(heard[at] / limit) * limit)
    if settings.gated:
        rows, at = some(settings.gated)
        lengths = torch.full((n,), length) if samples is None else samples
        heard = heard.index_copy(0, at, heard[at] * upload(gates(lengths[rows], length, generator), device))
    return heard


def gates(samples: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """For waveforms of so many samples (n,): float32 (n, length), one for a stretch, a quarter of it to three quarters,
    with ramps of 10 ms, else zero."""
    lasts = torch.empty(len(samples), 1).uniform_(0.25, 0.75, generator=generator) * samples[:, None]
    begins = torch.rand(len(samples), 1, generator=generator) * (samples[:, None] - lasts)
    at, ramp = torch.arange(length), 0.01 * SAMPLE_RATE
    return ((at - begins) / ramp).clamp(0, 1) * ((begins + lasts - at) / ramp).clamp(0, 1)


def tone(count: int, deviation_db: float, length: int, generator: torch.Generator) -> Tensor:
    """What an equaliser does to each frequency: a line through bands an octave apart; half cut what lies high or low.

    Args:
        count: of responses.
        deviation_db: of the bands' gains.
        length: samples of the waveforms.
        generator: all is drawn from it.

    Returns:
        float32, (count, length // 2 + 1), gains at the frequencies of an FFT.
    """
    hertz = torch.fft.rfftfreq(length, 1 / SAMPLE_RATE).clamp_min(LOWEST_HZ)
    octave = torch.log2(hertz / LOWEST_HZ).clamp_max(OCTAVES - 0.01)  # (length // 2 + 1,)
    bands = deviation_db * torch.randn(count, OCTAVES + 1, generator=generator)
    below = octave.floor().long()
    gain_db = torch.lerp(bands[:, below], bands[:, below + 1], octave - below)
    kind = torch.randint(4, (count, 1), generator=generator)  # cuts low, cuts high, cuts nothing twice
    slope_db = 12 + 12 * torch.rand(count, 1, generator=generator)  # an octave
    lowest, highest = (torch.empty(count, 1).uniform_(*ends, generator=generator) for ends in ((1.0, 4.0), (4.5, 7.0)))
    beyond = (kind == 0) * (lowest - octave).clamp_min(0) + (kind == 1) * (octave - highest).clamp_min(0)
    return 10 ** ((gain_db - slope_db * beyond) / 20)


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
