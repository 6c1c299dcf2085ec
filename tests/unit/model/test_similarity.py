"""Facts of the Hermitian form and its score."""

import numpy as np
import torch

from model.similarity import HermitianSimilarity, to_unit_norm

ROUNDING = 1e-5  # float32, 32 dimensions


def embeddings(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 32, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def test_hermitian_equals_its_conjugate_transpose_exactly() -> None:
    H = HermitianSimilarity(32).hermitian()
    assert H.dtype == np.complex128
    assert np.array_equal(H, H.conj().T)


def test_score_is_the_mean_of_the_two_directions_of_the_learned_form() -> None:
    similarity = HermitianSimilarity(32)
    x, y = to_unit_norm(embeddings(4, 0)), to_unit_norm(embeddings(3, 1))
    W = similarity.form.matrix.detach()
    forth = ((x @ W.T).conj() @ y.T).real
    back = ((y @ W.T).conj() @ x.T).real.T
    torch.testing.assert_close(similarity(x, y).detach(), (forth + back) / 2, atol=ROUNDING, rtol=0)


def test_one_way_scores_of_both_directions_average_to_the_score() -> None:
    similarity = HermitianSimilarity(32)
    x, y = embeddings(4, 0), embeddings(3, 1)
    both = (similarity.one_way(x, y) + similarity.one_way(y, x).T) / 2
    torch.testing.assert_close(similarity(x, y), both, atol=ROUNDING, rtol=0)
    assert (similarity.one_way(x, y) - both).abs().max() > ROUNDING


def test_training_score_has_a_gradient_at_silence() -> None:
    similarity = HermitianSimilarity(32)
    x = torch.zeros(1, 32, dtype=torch.complex64, requires_grad=True)
    similarity(x, embeddings(2, 0)).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(torch.view_as_real(x.grad)).all()


def test_unit_norm_of_a_zero_vector_is_zero_and_of_a_tiny_one_is_one() -> None:
    assert to_unit_norm(torch.zeros(1, 32, dtype=torch.complex64)).abs().max() == 0
    tiny = to_unit_norm(1e-15 * embeddings(1, 0))
    assert abs(tiny.norm().item() - 1) < ROUNDING
