"""The learned spectral pooling: steps become phasors, each channel's slow Fourier components over time."""

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-6
"""Added to the mean magnitude that phasors are divided by, so that features without any change stay finite."""


def least_steps(n_components: int) -> int:
    """How many steps pooling needs; fewer are padded with zeros up to as many. The authors' 2 K + 3."""
    return 2 * n_components + 3


def pad_steps(features: Tensor, n_components: int) -> Tensor:
    """Pad with zeros on both sides, the odd one right, up to `least_steps`; longer features stay as they are.

    Args:
        features: float32, (batch, channels, steps).
        n_components: how many components pooling will keep.

    Returns:
        float32, (batch, channels, max(steps, least_steps(n_components))).
    """
    missing = max(0, least_steps(n_components) - features.shape[-1])
    return functional.pad(features, (missing // 2, missing - missing // 2))


def spectral_pool(features: Tensor, n_components: int) -> Tensor:
    """Keep each channel's first Fourier components over time.

    arXiv:2605.03929, "Learned Spectral Pooling".

    Args:
        features: float32 or bfloat16, (batch, channels, steps); a step is 320 ms.
        n_components: how many; component 0, the channel's mean, is left out.

    Returns:
        complex64, (batch, channels, n_components), mean magnitude 1 per example. Rolling `features`
        by m steps multiplies component k by exp(-2j * pi * k * m / steps).

    Raises:
        ValueError: fewer than 2 * n_components + 3 steps; see `pad_steps`.
    """
    if features.shape[-1] < least_steps(n_components):
        raise ValueError(f"{n_components} components need {least_steps(n_components)} steps, not {features.shape[-1]}")
    # In full precision by our own hand: CUDA's autocast leaves Fourier transforms as they are, the CPU's does not.
    spectrum = torch.fft.rfft(features.float(), norm="ortho")
    phasors = spectrum[..., 1 : n_components + 1]  # (batch, channels, n_components)
    mean_magnitude = phasors.abs().mean(dim=(1, 2), keepdim=True)
    pooled: Tensor = phasors / (mean_magnitude + EPSILON)
    return pooled


class SpectralPooling(nn.Module):
    """Project all bins and channels of a step to a few channels, then `spectral_pool` them over steps."""

    def __init__(self, bins: int, channels: int, pooled_channels: int, n_components: int) -> None:
        super().__init__()
        self.n_components = n_components
        self.projection = nn.Linear(bins * channels, pooled_channels, bias=False)
        nn.init.xavier_normal_(self.projection.weight)

    def forward(self, features: Tensor) -> Tensor:
        """float32 (batch, channels, bins, steps) -> complex64 (batch, pooled_channels, n_components)."""
        # The authors' order: bins outside, channels inside.
        per_step = features.transpose(1, 3).flatten(2)  # (batch, steps, bins * channels)
        return self.pool(self.projection(per_step).transpose(1, 2))

    @torch.no_grad()
    def project(self, features: Tensor) -> Tensor:
        """What `pool` takes of `forward`'s features: the same to rounding, without a copy where steps are innermost in
        memory."""
        return self.projection.weight @ features.transpose(1, 2).flatten(1, 2)

    def pool(self, projected: Tensor) -> Tensor:
        """Real (batch, pooled_channels, steps) -> complex64 (batch, pooled_channels, n_components)."""
        return spectral_pool(pad_steps(projected, self.n_components), self.n_components)
