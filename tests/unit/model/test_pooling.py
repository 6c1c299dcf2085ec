"""Facts of the learned spectral pooling."""

import numpy as np
import pytest
import torch

from model.pooling import SpectralPooling, least_steps, pad_steps, spectral_pool

ROUNDING = 1e-5  # a Fourier transform of some tens of float32 steps


def test_padding_goes_on_both_sides_and_the_odd_zero_goes_right() -> None:
    padded = pad_steps(torch.ones(1, 1, 16), 8)
    assert padded.shape == (1, 1, 19)
    assert padded[0, 0].tolist() == [0.0] + [1.0] * 16 + [0.0] * 2


def test_padding_leaves_enough_steps_alone() -> None:
    features = torch.randn(1, 2, 32)
    assert torch.equal(pad_steps(features, 8), features)


def test_pooling_keeps_components_one_to_k_in_the_right_ratio() -> None:
    features = torch.randn(2, 3, 25, generator=torch.Generator().manual_seed(1))
    spectrum = np.fft.rfft(features.double().numpy(), norm="ortho")[..., 1:9]
    expected = spectrum / np.abs(spectrum).mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(spectral_pool(features, 8).numpy(), expected, atol=ROUNDING)


def test_pooling_refuses_too_few_steps() -> None:
    with pytest.raises(ValueError, match="19 steps"):
        spectral_pool(torch.ones(1, 1, least_steps(8) - 1), 8)


def test_pooling_of_features_without_change_is_finite() -> None:
    assert spectral_pool(torch.zeros(1, 4, 19), 8).abs().max() == 0


def test_projection_reads_bins_outside_and_channels_inside() -> None:
    pooling = SpectralPooling(bins=3, channels=2, pooled_channels=6, n_components=1)
    with torch.no_grad():
        pooling.projection.weight.copy_(torch.eye(6))
    features = torch.randn(1, 2, 3, 8)
    ordered = features.permute(0, 2, 1, 3).reshape(1, 6, 8)  # (batch, bins * channels, steps)
    torch.testing.assert_close(pooling(features), spectral_pool(ordered, 1))


def test_pooling_for_inference_equals_pooling() -> None:
    pooling = SpectralPooling(bins=3, channels=2, pooled_channels=6, n_components=4)
    features = torch.randn(2, 2, 3, 9)
    torch.testing.assert_close(
        pooling.pool(pooling.project(features)), pooling(features).detach(), rtol=0, atol=ROUNDING
    )


def test_pooling_of_bfloat16_is_in_full_precision() -> None:
    """Without autocast, as CUDA's leaves it: it casts no Fourier transform."""
    features = torch.randn(2, 3, 19, generator=torch.Generator().manual_seed(0)).bfloat16()
    pooled = spectral_pool(features, 8)
    assert pooled.dtype == torch.complex64
    assert torch.equal(pooled, spectral_pool(features.float(), 8))
