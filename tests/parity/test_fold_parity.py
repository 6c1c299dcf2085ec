"""The fold against plain complex arithmetic, at the model's own width and on the reference embeddings."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from indexer.index.fold import HermitianFold
from tests.embeddings import random_rows

REFERENCE = Path(__file__).parents[1] / "data" / "reference.npz"
DIMENSION = 512
# The promise at full rank, for unit-norm embeddings and the released model's spectrum (|eigenvalue| up to about 10).
SCORE_TOLERANCE = 1e-5


def trained_form() -> npt.NDArray[np.complex128]:
    """An indefinite form with the spectrum seen after a short training: 10, 1.6, 0.8, 0.4 at 0, 16, 64, 256."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((DIMENSION,) * 2) + 1j * rng.standard_normal((DIMENSION,) * 2))
    magnitudes = np.interp(np.arange(DIMENSION), [0, 16, 64, 256, DIMENSION - 1], [10, 1.6, 0.8, 0.4, 0.05])
    form = (basis * magnitudes * rng.choice([-1, 1], DIMENSION)) @ basis.conj().T
    return (form + form.conj().T) / 2


def reference_embeddings() -> npt.NDArray[np.complex64]:
    if not REFERENCE.exists():
        pytest.skip("tests/data/reference.npz is not there")
    parts = np.load(REFERENCE)["embedding"]  # (5, 2, 512)
    rows = parts[:, 0] + 1j * parts[:, 1]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.complex64)


def exact(x: npt.NDArray[np.complex64], form: npt.NDArray[np.complex128], y: npt.NDArray[np.complex64]):  # type: ignore[no-untyped-def]
    return (x.astype(np.complex128).conj() @ form @ y.astype(np.complex128).T).real


def test_query_dot_key_equals_hermitian_score_on_the_reference_embeddings() -> None:
    form, x = trained_form(), reference_embeddings()
    fold = HermitianFold(form)
    assert np.abs(fold.queries(x) @ fold.keys(x).T - exact(x, form, x)).max() <= SCORE_TOLERANCE


@pytest.mark.parametrize("rank", [8, 64, 256, 511])
def test_a_truncated_fold_keeps_its_bound_at_the_models_width(rank: int) -> None:
    form, x, y = trained_form(), random_rows(3, 40, DIMENSION), random_rows(4, 200, DIMENSION)
    fold = HermitianFold(form, rank=rank)
    error = np.abs(fold.queries(x) @ fold.keys(y).T - exact(x, form, y))
    assert error.max() <= fold.bound + fold.rounding
    assert (error <= np.outer(fold.query_tail(x), fold.key_tail(y)) + fold.rounding).all()
