"""The axial CNN: convolutions along frequency, then along time, then across channels."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

ALONG_FREQUENCY = (3, 1)
ALONG_TIME = (1, 3)
POINTWISE = (1, 1)


class Branch(nn.Module):
    """What a residual connection adds: norm, a convolution, SiLU, back to the width, scale, channel dropout."""

    def __init__(self, channels: int, kernel: tuple[int, int], dropout: float) -> None:
        super().__init__()
        # Only the pointwise branch widens in between: its kernel is the cheap one.
        inner = 2 * channels if kernel == POINTWISE else channels
        self.dropout = dropout
        self.norm = nn.GroupNorm(channels, channels)
        self.spread = nn.Conv2d(channels, inner, kernel, padding=(kernel[0] // 2, kernel[1] // 2))
        self.contract = nn.Conv2d(inner, channels, 1, bias=False)
        self.scale = nn.Parameter(torch.ones(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        assert self.spread.bias is not None
        nn.init.kaiming_normal_(self.spread.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.spread.bias)
        nn.init.xavier_normal_(self.contract.weight)

    def forward(self, features: Tensor) -> Tensor:
        """float32 (batch, channels, bins, frames) -> the same shape."""
        added: Tensor = self.contract(functional.silu(self.spread(self.norm(features))))
        return functional.dropout2d(added * self.scale[:, None, None], self.dropout, self.training)


class AxialBlock(nn.Module):
    """Three residual branches; a block with `out_channels` then halves the frames and widens."""

    def __init__(self, channels: int, out_channels: int | None, dropout: float) -> None:
        super().__init__()
        self.along_frequency = Branch(channels, ALONG_FREQUENCY, dropout)
        self.along_time = Branch(channels, ALONG_TIME, dropout)
        self.pointwise = Branch(channels, POINTWISE, dropout)
        self.compression: nn.Conv2d | None = None
        if out_channels is not None:
            self.compression = nn.Conv2d(channels, out_channels, ALONG_TIME, stride=(1, 2), padding=(0, 1), bias=False)
            nn.init.xavier_normal_(self.compression.weight)

    def forward(self, features: Tensor) -> Tensor:
        """float32 (batch, channels, bins, frames) -> (batch, out channels, bins, frames or half of them)."""
        features = features + self.along_frequency(features)
        features = features + self.along_time(features)
        features = features + self.pointwise(features)
        if self.compression is None:
            return features
        compressed: Tensor = self.compression(features)  # (batch, out_channels, bins, ceil(frames / 2))
        return compressed


class AxialBackbone(nn.Module):
    """`depth` times: a block that halves the frames and widens by `growth`, and one that keeps its shape.

    Frequency keeps all its bins to the end; time shrinks by 2 ** depth, so with the default depth a step is
    32 frames, 320 ms. arXiv:2605.03929, the encoder.
    """

    def __init__(self, channels: int, growth: float, depth: int, dropout: float) -> None:
        super().__init__()
        widths = [channels]
        for _ in range(depth):
            widths.append(int(widths[-1] * growth))
        self.out_channels = widths[-1]
        self.input_projection = nn.Conv2d(1, channels, 1, bias=False)
        nn.init.xavier_normal_(self.input_projection.weight)
        self.blocks = nn.ModuleList()
        for narrow, wide in pairwise(widths):
            self.blocks.append(AxialBlock(narrow, wide, dropout))
            self.blocks.append(AxialBlock(wide, None, dropout))

    def forward(self, cqt: Tensor) -> Tensor:
        """float32 (batch, bins, frames) -> float32 (batch, out_channels, bins, steps)."""
        features: Tensor = self.input_projection(cqt.unsqueeze(1))  # (batch, channels, bins, frames)
        for block in self.blocks:
            features = block(features)
        return features
