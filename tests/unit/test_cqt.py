"""Facts of the decibel-scaled CQT."""

import numpy as np
import pytest
import torch

from model.audio import SAMPLE_RATE, TOO_SHORT
from model.cqt import ScaledCQT, scale_decibels

ROUNDING = 1e-4  # of the scaled range: the logarithm of a float32 magnitude of a quiet bin
A440_BIN = 57  # 12 log2(440 / 16.35) = 57.0
EDGE_FRAMES = 5  # at the ends a kernel sees the tone reflected, and its phase broken


@pytest.fixture(scope="module")
def cqt() -> ScaledCQT:
    return ScaledCQT(
        sample_rate=SAMPLE_RATE, hop=160, lowest_hz=16.35, bins=96, bins_per_octave=12, dynamic_range_db=80.0
    )


def tone(frequency: float, seconds: float = 2.0, amplitude: float = 0.5) -> torch.Tensor:
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return torch.from_numpy(amplitude * np.sin(2 * np.pi * frequency * time)).float()[None]


def loudest_bins(cqt: ScaledCQT, clip: torch.Tensor) -> torch.Tensor:
    return cqt(clip)[0, :, EDGE_FRAMES:-EDGE_FRAMES].argmax(dim=0)


def test_cqt_puts_a440_in_bin_57(cqt: ScaledCQT) -> None:
    assert (loudest_bins(cqt, tone(440.0)) == A440_BIN).all()


def test_cqt_puts_an_octave_twelve_bins_higher(cqt: ScaledCQT) -> None:
    assert (loudest_bins(cqt, tone(880.0)) == A440_BIN + 12).all()


@pytest.mark.parametrize("samples", [16_385, 16_479, 16_480, 80_000, 116_800])
def test_cqt_has_a_frame_every_hop_and_one_more(cqt: ScaledCQT, samples: int) -> None:
    assert cqt(torch.zeros(1, samples)).shape == (1, 96, samples // 160 + 1)


def test_a_clip_must_be_longer_than_the_reflection(cqt: ScaledCQT) -> None:
    assert cqt.padding == TOO_SHORT


def test_floor_lies_80_db_under_the_clips_own_maximum(cqt: ScaledCQT) -> None:
    scaled = cqt(tone(440.0))
    assert scaled.max() - scaled.min() == pytest.approx(1.0, abs=ROUNDING)


def test_ten_times_louder_is_a_quarter_of_the_range_higher(cqt: ScaledCQT) -> None:
    quiet, loud = cqt(tone(440.0, amplitude=0.05)), cqt(tone(440.0, amplitude=0.5))
    assert (loud - quiet - 20 / 80).abs().max() < ROUNDING


def test_silence_is_one_finite_constant(cqt: ScaledCQT) -> None:
    assert torch.equal(cqt(torch.zeros(1, 20_000)), torch.full((1, 96, 126), -1.5))  # -200 dB of an 80 dB range


def test_a_quiet_clip_keeps_its_own_floor_beside_a_loud_one() -> None:
    quiet, loud = torch.tensor([[[1e-6, 1e-5]]]), torch.tensor([[[1.0, 1e-9]]])
    alone = scale_decibels(quiet, 80.0)
    together = scale_decibels(torch.cat([quiet, loud]), 80.0)
    assert torch.equal(together[:1], alone)
    assert together[1, 0].tolist() == [1.0, 0.0]


def test_kernels_are_no_weights_and_are_never_saved(cqt: ScaledCQT) -> None:
    assert cqt.state_dict() == {}
    assert list(cqt.parameters()) == []
