"""The compiled axial CNN, where installing found a C++ compiler and this processor has AVX2: see axial_kernel.cpp.

`model/axial.py` gives the same numbers without it, at a third of the speed.
"""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

DONE, NO_MEMORY, NO_THREADS = range(3)
"""What the compiled function returns."""

BUILDS = {"AVX512": ("axial_avx512", "axial_avx2"), "AVX2": ("axial_avx2",)}
"""For what torch calls this processor's capability, the builds that run on it, the fastest first."""


class AxialKernel:
    """One build of axial_kernel.cpp."""

    def __init__(self, path: Path) -> None:
        self.name = path.name.partition(".")[0]
        self._infer = ctypes.CDLL(str(path)).phalar_axial_infer
        pointer, number = ctypes.c_void_p, ctypes.c_int32
        self._infer.argtypes = [
            pointer, pointer, number, number, number, number, pointer, pointer, pointer, ctypes.c_float, number,
        ]  # fmt: skip

    def infer(
        self, cqt: Tensor, widths: Sequence[int], compresses: Sequence[bool], weights: Sequence[Tensor], epsilon: float
    ) -> Tensor:
        """The whole axial CNN. Each clip's result is the same to the bit in any batch and for any number of threads.

        Args:
            cqt: float32, (batch, bins, frames), on the CPU.
            widths: channels of each block, then those of the result.
            compresses: for each block, whether it halves the frames at its end.
            weights: float32, contiguous, on the CPU, in the order in which the network uses them.
            epsilon: of every norm.

        Returns:
            float32, (batch, channels, bins, steps), with steps innermost, then channels, in memory.

        Raises:
            MemoryError: some MB a thread were not to be had.
        """
        cqt = cqt.contiguous()
        batch, bins, frames = cqt.shape
        steps = frames
        for _ in filter(None, compresses):
            steps = (steps + 1) // 2
        out = torch.empty(batch, bins, widths[-1], steps)
        arguments = [
            cqt.data_ptr(), out.data_ptr(), batch, bins, frames, len(compresses),
            (ctypes.c_int32 * len(widths))(*widths), (ctypes.c_int32 * len(compresses))(*compresses),
            (ctypes.c_void_p * len(weights))(*(weight.data_ptr() for weight in weights)), epsilon,
        ]  # fmt: skip
        status = self._infer(*arguments, torch.get_num_threads())
        if status == NO_THREADS:  # a process that may start no more still has its own
            status = self._infer(*arguments, 1)
        if status == NO_MEMORY:
            raise MemoryError(f"no memory for the features of {batch} clips of {frames} frames")
        assert status == DONE
        return out.transpose(1, 2)


def built_kernels() -> list[AxialKernel]:
    """Those builds that were made at installation and run on this processor, the fastest first."""
    names = BUILDS.get(torch.backends.cpu.get_cpu_capability(), ())
    paths = [Path(__file__).with_name(name + suffix) for name in names for suffix in EXTENSION_SUFFIXES]
    return [AxialKernel(path) for path in paths if path.is_file()]


@lru_cache(maxsize=1)
def fastest_kernel() -> AxialKernel | None:
    """What `AxialBackbone.infer` uses; None where there is none."""
    return next(iter(built_kernels()), None)
