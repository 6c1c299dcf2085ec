"""Muon for matrices and convolutions, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.training.recipe import OptimiserSettings

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""The quintic of Muon (Jordan et al. 2024): five rounds bring every singular value near 1."""

ROUNDS = 5

ROWS, COLUMNS = 32, 64
"""Matrices are padded to multiples of these, so that few products serve all: zeros change nothing but the rounding."""


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices by units of its own."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.6 cannot tell
    return device.type == "cuda" or bool(able.get("avx512_bf16"))


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal: every direction of a matrix learns at one rate.

    torch.optim.Muon takes matrices only and always rounds to bfloat16, which a CPU without such units computes some
    six times slower than float32. This one takes convolutions (as out x everything else), orthogonalises those of about
    one shape together, rounds where there are such units, and never waits for a GPU.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        rate: float,
        momentum: float,
        weight_decay: float,
        rounds: Callable[[torch.device], bool] = has_bfloat16,
    ) -> None:
        """`rounds`: whether a device is to orthogonalise in bfloat16."""
        self._rounds = rounds
        super().__init__(parameters, {"lr": rate, "momentum": momentum, "weight_decay": weight_decay})
        self._buckets: dict[tuple[tuple[int, ...], ...], Buckets] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step, from the gradients that stand in the parameters."""
        assert closure is None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            for parameter in parameters:
                if "momentum" not in self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in parameters]
            momenta = [self.state[parameter]["momentum"] for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
            shapes = tuple(tuple(parameter.shape) for parameter in parameters)
            if shapes not in self._buckets:
                self._buckets[shapes] = Buckets(shapes, parameters[0].device, rounds=self._rounds(parameters[0].device))
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, self._buckets[shapes].levelled(ahead), alpha=-group["lr"])


class Buckets:
    """Where each number of a list of tensors lies in a few stacks of equal matrices, and back: one gather each way."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], device: torch.device, *, rounds: bool = False) -> None:
        self._shapes = shapes
        self._rounds = rounds
        sizes = [torch.Size(shape).numel() for shape in shapes]
        offsets = [sum(sizes[:at]) for at in range(len(sizes))]
        nothing = sum(sizes)  # the place of the zero that padding repeats
        stacks: dict[tuple[int, int], list[tuple[int, Tensor, float]]] = {}
        for at, (shape, offset, size) in enumerate(zip(shapes, offsets, sizes, strict=True)):
            places = torch.arange(offset, offset + size).view(shape[0], -1)
            factor = max(1.0, places.shape[0] / places.shape[1]) ** 0.5
            wide = places if places.shape[0] <= places.shape[1] else places.T
            rows, columns = (-(-side // step) * step for side, step in zip(wide.shape, (ROWS, COLUMNS), strict=True))
            padding = (0, columns - wide.shape[1], 0, rows - wide.shape[0])
            padded = functional.pad(wide, padding, value=nothing)
            stacks.setdefault((rows, columns), []).append((at, padded, factor))
        back = torch.empty(nothing, dtype=torch.int64)
        self._stacks: list[tuple[Tensor, Tensor]] = []
        begin = 0
        for members in stacks.values():
            places = torch.stack([padded for _, padded, _ in members])  # (n, rows, columns)
            real = places.flatten() < nothing
            back[places.flatten()[real]] = begin + torch.arange(places.numel())[real]
            begin += places.numel()
            factors = torch.tensor([factor for _, _, factor in members])[:, None, None]
            self._stacks.append((places.to(device), factors.to(device)))
        self._back = back.to(device)
        self._sizes = sizes

    def levelled(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """`orthogonal` of each tensor as a matrix, of its own shape, times the root of how much higher it is than wide.

        Args:
            tensors: float32, of the shapes that this was made for.

        Returns:
            float32, of the same shapes.
        """
        flat = torch.cat([*(tensor.reshape(-1) for tensor in tensors), self._stacks[0][1].new_zeros(1)])
        updates = [
            (orthogonal(flat[places], rounds=self._rounds) * factors).flatten() for places, factors in self._stacks
        ]
        parts = torch.split(torch.cat(updates)[self._back], self._sizes)
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]


def orthogonal(matrices: Tensor, *, rounds: bool = False) -> Tensor:
    """The nearest matrices with all singular values near 1 (0.7 to 1.2), by Newton-Schulz iteration.

    Args:
        matrices: float32, (n, rows, columns).
        rounds: to bfloat16 first.

    Returns:
        float32, (n, rows, columns). Zero stays zero.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrices.shape[1] <= matrices.shape[2]
    x: Tensor = matrices if wide else matrices.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    if rounds:
        x = x.bfloat16()
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.float()
    return x if wide else x.mT


class Gradients:
    """The gradients of some parameters as one vector: one sum over processes, one norm, and no wait for either."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)

    @torch.no_grad()
    def cut(self, most: float, summed: Callable[[Tensor], Tensor] = lambda flat: flat) -> Tensor:
        """Shorten them to a norm, and leave nothing of them where they are not finite.

        Such a step still moves by its momentum; whoever cares asks the norm, when it is convenient.

        Args:
            most: the norm.
            summed: what adds those of other processes, in place or not.

        Returns:
            float32, the norm before: infinite or NaN where the gradients were.
        """
        given = [parameter for parameter in self._parameters if parameter.grad is not None]
        flat = summed(torch.cat([parameter.grad.reshape(-1) for parameter in given if parameter.grad is not None]))
        norm: Tensor = flat.norm()
        flat = torch.where(norm.isfinite(), flat * (most / (norm + 1e-6)).clamp_max(1.0), 0.0)
        for parameter, part in zip(given, torch.split(flat, [parameter.numel() for parameter in given]), strict=True):
            parameter.grad = part.view_as(parameter)
        return norm


def optimisers(
    model: nn.Module, settings: OptimiserSettings, rounds: Callable[[torch.device], bool] = has_bfloat16
) -> tuple[Muon, torch.optim.AdamW]:
    """Every trained parameter goes to one of the two: matrices and convolutions to Muon, unless told otherwise."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        # A map of a single input, such as the first convolution's, is a vector: it has no directions to level.
        is_matrix = (
            settings.matrices == "muon" and parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) > 1
        )
        (matrices if is_matrix else others).append(parameter)
    muon = Muon([{"params": matrices}], settings.muon_rate, settings.muon_momentum, settings.weight_decay, rounds)
    adam = torch.optim.AdamW(
        others, settings.adam_rate, settings.adam_betas, weight_decay=settings.weight_decay, foreach=True
    )
    return muon, adam


def rate_at(step: int, steps: int, settings: OptimiserSettings) -> float:
    """The part of the full rates that step `step` of `steps` (from 0) has: up, level, and down to zero."""
    up = (step + 1) / max(1, settings.warmup)
    down = (steps - step) / max(1.0, settings.decay * steps)
    return min(1.0, up, down)
