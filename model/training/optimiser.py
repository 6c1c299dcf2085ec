"""Muon for matrices and convolutions, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from model.training.recipe import OptimiserSettings

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""The quintic of Muon (Jordan et al. 2024): five rounds bring every singular value near 1."""

ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal: every direction of a matrix learns at one rate.

    torch.optim.Muon takes matrices only and always rounds to bfloat16, which a CPU without such units computes eight
    times slower than float32. This one takes convolutions (as out x everything else), orthogonalises equal shapes
    together, and rounds on GPUs only.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        rate: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        super().__init__(parameters, {"lr": rate, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step, from the gradients that stand in the parameters."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1)  # Nesterov's
                by_shape.setdefault((ahead.shape[0], ahead.shape[1]), []).append((parameter, ahead))
            for (rows, columns), members in by_shape.items():
                updates = orthogonal(torch.stack([ahead for _, ahead in members]))
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for (parameter, _), update in zip(members, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.view_as(parameter), alpha=-rate)


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest matrices with all singular values near 1 (0.7 to 1.2), by Newton-Schulz iteration.

    Args:
        matrices: float32, (n, rows, columns).

    Returns:
        float32, (n, rows, columns). Zero stays zero.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrices.shape[1] <= matrices.shape[2]
    x: Tensor = matrices if wide else matrices.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    if x.device.type == "cuda":
        x = x.bfloat16()
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    x = x.float()
    return x if wide else x.mT


def optimisers(model: nn.Module, settings: OptimiserSettings) -> tuple[Muon, torch.optim.AdamW]:
    """Every trained parameter goes to one of the two: matrices and convolutions to Muon, unless told otherwise."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        # A map of a single input, such as the first convolution's, is a vector: it has no directions to level.
        is_matrix = (
            settings.matrices == "muon" and parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) > 1
        )
        (matrices if is_matrix else others).append(parameter)
    muon = Muon([{"params": matrices}], settings.muon_rate, settings.muon_momentum, settings.weight_decay)
    adam = torch.optim.AdamW(
        others, settings.adam_rate, settings.adam_betas, weight_decay=settings.weight_decay, foreach=True
    )
    return muon, adam


def rate_at(step: int, steps: int, settings: OptimiserSettings) -> float:
    """The part of the full rates that step `step` of `steps` (from 0) has: up, level, and down to zero."""
    up = (step + 1) / max(1, settings.warmup)
    down = (steps - step) / max(1.0, settings.decay * steps)
    return min(1.0, up, down)
