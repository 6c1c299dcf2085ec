"""The compiled axial CNN, where installing found a C++ compiler and this processor has AVX2: see axial_strip.h.

`model/axial.py` gives the same numbers without it, at a third of the speed.
"""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

DONE, NO_MEMORY, NO_THREADS = range(3)
"""What the compiled functions return."""

BUILDS = {"AVX512": ("axial_avx512", "axial_avx2"), "AVX2": ("axial_avx2",)}
"""For what torch calls this processor's capability, the builds that run on it, the fastest first."""


class Network(NamedTuple):
    """What a pass runs through: channels of each block, then those of the result; for each block, whether it halves the
    frames at its end; the epsilon of every norm; and the weights, float32, contiguous, on the CPU, in their order."""

    widths: Sequence[int]
    compresses: Sequence[bool]
    epsilon: float
    weights: Sequence[Tensor]


class AxialKernel:
    """One build of axial_kernel.cpp and axial_training.cpp."""

    def __init__(self, path: Path) -> None:
        self.name = path.name.partition(".")[0]
        library = ctypes.CDLL(str(path))
        pointer, number = ctypes.c_void_p, ctypes.c_int32
        shape: list[Any] = [number, number, number, number, pointer, pointer]
        network: list[Any] = [*shape, pointer, ctypes.c_float, number]
        self._infer, self._tape = library.phalar_axial_infer, library.phalar_axial_tape
        self._forward, self._backward = library.phalar_axial_forward, library.phalar_axial_backward
        self._infer.argtypes = [pointer, pointer, *network]
        self._tape.argtypes = shape[1:]
        self._tape.restype = ctypes.c_int64
        self._forward.argtypes = [pointer, pointer, pointer, pointer, *network]
        self._backward.argtypes = [pointer, pointer, pointer, pointer, pointer, *network]
        self._spare_tapes: list[Tensor] = []  # each step would have the system clear the next step's again

    def infer(self, cqt: Tensor, network: Network) -> Tensor:
        """The whole axial CNN. Each clip's result is the same to the bit in any batch and for any number of threads.

        Args:
            cqt: float32, (batch, bins, frames), on the CPU.

        Returns:
            float32, (batch, channels, bins, steps), with steps innermost, then channels, in memory.

        Raises:
            MemoryError: some MB a thread were not to be had.
        """
        cqt = cqt.contiguous()
        out = _result(cqt, network)
        arguments = [cqt.data_ptr(), out.data_ptr(), *_shape(cqt, network), *_weights(network)]
        status = self._infer(*arguments, torch.get_num_threads())
        if status == NO_THREADS:  # a process that may start no more still has its own
            status = self._infer(*arguments, 1)
        _check(status, cqt)
        return out.transpose(1, 2)

    def forward(self, cqt: Tensor, factors: Tensor, network: Network) -> tuple[Tensor, Tensor]:
        """`infer`, and what `backward` needs of it.

        Args:
            cqt: as for `infer`, contiguous.
            factors: float32, (batch, channels of all branches), contiguous: what dropout multiplies each branch's
                channels by.

        Returns:
            float32, (batch, channels, bins, steps), in memory as that of `infer`; and the tape, float32.

        Raises:
            MemoryError: some MB a clip were not to be had.
        """
        out, shape = _result(cqt, network), _shape(cqt, network)
        tape = self._take_tape(len(cqt) * self._tape(*shape[1:]))
        pointers = [tensor.data_ptr() for tensor in (cqt, factors, tape, out)]
        _check(self._forward(*pointers, *shape, *_weights(network), torch.get_num_threads()), cqt)
        return out.transpose(1, 2), tape

    def backward(
        self, cqt: Tensor, factors: Tensor, tape: Tensor, gradient: Tensor, network: Network
    ) -> tuple[Tensor, ...]:
        """The gradients of all weights, the same to the bit for any number of threads.

        Args:
            cqt, factors, network: as given to `forward`.
            tape: of `forward`, which a later `forward` may write over.
            gradient: float32, (batch, channels, bins, steps): the loss's, with respect to the result of `forward`.

        Returns:
            For each of the network's weights, float32 of its shape.

        Raises:
            MemoryError: some MB a thread were not to be had.
        """
        gradient = gradient.transpose(1, 2).contiguous()  # (batch, bins, channels, steps)
        sizes = [weight.numel() for weight in network.weights]
        flat = torch.empty(sum(sizes))
        pointers = [tensor.data_ptr() for tensor in (cqt, factors, tape, gradient, flat)]
        _check(self._backward(*pointers, *_shape(cqt, network), *_weights(network), torch.get_num_threads()), cqt)
        self._spare_tapes.append(tape)
        parts = zip(torch.split(flat, sizes), network.weights, strict=True)
        return tuple(part.view_as(weight) for part, weight in parts)

    def _take_tape(self, floats: int) -> Tensor:
        spare = sorted(self._spare_tapes, key=Tensor.numel)
        for at, tape in enumerate(spare):
            if tape.numel() >= floats:
                self._spare_tapes = spare[:at] + spare[at + 1 :]
                return tape
        self._spare_tapes = spare[:-1]  # a larger one takes the place of the largest
        return torch.empty(floats)


def _result(cqt: Tensor, network: Network) -> Tensor:
    batch, bins, steps = cqt.shape
    for _ in filter(None, network.compresses):
        steps = (steps + 1) // 2
    return torch.empty(batch, bins, network.widths[-1], steps)


def _shape(cqt: Tensor, network: Network) -> list[Any]:
    blocks, widths = len(network.compresses), network.widths
    return [*cqt.shape, blocks, (ctypes.c_int32 * len(widths))(*widths), (ctypes.c_int32 * blocks)(*network.compresses)]


def _weights(network: Network) -> list[Any]:
    weights = network.weights
    return [(ctypes.c_void_p * len(weights))(*(weight.data_ptr() for weight in weights)), network.epsilon]


def _check(status: int, cqt: Tensor) -> None:
    if status == NO_MEMORY:
        raise MemoryError(f"no memory for the features of {len(cqt)} clips of {cqt.shape[2]} frames")
    assert status == DONE


def built_kernels() -> list[AxialKernel]:
    """Those builds that were made at installation and run on this processor, the fastest first."""
    names = BUILDS.get(torch.backends.cpu.get_cpu_capability(), ())
    paths = [Path(__file__).with_name(name + suffix) for name in names for suffix in EXTENSION_SUFFIXES]
    return [AxialKernel(path) for path in paths if path.is_file()]


@lru_cache(maxsize=1)
def fastest_kernel() -> AxialKernel | None:
    """What `AxialBackbone.infer` uses; None where there is none."""
    return next(iter(built_kernels()), None)
