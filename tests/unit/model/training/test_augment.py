"""Noise has the colour of its name, and augmentation stays within what the recipe allows."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from model.audio import SAMPLE_RATE
from model.training.augment import LOWEST_HZ, NOISES, OCTAVES, augment, noise, tone
from model.training.recipe import AugmentSettings

SLOPE_DB = 0.5  # of a fit over two decades of 60 s of noise; what chance leaves
ROUNDING = 1e-5


def slope_db_a_decade(wave: torch.Tensor) -> float:
    """The slope of a waveform's power spectrum from 40 Hz to 4 kHz, by least squares over equal parts of the decade."""
    power = np.abs(np.fft.rfft(wave.numpy().astype(np.float64))) ** 2
    frequency = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    edges = np.geomspace(40, 4_000, 21)
    middle = np.sqrt(edges[:-1] * edges[1:])
    level = [power[(frequency >= low) & (frequency < high)].mean() for low, high in pairwise(edges)]
    return float(np.polyfit(np.log10(middle), 10 * np.log10(level), 1)[0])


@pytest.mark.parametrize(("kind", "slope"), [("white", 0.0), ("pink", -10.0), ("brown", -20.0)])
def test_noise_falls_as_its_colour_says(kind: str, slope: float) -> None:
    wave = noise([kind], 60 * SAMPLE_RATE, torch.Generator().manual_seed(0))[0]
    assert abs(slope_db_a_decade(wave) - slope) < SLOPE_DB


def test_band_noise_keeps_to_its_band() -> None:
    wave = noise(["band"], 10 * SAMPLE_RATE, torch.Generator().manual_seed(3))[0]
    power = torch.fft.rfft(wave).abs().square()
    heard = power > 1e-6 * power.max()
    frequency = torch.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)[heard]
    assert heard.float().mean() < 0.9
    assert 2 <= frequency.max() / frequency.min() <= 8.01, "one to three octaves, at most up to the end of the spectrum"


def test_transients_are_short_and_far_louder_than_what_lies_between() -> None:
    wave = noise(["transients"], 5 * SAMPLE_RATE, torch.Generator().manual_seed(0))[0]
    levels = wave.unfold(0, 160, 160).square().mean(dim=1)
    assert levels.max() > 100 * levels.median()


@pytest.mark.parametrize("kind", NOISES)
def test_noise_has_an_rms_of_one_and_repeats_with_its_seed(kind: str) -> None:
    first, again = (noise([kind], 32_000, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert abs(float(first.square().mean().sqrt()) - 1) < ROUNDING


def test_rows_of_noise_are_what_each_would_be_by_itself() -> None:
    together, one = (torch.Generator().manual_seed(6) for _ in range(2))
    rows = noise([*NOISES, "transients", "band"], 16_001, together)
    for row, kind in zip(rows, [*NOISES, "transients", "band"], strict=True):
        assert torch.allclose(row, noise([kind], 16_001, one)[0], atol=ROUNDING)


def test_gain_stays_within_its_limit_and_differs_from_row_to_row() -> None:
    waves = torch.full((200, 1_000), 0.1)
    louder = augment(waves, AugmentSettings(gain_db=6.0, noise=0.0), torch.Generator().manual_seed(0))
    gain_db = 20 * torch.log10(louder[:, 0] / 0.1)
    assert gain_db.abs().max() <= 6.0 + ROUNDING
    assert gain_db.min() < -5
    assert gain_db.max() > 5


def test_noise_lies_under_the_music_by_what_the_recipe_says() -> None:
    waves = torch.sin(torch.arange(16_000) / 10).repeat(100, 1)
    settings = AugmentSettings(gain_db=0.0, noise=1.0, loudest_snr_db=10.0, quietest_snr_db=40.0)
    under = augment(waves, settings, torch.Generator().manual_seed(0)) - waves
    snr_db = 10 * torch.log10(waves.square().mean(dim=1) / under.square().mean(dim=1))
    assert snr_db.min() >= 10 - 0.01
    assert snr_db.max() <= 40 + 0.01


def test_an_equaliser_has_bands_of_its_deviation_and_half_are_cut_high_or_low() -> None:
    length = 8_000
    response_db = 20 * torch.log10(tone(400, 6.0, length, torch.Generator().manual_seed(0)))
    assert response_db.shape == (400, length // 2 + 1)
    hertz = torch.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    middle = response_db[:, (hertz - LOWEST_HZ * 2 ** (OCTAVES / 2)).abs().argmin()]  # 500 Hz: no filter cuts there
    assert abs(float(middle.mean())) < 1
    assert abs(float(middle.std()) - 6) < 0.7
    for end in (response_db[:, 1], response_db[:, -1]):
        assert 0.1 < float((end < -18).float().mean()) < 0.3, "a quarter is cut there, by 12 to 24 dB an octave"


def test_a_bent_waveform_is_its_response_and_the_others_stay() -> None:
    waves = torch.sin(torch.arange(16_000) * 2 * torch.pi * 1_000 / SAMPLE_RATE).repeat(200, 1)
    settings = AugmentSettings(gain_db=0.0, noise=0.0, equalised=0.6, equaliser_db=6.0)
    bent = augment(waves, settings, torch.Generator().manual_seed(0))
    level_db = 20 * torch.log10(bent.square().mean(dim=1).sqrt() / waves[0].square().mean().sqrt())
    same = (bent == waves).all(dim=1)
    assert 0.3 < float(same.float().mean()) < 0.5
    assert 4 < float(level_db[~same].std()) < 8
    one = bent[~same][0]
    torch.testing.assert_close(one, waves[0] * (one @ waves[0] / waves[0].square().sum()), atol=0.01, rtol=0)


def test_of_a_gated_waveform_one_stretch_within_its_own_length_sounds() -> None:
    waves, samples = torch.ones(200, 32_000), torch.tensor([32_000, 8_000] * 100)
    settings = AugmentSettings(gain_db=0.0, noise=0.0, gated=0.5)
    gated = augment(waves, settings, torch.Generator().manual_seed(0), samples)
    cut = (gated != waves).any(dim=1)
    assert 0.4 < float(cut.float().mean()) < 0.6
    for wave, length in zip(gated[cut], samples[cut].tolist(), strict=True):
        (sounding,) = wave.nonzero(as_tuple=True)
        assert int(sounding[-1]) < length
        assert (sounding.diff() == 1).all()
        assert 0.24 < len(sounding) / length < 0.76
        assert float(wave.diff().abs().max()) < 0.01, "it fades in and out"


def test_saturation_takes_peaks_and_leaves_what_is_quiet() -> None:
    waves = torch.full((100, 1_000), 0.01)
    waves[:, 500] = 1.0
    driven = augment(waves, AugmentSettings(gain_db=0.0, noise=0.0, saturated=1.0), torch.Generator().manual_seed(0))
    assert driven[:, 500].max() < 0.5
    assert driven[:, 500].min() > 0.01
    torch.testing.assert_close(driven[:, 0], waves[:, 0], rtol=0.1, atol=0)
    silence = augment(torch.zeros(3, 100), AugmentSettings(noise=0, saturated=1.0), torch.Generator().manual_seed(0))
    assert not silence.any()
