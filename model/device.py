"""Which device: what was asked for, whether it is there, and what it is. Never another one in silence."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.errors import Told

if TYPE_CHECKING:
    import torch  # at run time inside the functions: a command's help must not load it
    from torch import Tensor


class DeviceUnavailable(Told):
    """The device that was asked for cannot be used; `reason` says what was found, and what to do."""

    says = "the device {wanted!r} cannot be used: {reason}"
    wanted: str
    reason: str


@dataclass(frozen=True)
class DeviceFacts:
    """What a device is. `driver` is empty on a CPU; `memory_bytes` is the card's, in all."""

    name: str
    driver: str = ""
    memory_bytes: int = 0

    def __str__(self) -> str:
        memory = f", {self.memory_bytes / 2**30:.0f} GiB" if self.memory_bytes else ""
        return f"{self.name}{memory}{f', {self.driver}' if self.driver else ''}"


def open_device(wanted: str, place: int = 0, of: int = 1) -> torch.device:
    """The device of this process, once it has answered.

    Args:
        wanted: as torch names them: `cpu`, `cuda`, `cuda:1`.
        place: this process's number among those on this machine that share the work: `cuda` is the card of this number.
        of: how many there are.

    Raises:
        DeviceUnavailable: torch knows no such device, or cannot use it; says why.
    """
    import torch

    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise DeviceUnavailable(
            wanted, "torch knows no device of this name; there are cpu, cuda, cuda:1 ..."
        ) from error
    if device.type != "cuda":
        return device
    if (reason := why_no_card()) is not None:
        raise DeviceUnavailable(wanted, reason)
    count = torch.cuda.device_count()
    if device.index is not None and of > 1:
        raise DeviceUnavailable(wanted, f"{of} processes would share it; say cuda, and each takes a card of its own")
    index = place if device.index is None else device.index
    if index >= count:
        there = "one card, cuda:0" if count == 1 else f"{count} cards, cuda:0 to cuda:{count - 1}"
        more = "" if device.index is not None else f"; process {place + 1} of {of} has none: start {count} at most"
        raise DeviceUnavailable(wanted, f"this machine has {there}{more}")
    device = torch.device("cuda", index)
    try:
        torch.zeros(1, device=device).sum().item()
    except RuntimeError as error:
        raise DeviceUnavailable(wanted, f"it does not answer: {_first_line(error)}") from error
    return device


def best_device(place: int = 0, of: int = 1) -> tuple[torch.device, str | None]:
    """The card of this process where this machine has any, else the CPU and the reason why."""
    import torch

    reason = why_no_card()
    return (torch.device("cpu"), reason) if reason is not None else (open_device("cuda", place, of), None)


def why_no_card() -> str | None:
    """Why torch can use no card here; None where it can."""
    import torch

    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is a build without CUDA; install one with it (deploy/locks/gpu.txt), or use cpu"
        )
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:  # no driver, one that is too old, no card: torch says which
        return f"{_first_line(error)} Torch {torch.__version__} was built for CUDA {torch.version.cuda}."
    return None if torch.cuda.device_count() else "the driver finds no card; is CUDA_VISIBLE_DEVICES empty?"


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on another device; to a card from pinned memory, so that the host goes on meanwhile."""
    import torch

    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return (tensor.pin_memory() if torch.cuda.is_available() else tensor).to(device, non_blocking=True)


def facts_of(device: torch.device) -> DeviceFacts:
    """Name, driver and memory of a device."""
    import torch

    if device.type != "cuda":
        return DeviceFacts(f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)")
    properties = torch.cuda.get_device_properties(device)
    return DeviceFacts(properties.name, f"driver {_driver()}, CUDA {torch.version.cuda}", properties.total_memory)


def _driver() -> str:
    """The version of NVIDIA's kernel driver, as it says itself."""
    try:
        with open("/sys/module/nvidia/version", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "of unknown version"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].strip()
