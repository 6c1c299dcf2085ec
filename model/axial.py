"""The axial CNN: convolutions along frequency, then along time, then across channels."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from model.axial_kernel import AxialKernel, Network, fastest_kernel

ALONG_FREQUENCY = (3, 1)
ALONG_TIME = (1, 3)
POINTWISE = (1, 1)

FRAMES_PER_PASS = 4 * 501
"""Most frames that `infer_by_products` takes at once: 4 windows of 5 s. More fall out of a CPU's caches and cost up to
four times as much each."""


class ChannelNorm(nn.GroupNorm):
    """Each channel by itself, in its own type; means and variances are float32 inside.

    Autocast would write float32, twice the bytes, which the convolution that follows then rounds.
    """

    def forward(self, features: Tensor) -> Tensor:
        """float32 or bfloat16 (batch, channels, bins, frames) -> the same shape and type."""
        weight, bias = self.weight.to(features.dtype), self.bias.to(features.dtype)
        with torch.autocast(features.device.type, enabled=False):
            return functional.group_norm(features, self.num_groups, weight, bias, self.eps)


class Branch(nn.Module):
    """What a residual connection adds: norm, a convolution, SiLU, back to the width, scale, channel dropout."""

    def __init__(self, channels: int, kernel: tuple[int, int], dropout: float) -> None:
        super().__init__()
        # Only the pointwise branch widens in between: its kernel is the cheap one.
        inner = 2 * channels if kernel == POINTWISE else channels
        self.dropout = dropout
        self.norm = ChannelNorm(channels, channels)
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
        # The scale goes into the weights: beside them, float32 as it is, it would make bfloat16 features float32.
        contract = self.contract.weight * self.scale[:, None, None, None]
        added = functional.conv2d(functional.silu(self.spread(self.norm(features))), contract)
        return functional.dropout2d(added, self.dropout, self.training)

    def draw_factors(self, like: Tensor) -> Tensor:
        """What dropout multiplies each clip's channels by, from torch's generator: 0 or 1 / (1 - dropout).

        Args:
            like: (batch, ...), of the device and dtype wanted.

        Returns:
            (batch, channels, 1, 1); all 1 outside training, which draws none.
        """
        ones = like.new_ones(len(like), len(self.scale), 1, 1)
        return functional.dropout2d(ones, self.dropout, self.training)

    def add_to(self, features: Tensor, bins: int) -> None:
        """Add this branch to `features` in place, without dropout: `forward` for inference on a CPU.

        Args:
            features: float32, (batch, bins * frames, channels): channels innermost, so that every 1x1 convolution is
                one matrix product and the last one adds to the residual as it goes.
            bins: how many.
        """
        batch, positions, channels = features.shape
        mean = features.mean(dim=1, keepdim=True)
        variance = (features - mean).square_().mean(dim=1, keepdim=True)  # two passes: one would cancel digits
        gain = torch.rsqrt(variance + self.norm.eps) * self.norm.weight  # (batch, 1, channels)
        shift = self.norm.bias - mean * gain
        if self.spread.kernel_size == POINTWISE:
            # Position by position the norm folds into the matrix, at a convolution's zero padding it could not.
            assert self.spread.bias is not None
            matrix = self.spread.weight[:, :, 0, 0].T  # (channels, 2 * channels)
            inner = torch.baddbmm(self.spread.bias + shift @ matrix, features, gain.transpose(1, 2) * matrix)
        else:
            normed = _as_image(torch.addcmul(shift, features, gain), bins)
            inner = _as_positions(self.spread(normed))
        contract = (self.contract.weight[:, :, 0, 0] * self.scale[:, None]).T  # (inner, channels)
        rows = functional.silu(inner, inplace=True).view(batch * positions, -1)
        features.view(-1, channels).addmm_(rows, contract)


def _as_image(features: Tensor, bins: int) -> Tensor:
    """(batch, bins * frames, channels) -> (batch, channels, bins, frames), a view with channels innermost."""
    return features.view(features.shape[0], bins, -1, features.shape[2]).permute(0, 3, 1, 2)


def _as_positions(features: Tensor) -> Tensor:
    """(batch, channels, bins, frames) -> (batch, bins * frames, channels), contiguous."""
    return features.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


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

    @property
    def branches(self) -> tuple[Branch, Branch, Branch]:
        """In the order in which features pass them."""
        return self.along_frequency, self.along_time, self.pointwise

    def forward(self, features: Tensor) -> Tensor:
        """float32 (batch, channels, bins, frames) -> (batch, out channels, bins, frames or half of them)."""
        for branch in self.branches:
            features = features + branch(features)
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
        """float32 (batch, bins, frames) -> float32 (batch, out_channels, bins, steps).

        With gradients of the weights alone, on a CPU, by the compiled kernel where there is one; else layer by layer.
        """
        kernel = fastest_kernel()
        if kernel is None or not torch.is_grad_enabled() or cqt.requires_grad or torch.is_autocast_enabled("cpu"):
            return self.forward_by_layers(cqt)
        if not all(_is_plain(tensor) for tensor in (cqt.contiguous(), *self._network.weights)):
            return self.forward_by_layers(cqt)
        return self.forward_by_kernel(kernel, cqt)

    def forward_by_kernel(self, kernel: AxialKernel, cqt: Tensor) -> Tensor:
        """`forward` by this build of the compiled kernel; cqt and weights are float32 on the CPU."""
        # In the order in which the layers draw them, so that one seed drops the same channels either way.
        factors = torch.cat([branch.draw_factors(cqt) for block in self._blocks for branch in block.branches], dim=1)
        network = self._network
        features: Tensor = _ByKernel.apply(  # type: ignore[no-untyped-call]
            kernel, network._replace(weights=()), cqt.contiguous(), factors.flatten(1), *network.weights
        )
        return features

    def forward_by_layers(self, cqt: Tensor) -> Tensor:
        """`forward` layer by layer: on any device, in any precision, with any gradients."""
        features: Tensor = self.input_projection(cqt.unsqueeze(1))  # (batch, channels, bins, frames)
        for block in self.blocks:
            features = block(features)
        return features

    @torch.no_grad()
    def infer(self, cqt: Tensor) -> Tensor:
        """`forward` without dropout and gradients, as fast as this CPU can: the same to rounding.

        By the compiled kernel where there is one, else by `infer_by_products`.
        """
        kernel = fastest_kernel()
        if kernel is None or not all(_is_plain(tensor) for tensor in (cqt.contiguous(), *self._network.weights)):
            return self.infer_by_products(cqt)
        return self.infer_by_kernel(kernel, cqt)

    @torch.no_grad()
    def infer_by_kernel(self, kernel: AxialKernel, cqt: Tensor) -> Tensor:
        """`infer` by this build of the compiled kernel; cqt and weights are float32 on the CPU."""
        return kernel.infer(cqt, self._network)

    @torch.no_grad()
    def infer_by_products(self, cqt: Tensor) -> Tensor:
        """`infer` by torch's matrix products, laid out for a CPU's caches and threads."""
        few = max(1, FRAMES_PER_PASS // cqt.shape[2])
        return torch.cat([self._infer_few(part) for part in torch.split(cqt, few)])

    def _infer_few(self, cqt: Tensor) -> Tensor:
        bins = cqt.shape[1]
        features = _as_positions(self.input_projection(cqt.unsqueeze(1)))  # (batch, bins * frames, channels)
        for block in self._blocks:
            for branch in block.branches:
                branch.add_to(features, bins)
            if block.compression is not None:
                features = _as_positions(block.compression(_as_image(features, bins)))
        return _as_image(features, bins)  # (batch, out_channels, bins, steps)

    @property
    def _blocks(self) -> list[AxialBlock]:
        return [block for block in self.blocks if isinstance(block, AxialBlock)]

    @property
    def _network(self) -> Network:
        blocks = self._blocks
        weights: list[Tensor] = [self.input_projection.weight]
        for block in blocks:
            for branch in block.branches:
                assert branch.spread.bias is not None
                weights += (branch.norm.weight, branch.norm.bias, branch.spread.weight, branch.spread.bias)
                weights += (branch.contract.weight, branch.scale)
            if block.compression is not None:
                weights.append(block.compression.weight)
        widths = [*(block.pointwise.norm.num_channels for block in blocks), self.out_channels]
        compresses = [block.compression is not None for block in blocks]
        return Network(widths, compresses, blocks[0].pointwise.norm.eps, weights)


class _ByKernel(torch.autograd.Function):
    """The compiled kernel's forward and backward pass."""

    @staticmethod
    def forward(ctx: Any, kernel: AxialKernel, plan: Network, cqt: Tensor, factors: Tensor, *weights: Tensor) -> Tensor:
        features, tape = kernel.forward(cqt, factors, plan._replace(weights=weights))
        ctx.kernel, ctx.plan, ctx.tape = kernel, plan, tape
        ctx.save_for_backward(cqt, factors, *weights)
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cqt, factors, *weights = ctx.saved_tensors
        tape, ctx.tape = ctx.tape, None
        if tape is None:
            raise RuntimeError("what the backward pass needs was kept for one only")
        gradients = ctx.kernel.backward(cqt, factors, tape, gradient, ctx.plan._replace(weights=weights))
        return None, None, None, None, *gradients


def _is_plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()
