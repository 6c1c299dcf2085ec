"""Layers whose values are phasors: complex linear maps, their normalisation, activation and dropout.

Real and imaginary parts are stacked only inside the weights of this file; every value that leaves it is complex.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-6
"""Added to a squared magnitude before its root, so that the root has a gradient at zero. As in the authors' code."""


def squared_magnitude(phasors: Tensor) -> Tensor:
    """|z|² of each element, real and of the same shape."""
    return torch.view_as_real(phasors).square().sum(dim=-1)


class ComplexLinear(nn.Module):
    """y = (A + iB) x without a bias; the weight holds A's rows, then B's."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 * out_features, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Over the square root of two: real and imaginary part share the variance of one real weight.
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        with torch.no_grad():
            self.weight.div_(math.sqrt(2))

    @torch.no_grad()
    def start_as_multiple(self, factor: float) -> None:
        """Set y = factor · x; as many features out as in."""
        real, imaginary = self.weight.chunk(2)
        nn.init.eye_(real).mul_(factor)
        nn.init.zeros_(imaginary)

    @property
    def matrix(self) -> Tensor:
        """The map as one complex64 matrix, (out_features, in_features)."""
        real, imaginary = self.weight.chunk(2)
        return torch.complex(real, imaginary)

    def forward(self, phasors: Tensor) -> Tensor:
        """complex64 (..., in_features) -> complex64 (..., out_features)."""
        return phasors @ self.matrix.T


class ComplexRMSNorm(nn.Module):
    """Bring each vector's root mean square magnitude to one, then weigh each feature; phases stay as they are."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, phasors: Tensor) -> Tensor:
        """complex64 (..., features) -> the same shape."""
        mean_square = squared_magnitude(phasors).mean(dim=-1, keepdim=True)
        return phasors * torch.rsqrt(mean_square + EPSILON) * self.weight


class ModReLU(nn.Module):
    """Shift each magnitude by a learned bias, cut it at zero, keep the phase (arXiv:1511.06464)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((features,), -0.01))

    def forward(self, phasors: Tensor) -> Tensor:
        """complex64 (..., features) -> the same shape."""
        magnitude = torch.sqrt(squared_magnitude(phasors) + EPSILON)
        return phasors * (functional.relu(magnitude + self.bias) / magnitude)


class ComplexDropout(nn.Module):
    """Drop whole phasors, real and imaginary part together, in training only."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, phasors: Tensor) -> Tensor:
        """complex64 of any shape -> the same shape."""
        if not self.training or self.probability == 0:
            return phasors
        return phasors * functional.dropout(torch.ones_like(phasors.real), self.probability)
