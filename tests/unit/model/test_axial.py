"""Facts of the axial CNN."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from model.axial import ALONG_FREQUENCY, ALONG_TIME, FRAMES_PER_PASS, POINTWISE, AxialBackbone, AxialBlock, Branch
from model.axial_kernel import AxialKernel, built_kernels

INFERENCE_TOLERANCE = 1e-5  # of the largest feature: float32 sums in another order, through thirty branches
GRADIENT_TOLERANCE = 2e-4  # of a weight's largest gradient: the same, there and back
LOSS_TOLERANCE = 1e-3  # of the loss, after twenty steps that each follow from the one before


@pytest.mark.parametrize(("frames", "steps"), [(104, 4), (151, 5), (501, 16), (1001, 32), (1025, 33)])
def test_backbone_makes_one_step_of_32_frames(frames: int, steps: int) -> None:
    backbone = AxialBackbone(channels=8, growth=1.5, depth=5, dropout=0.0).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 6, frames))
    assert features.shape == (1, 60, 6, steps)


def test_backbone_widens_by_half_at_each_compression() -> None:
    backbone = AxialBackbone(channels=8, growth=1.5, depth=5, dropout=0.0)
    compressions = [block.compression for block in backbone.blocks if block.compression is not None]
    assert [compression.out_channels for compression in compressions] == [12, 18, 27, 40, 60]
    assert len(backbone.blocks) == 10


@pytest.mark.parametrize(("kernel", "bins", "frames"), [(ALONG_FREQUENCY, 1, 0), (ALONG_TIME, 0, 1), (POINTWISE, 0, 0)])
def test_a_branch_reaches_along_one_axis_only(kernel: tuple[int, int], bins: int, frames: int) -> None:
    branch = Branch(2, kernel, dropout=0.0)
    branch.norm = nn.Identity()  # type: ignore[assignment]  # the norm reaches everywhere, by its statistics
    features = torch.randn(1, 2, 9, 9)
    changed = features.clone()
    changed[..., 4, 4] += 1
    touched = (branch(features) != branch(changed)).any(dim=1)[0].nonzero()
    assert touched[:, 0].min() == 4 - bins
    assert touched[:, 0].max() == 4 + bins
    assert touched[:, 1].min() == 4 - frames
    assert touched[:, 1].max() == 4 + frames


def test_a_branch_of_scale_zero_leaves_the_block_an_identity() -> None:
    block = AxialBlock(3, None, dropout=0.0)
    for branch in block.branches:
        nn.init.zeros_(branch.scale)
    features = torch.randn(2, 3, 5, 7)
    assert torch.equal(block(features), features)


def test_dropout_drops_whole_channels_and_only_in_training() -> None:
    torch.manual_seed(0)
    branch = Branch(64, POINTWISE, dropout=0.5)
    features = torch.randn(1, 64, 3, 3)
    flat = branch(features)[0].flatten(1)
    silent = (flat == 0).all(dim=1)
    assert (flat[~silent] != 0).all()
    assert 16 < int(silent.sum()) < 48
    assert (branch.eval()(features) != 0).all()


# -- inference against the layers one by one --------------------------------------------------------------------------


def learned_backbone(seed: int = 0, depth: int = 5, dropout: float = 0.1) -> AxialBackbone:
    """A backbone none of whose weights is at its starting constant."""
    torch.manual_seed(seed)
    backbone = AxialBackbone(channels=8, growth=1.5, depth=depth, dropout=dropout).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim < 2:
                parameter.copy_(0.5 + 0.3 * torch.randn(parameter.shape))
    return backbone


def assert_equal_to_the_layers(features: torch.Tensor, backbone: AxialBackbone, cqt: torch.Tensor) -> None:
    with torch.no_grad():
        expected = backbone(cqt)
    assert features.shape == expected.shape
    assert (features - expected).abs().max() < INFERENCE_TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("frames", [104, 501, 1001])
def test_matrix_products_equal_the_layers(frames: int) -> None:
    backbone, cqt = learned_backbone(), torch.randn(2, 12, frames)
    assert_equal_to_the_layers(backbone.infer_by_products(cqt), backbone, cqt)


def test_matrix_products_pass_by_pass_equal_the_layers() -> None:
    backbone, cqt = learned_backbone(depth=1), torch.randn(9, 3, FRAMES_PER_PASS // 2)
    assert_equal_to_the_layers(backbone.infer_by_products(cqt), backbone, cqt)


@pytest.fixture(params=built_kernels() or [None], ids=lambda kernel: kernel.name if kernel else "none")
def kernel(request: pytest.FixtureRequest) -> AxialKernel:
    """Each build of the compiled kernel that runs here."""
    if request.param is None:
        pytest.skip("the compiled kernel was not built here: no C++ compiler, or a processor without AVX2")
    built: AxialKernel = request.param
    return built


@pytest.mark.parametrize("frames", [1, 2, 31, 104, 151, 501, 512, 801, 1001])
def test_kernel_equals_the_layers_at_any_length(kernel: AxialKernel, frames: int) -> None:
    backbone, cqt = learned_backbone(), torch.randn(1, 7, frames)
    assert_equal_to_the_layers(backbone.infer_by_kernel(kernel, cqt), backbone, cqt)


@pytest.mark.parametrize(("channels", "growth", "depth", "bins"), [(1, 1.0, 1, 1), (3, 2.5, 2, 5), (17, 1.1, 3, 96)])
def test_kernel_equals_the_layers_of_any_configuration(
    kernel: AxialKernel, channels: int, growth: float, depth: int, bins: int
) -> None:
    torch.manual_seed(0)
    backbone, cqt = AxialBackbone(channels, growth, depth, dropout=0.0).eval(), torch.randn(2, bins, 40)
    assert_equal_to_the_layers(backbone.infer_by_kernel(kernel, cqt), backbone, cqt)


@pytest.mark.parametrize("level", [0.0, -1.5, 100.0])
def test_kernel_loses_no_digits_where_almost_nothing_is_heard(kernel: AxialKernel, level: float) -> None:
    """The norm magnifies what little differs, and with it the rounding of a mean: no more than the layers do."""
    backbone = learned_backbone(depth=2)
    cqt = torch.full((1, 9, 104), level)
    cqt[0, 0, 0] += 1e-3
    with torch.no_grad():
        exact = copy.deepcopy(backbone).double()(cqt.double())
        layers = (backbone(cqt) - exact).abs().max()
    ours = (backbone.infer_by_kernel(kernel, cqt) - exact).abs().max()
    assert ours < 2 * layers + INFERENCE_TOLERANCE * exact.abs().max()


def test_kernel_gives_silence_finite_features(kernel: AxialKernel) -> None:
    assert torch.isfinite(learned_backbone().infer_by_kernel(kernel, torch.full((1, 96, 104), -1.5))).all()


def test_kernel_gives_the_same_bits_in_any_batch_and_for_any_threads(kernel: AxialKernel) -> None:
    backbone, cqt = learned_backbone(), torch.randn(5, 11, 301)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = torch.cat([backbone.infer_by_kernel(kernel, clip[None]) for clip in cqt])
        for threads in (1, 2, 3, 8):  # 5 clips: one thread each, or all on one clip after the other
            torch.set_num_threads(threads)
            assert torch.equal(backbone.infer_by_kernel(kernel, cqt), expected)
            assert torch.equal(backbone.infer_by_kernel(kernel, cqt[3:4]), expected[3:4])
    finally:
        torch.set_num_threads(before)


def test_inference_takes_weights_that_the_kernel_cannot() -> None:
    backbone, cqt = learned_backbone(depth=1).double(), torch.randn(1, 5, 40, dtype=torch.float64)
    assert_equal_to_the_layers(backbone.infer(cqt), backbone, cqt)


# -- training against the layers one by one ---------------------------------------------------------------------------


def gradients(
    backbone: AxialBackbone, forward: Callable[[torch.Tensor], torch.Tensor], cqt: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Of a loss that weighs every feature otherwise, and the features themselves."""
    backbone.zero_grad()
    torch.manual_seed(1)
    features = forward(cqt)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    (features * weights).sum().backward()
    return {"features": features.detach()} | {
        name: weight.grad.clone() for name, weight in backbone.named_parameters() if weight.grad is not None
    }


def assert_gradients_equal_the_layers(kernel: AxialKernel, backbone: AxialBackbone, cqt: torch.Tensor) -> None:
    expected = gradients(backbone, backbone.forward_by_layers, cqt)
    ours = gradients(backbone, lambda cqt: backbone.forward_by_kernel(kernel, cqt), cqt)
    assert len(expected) == 1 + len(list(backbone.parameters()))
    for name, gradient in expected.items():
        assert (ours[name] - gradient).abs().max() <= GRADIENT_TOLERANCE * gradient.abs().max(), name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("frames", [31, 104, 151, 501, 512])
def test_kernel_gives_the_gradients_of_the_layers(kernel: AxialKernel, frames: int, dropout: float) -> None:
    backbone = learned_backbone(dropout=dropout).train()
    assert_gradients_equal_the_layers(kernel, backbone, torch.randn(3, 13, frames))


@pytest.mark.parametrize(("channels", "growth", "depth", "bins"), [(1, 1.0, 1, 1), (3, 2.5, 2, 5), (17, 1.1, 3, 96)])
def test_kernel_gives_the_gradients_of_any_configuration(
    kernel: AxialKernel, channels: int, growth: float, depth: int, bins: int
) -> None:
    torch.manual_seed(0)
    backbone = AxialBackbone(channels, growth, depth, dropout=0.1).train()
    assert_gradients_equal_the_layers(kernel, backbone, torch.randn(2, bins, 33))


def test_kernel_gives_the_same_bits_of_gradients_for_any_threads(kernel: AxialKernel) -> None:
    backbone, cqt = learned_backbone().train(), torch.randn(7, 11, 301)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = gradients(backbone, lambda cqt: backbone.forward_by_kernel(kernel, cqt), cqt)
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            again = gradients(backbone, lambda cqt: backbone.forward_by_kernel(kernel, cqt), cqt)
            assert all(torch.equal(again[name], gradient) for name, gradient in expected.items())
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_kernel_learns_as_the_layers_do(kernel: AxialKernel) -> None:
    cqt, wanted = torch.randn(6, 12, 120), torch.randn(6, 60, 12, 4)
    losses: list[list[float]] = []
    for by_kernel in (False, True):
        backbone = learned_backbone().train()
        optimiser = torch.optim.AdamW(backbone.parameters(), 1e-3)
        torch.manual_seed(3)
        losses.append([])
        for _ in range(10):
            features = backbone.forward_by_kernel(kernel, cqt) if by_kernel else backbone.forward_by_layers(cqt)
            loss = (features - wanted).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < 0.95 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=LOSS_TOLERANCE)


def test_two_passes_of_kernel_at_once_keep_apart(kernel: AxialKernel) -> None:
    backbone, cqt = learned_backbone().train(), torch.randn(4, 9, 104)

    def in_passes(cqt: torch.Tensor) -> torch.Tensor:
        return torch.cat([backbone.forward_by_kernel(kernel, part) for part in torch.split(cqt, 2)])

    first = gradients(backbone, in_passes, cqt)
    gradients(backbone, in_passes, torch.randn(4, 9, 201))  # leaves larger tapes behind
    again = gradients(backbone, in_passes, cqt)
    assert all(torch.equal(again[name], gradient) for name, gradient in first.items())
    layers = gradients(
        backbone, lambda cqt: torch.cat([backbone.forward_by_layers(part) for part in torch.split(cqt, 2)]), cqt
    )
    for name, gradient in layers.items():
        assert (first[name] - gradient).abs().max() <= GRADIENT_TOLERANCE * gradient.abs().max(), name


def test_kernel_goes_back_once(kernel: AxialKernel) -> None:
    loss = learned_backbone(depth=1).forward_by_kernel(kernel, torch.randn(1, 5, 40)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one only"):
        loss.backward()


def test_training_takes_what_the_kernel_cannot() -> None:
    cqt = torch.randn(1, 5, 40, requires_grad=True)
    learned_backbone(depth=1)(cqt).sum().backward()
    assert cqt.grad is not None
    backbone = learned_backbone(depth=1).double()
    backbone(torch.randn(1, 5, 40, dtype=torch.float64)).sum().backward()
    assert all(weight.grad is not None for weight in backbone.parameters())


def test_training_goes_by_the_kernel_where_one_is_built(kernel: AxialKernel) -> None:
    features = learned_backbone(depth=1)(torch.randn(1, 5, 40))
    assert type(features.grad_fn).__name__ == "_ByKernelBackward"


def test_a_branch_keeps_bfloat16() -> None:
    """As autocast on a card runs it: twice the bytes would move if a weight made it float32."""
    branch = Branch(8, ALONG_TIME, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        added = branch(torch.randn(2, 8, 4, 6).bfloat16())
        normed = branch.norm(torch.randn(2, 8, 4, 6).bfloat16())
    assert (added.dtype, normed.dtype) == (torch.bfloat16, torch.bfloat16)
