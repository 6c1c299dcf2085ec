"""Waveform -> decibel-scaled CQT, each clip by itself."""

import torch
from nnAudio.features.cqt import CQT1992v2
from torch import Tensor, nn

SMALLEST_MAGNITUDE = 1e-10
"""Magnitudes below count as this one: -200 dB, the authors' floor for digital silence."""


def scale_decibels(magnitude: Tensor, dynamic_range_db: float) -> Tensor:
    """Magnitudes in dB, floored `dynamic_range_db` under each clip's own maximum, with that range scaled to one.

    A louder clip is a shifted one: a gain of g dB adds g / dynamic_range_db everywhere, the floor included.
    (The authors' code takes the maximum over the batch, so there a clip moves with its neighbours.)

    Args:
        magnitude: float32, (batch, bins, frames), not negative.
        dynamic_range_db: how far under the maximum the floor lies, dB.

    Returns:
        float32, (batch, bins, frames): (dB + range) / range, so 1 at 0 dB. Silence is one constant, far below zero.
    """
    decibels = 20 * torch.log10(magnitude.clamp_min(SMALLEST_MAGNITUDE))
    floor = decibels.amax(dim=(1, 2), keepdim=True) - dynamic_range_db
    return (torch.maximum(decibels, floor) + dynamic_range_db) / dynamic_range_db


class ScaledCQT(nn.Module):
    """The constant-Q transform as nnAudio's CQT1992v2 computes it, in scaled decibels.

    Its kernels are no part of a checkpoint: they follow from the numbers below.
    """

    def __init__(
        self, sample_rate: int, hop: int, lowest_hz: float, bins: int, bins_per_octave: int, dynamic_range_db: float
    ) -> None:
        super().__init__()
        self.dynamic_range_db = dynamic_range_db
        self.transform = CQT1992v2(
            sr=sample_rate,
            hop_length=hop,
            fmin=lowest_hz,
            n_bins=bins,
            bins_per_octave=bins_per_octave,
            norm=1,
            window="hann",
            center=True,
            pad_mode="reflect",
            output_format="Magnitude",
            verbose=False,
        )
        # Kernels follow from the configuration: they move with the module but are never saved.
        for name in list(dict(self.transform.named_buffers())):
            self.transform.register_buffer(name, getattr(self.transform, name), persistent=False)
        self.padding: int = self.transform.kernel_width // 2
        """Samples reflected on either side; a clip must be longer than this."""

    @property
    def lengths(self) -> Tensor:
        """Each bin's kernel length in samples, float32 (bins,)."""
        lengths: Tensor = self.transform.lenghts
        return lengths

    def magnitude(self, waveforms: Tensor) -> Tensor:
        """float32 (batch, samples), longer than `padding` -> float32 (batch, bins, 1 + samples // hop)."""
        magnitude: Tensor = self.transform(waveforms)
        return magnitude

    def forward(self, waveforms: Tensor) -> Tensor:
        """float32 (batch, samples), longer than `padding` -> float32 (batch, bins, frames), in scaled decibels."""
        return scale_decibels(self.magnitude(waveforms), self.dynamic_range_db)
