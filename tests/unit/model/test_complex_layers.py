"""Facts of the layers on phasors."""

import numpy as np
import torch

from model.complex_layers import ComplexDropout, ComplexLinear, ComplexRMSNorm, ModReLU

ROUNDING = 1e-5  # float32 sums over at most a few hundred terms


def phasors(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.complex64, generator=generator)


def test_complex_linear_multiplies_by_real_rows_plus_i_imaginary_rows() -> None:
    layer = ComplexLinear(5, 3)
    x = phasors(4, 5)
    stacked = layer.weight.detach().numpy()
    expected = x.numpy() @ (stacked[:3] + 1j * stacked[3:]).T
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=ROUNDING)


def test_complex_linear_commutes_with_a_rotation() -> None:
    layer, x = ComplexLinear(6, 6), phasors(2, 6)
    turn = torch.exp(torch.tensor(0.7j))
    torch.testing.assert_close(layer(x * turn), layer(x) * turn, atol=ROUNDING, rtol=0)


def test_complex_linear_starts_with_the_variance_of_one_real_weight() -> None:
    torch.manual_seed(0)
    layer = ComplexLinear(400, 300)
    variance = layer.matrix.detach().abs().square().mean().item()
    assert abs(variance * 3 * 400 - 1) < 0.02  # kaiming uniform of a = sqrt(5): 1 / (3 fan_in); 120,000 draws


def test_rms_norm_brings_the_mean_square_to_one_and_keeps_phases() -> None:
    x = 7 * phasors(3, 64)
    normed = ComplexRMSNorm(64)(x).detach()
    torch.testing.assert_close(normed.abs().square().mean(dim=-1), torch.ones(3), atol=ROUNDING, rtol=0)
    torch.testing.assert_close(normed.angle(), x.angle(), atol=ROUNDING, rtol=0)


def test_rms_norm_of_zero_is_zero() -> None:
    assert torch.equal(ComplexRMSNorm(8)(torch.zeros(2, 8, dtype=torch.complex64)), torch.zeros(2, 8) + 0j)


def test_mod_relu_shifts_the_magnitude_and_keeps_the_phase() -> None:
    layer = ModReLU(3)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([-1.0, 0.5, -10.0]))
    z = torch.tensor([[3 + 4j, 3 + 4j, 3 + 4j]])
    expected = torch.tensor([[4.0, 5.5, 0.0]]) * (3 + 4j) / 5
    torch.testing.assert_close(layer(z).detach(), expected.to(torch.complex64), atol=ROUNDING, rtol=0)


def test_mod_relu_has_a_finite_gradient_at_zero() -> None:
    z = torch.zeros(1, 4, dtype=torch.complex64, requires_grad=True)
    ModReLU(4)(z).abs().square().sum().backward()
    assert z.grad is not None
    assert torch.isfinite(torch.view_as_real(z.grad)).all()


def test_complex_dropout_drops_whole_phasors_and_only_in_training() -> None:
    torch.manual_seed(0)
    layer, z = ComplexDropout(0.5), phasors(1000)
    dropped = layer(z)
    kept = dropped != 0
    assert 400 < int(kept.sum()) < 600
    torch.testing.assert_close(dropped[kept], 2 * z[kept])
    assert layer.eval()(z) is z
