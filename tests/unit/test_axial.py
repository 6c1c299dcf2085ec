"""Facts of the axial CNN."""

import pytest
import torch
from torch import nn

from model.axial import ALONG_FREQUENCY, ALONG_TIME, POINTWISE, AxialBackbone, AxialBlock, Branch

INFERENCE_TOLERANCE = 1e-5  # of the largest feature: float32 sums in another order, through thirty branches


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
    for branch in (block.along_frequency, block.along_time, block.pointwise):
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
