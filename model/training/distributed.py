"""Several processes, one batch: what torchrun starts, told apart by its environment variables."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.device import best_device, open_device

PATIENCE = datetime.timedelta(hours=2)
"""The first process decodes the stems while the others wait."""


@contextmanager
def process_group(device: str | None) -> Iterator[tuple[int, torch.device]]:
    """Join the group that torchrun made, if it did; leave it at the end.

    Args:
        device: a torch device, `cuda` for a card each; unset: that where there is a card, else the CPU.

    Yields:
        This process's number, 0 where it is the only one, and its device.

    Raises:
        DeviceUnavailable: it cannot be used, or there are fewer cards than processes.
    """
    rank = int(os.environ.get("RANK", "0"))
    place, of = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    here = best_device(place, of)[0] if device is None else open_device(device, place, of)
    if "RANK" not in os.environ:
        yield rank, here
        return
    if here.type == "cuda":
        torch.cuda.set_device(here)
    dist.init_process_group("nccl" if here.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield rank, here
    finally:
        dist.destroy_process_group()


@contextmanager
def first_alone(rank: int) -> Iterator[None]:
    """A block that the first process runs before the others: what it writes, they find."""
    if dist.is_initialized() and rank > 0:
        dist.barrier()
    yield
    if dist.is_initialized() and rank == 0:
        dist.barrier()


def mean_over_processes(vector: Tensor) -> Tensor:
    """The mean of one vector of each process."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return vector
    dist.all_reduce(vector)
    return vector / dist.get_world_size()


def gather(embedded: Tensor) -> Tensor:
    """The rows of all processes, in their order, with gradients: (n, ...) -> (processes * n, ...).

    Each process computes the whole batch's loss, so a row's gradient is the sum over processes: divide the weights'
    summed gradients by the number of processes.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return embedded
    if embedded.is_complex():
        return torch.view_as_complex(_Gather.apply(torch.view_as_real(embedded)))  # type: ignore[no-untyped-call]
    gathered: Tensor = _Gather.apply(embedded)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous()
        dist.all_reduce(summed)
        return summed.chunk(dist.get_world_size())[dist.get_rank()]
