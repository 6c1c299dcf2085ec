"""Laws of the model, over many shapes and many signals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.phalar import Phalar, untrained_phalar
from model.pooling import spectral_pool

EMBEDDING_TOLERANCE = 1e-5  # another batch size is another order of float32 sums
NORM_TOLERANCE = 1e-5
SCORE_TOLERANCE = 1e-5
ROLL_TOLERANCE = 1e-4  # float32 phasors of mean magnitude 1, single ones larger
CQT_TOLERANCE = 5e-4  # of the scaled range: a bin near the floor is a rounding error of a sum over 16,000 taps

SLOW = settings(max_examples=12, deadline=None)
QUICK = settings(max_examples=60, deadline=None)

seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def phalar() -> Phalar:
    return untrained_phalar(0)


def music(seed: int, samples: int) -> np.ndarray:
    """A few decaying tones and some noise at a random level, float32 (samples,)."""
    generator = np.random.default_rng(seed)
    time = np.arange(samples) / 16_000
    waveform = 0.01 * generator.standard_normal(samples)
    for frequency, start in zip(generator.uniform(30, 4000, 5), generator.uniform(0, 0.5, 5), strict=True):
        waveform += np.sin(2 * np.pi * frequency * time) * np.exp(-3 * np.abs(time - start))
    return (10 ** generator.uniform(-3, 0) * waveform / np.abs(waveform).max()).astype(np.float32)


@SLOW
@given(seed=seeds, others=st.integers(1, 4), place=st.integers(0, 4), samples=st.integers(16_385, 40_000))
def test_embedding_ignores_the_rest_of_the_batch(
    phalar: Phalar, seed: int, others: int, place: int, samples: int
) -> None:
    clip = music(seed, samples)
    batch = [music(seed + 1 + other, samples) for other in range(others)]
    place = min(place, others)
    batch.insert(place, clip)
    together = phalar.embed(np.stack(batch))[place]
    alone = phalar.embed(clip[None])[0]
    assert (together - alone).abs().max() < EMBEDDING_TOLERANCE


@SLOW
@given(seed=seeds, samples=st.integers(16_385, 60_000), level_db=st.floats(-200, 40))
def test_embedding_has_unit_norm_at_any_length_and_level(
    phalar: Phalar, seed: int, samples: int, level_db: float
) -> None:
    embedding = phalar.embed(np.float32(10 ** (level_db / 20)) * music(seed, samples)[None])
    assert abs(embedding.norm().item() - 1) < NORM_TOLERANCE


@SLOW
@given(seed=seeds, gain_db=st.floats(-60, 20))
def test_gain_only_shifts_the_cqt(phalar: Phalar, seed: int, gain_db: float) -> None:
    clip = torch.from_numpy(music(seed, 20_000))[None]
    shifted = phalar.cqt(clip * 10 ** (gain_db / 20))
    assert (shifted - phalar.cqt(clip) - gain_db / 80).abs().max() < CQT_TOLERANCE


@QUICK
@given(seed=seeds, n=st.integers(1, 6), m=st.integers(1, 6))
def test_score_is_symmetric(phalar: Phalar, seed: int, n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 512, dtype=torch.complex64, generator=generator)
    y = torch.randn(m, 512, dtype=torch.complex64, generator=generator)
    assert (phalar.score(x, y) - phalar.score(y, x).T).abs().max() < SCORE_TOLERANCE


@QUICK
@given(seed=seeds, angle=st.floats(-np.pi, np.pi))
def test_score_ignores_a_rotation_of_both_sides(phalar: Phalar, seed: int, angle: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 512, dtype=torch.complex64, generator=generator)
    y = torch.randn(3, 512, dtype=torch.complex64, generator=generator)
    turn = torch.polar(torch.tensor(1.0), torch.tensor(angle))
    assert (phalar.score(x * turn, y * turn) - phalar.score(x, y)).abs().max() < SCORE_TOLERANCE


@QUICK
@given(seed=seeds, steps=st.integers(19, 64), roll=st.integers(-64, 64), channels=st.integers(1, 8))
def test_pooling_turns_a_roll_into_a_rotation(seed: int, steps: int, roll: int, channels: int) -> None:
    features = torch.randn(2, channels, steps, generator=torch.Generator().manual_seed(seed))
    component = torch.arange(1, 9)
    rotation = torch.exp(-2j * torch.pi * component * roll / steps)
    rolled = spectral_pool(features.roll(roll, dims=-1), 8)
    assert (rolled - spectral_pool(features, 8) * rotation).abs().max() < ROLL_TOLERANCE


@QUICK
@given(seed=seeds, steps=st.integers(19, 64), gain=st.floats(1e-2, 1e3))
def test_pooled_phasors_have_mean_magnitude_one_at_any_gain(seed: int, steps: int, gain: float) -> None:
    features = gain * torch.randn(2, 5, steps, generator=torch.Generator().manual_seed(seed))
    assert (spectral_pool(features, 8).abs().mean(dim=(1, 2)) - 1).abs().max() < 1e-3  # 1e-6 under a mean of 1e-2
