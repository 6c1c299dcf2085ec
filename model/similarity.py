"""The learned W, its Hermitian form H, and the score of all against all."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.complex_layers import EPSILON, ComplexLinear, squared_magnitude

COSINE_SCALE = 10.0
"""The score of two equal embeddings where a training starts, which begins with H = 10 I."""


def to_unit_norm(embeddings: Tensor) -> Tensor:
    """Divide each embedding by its norm: for inference, exactly.

    Args:
        embeddings: complex64, (n, dimension).

    Returns:
        complex64, (n, dimension), of norm 1. A zero vector has no direction and stays zero: never NaN.
    """
    norm = squared_magnitude(embeddings).sum(dim=-1, keepdim=True).sqrt()
    return embeddings / norm.clamp_min(torch.finfo(norm.dtype).tiny)


class HermitianSimilarity(nn.Module):
    """score(x, y) = Re(xᴴ H y) with H = (W + Wᴴ) / 2, on vectors of unit norm: score(x, y) = score(y, x).

    The authors' training code uses Re((W x)ᴴ y), which differs between the two directions; ours is their
    paper's symmetric form in training and in use, so a query and a key may swap sides.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.form = ComplexLinear(dimension, dimension)

    @torch.no_grad()
    def start_as_cosine(self) -> None:
        """Set H = COSINE_SCALE I, for a training to start with; see docs/decisions/the-form-starts-as-the-cosine.md."""
        self.form.start_as_multiple(COSINE_SCALE)

    @property
    def hermitian_form(self) -> Tensor:
        """H, complex64 (dimension, dimension); differentiable."""
        W = self.form.matrix
        return (W + W.conj().T) / 2

    def hermitian(self) -> NDArray[np.complex128]:
        """H computed in double precision, exactly equal to its conjugate transpose."""
        stacked: NDArray[Any] = self.form.weight.detach().cpu().double().numpy()
        real, imaginary = np.split(stacked, 2)
        W = real + 1j * imaginary
        H: NDArray[np.complex128] = (W + W.conj().T) / 2
        return H

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The score of all against all, with a gradient everywhere.

        Args:
            x: complex64, (n, dimension), of any norm.
            y: complex64, (m, dimension), of any norm.

        Returns:
            float32, (n, m). Norms are softened by 1e-6 inside the root as in the authors' training.
        """
        return (_softly_unit(x).conj() @ self.hermitian_form @ _softly_unit(y).T).real

    def one_way(self, x: Tensor, y: Tensor) -> Tensor:
        """Re((W x)ᴴ y), what the authors train by, to make it symmetric afterwards; otherwise as `forward`."""
        return (_softly_unit(x).conj() @ self.form.matrix.conj().T @ _softly_unit(y).T).real


def _softly_unit(embeddings: Tensor) -> Tensor:
    return embeddings * torch.rsqrt(squared_magnitude(embeddings).sum(dim=-1, keepdim=True) + EPSILON)
