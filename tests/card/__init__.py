"""A card without numbers: what our code would do to one, counted on a machine that has none.

torch is told that there is a card, by `card.cpp`; tensors on it are torch's FakeTensors, which have a shape, a type and
a device. What lies on the CPU is real. So a tensor on the wrong device, an operation that CUDA's autocast does not
cast, a launch too many or a synchronisation show; numbers and times do not. For processes of its own (`python -m
tests.card`): a torch that was told so stays so.
"""

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def believe() -> None:
    """Make the torch that is imported next believe in one card. Needs g++."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    torch = Path(str(spec.origin)).parent
    version = hashlib.sha256((torch / "version.py").read_bytes() + (HERE / "card.cpp").read_bytes()).hexdigest()[:16]
    built = Path(tempfile.gettempdir()) / f"phalar-card-{os.getuid()}-{version}.so"
    if not built.is_file():
        command = ["g++", "-shared", "-fPIC", "-std=c++20", f"-I{torch / 'include'}", str(HERE / "card.cpp")]
        command += [f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", "-lc10", "-ltorch_cpu"]
        partial = built.with_suffix(f".{os.getpid()}.partial")
        subprocess.run([*command, "-o", str(partial)], check=True)
        os.replace(partial, built)
    ctypes.CDLL(str(built))


believe()

import torch  # noqa: E402 - it is told of the card first
from torch import Tensor  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

NO_LAUNCH = frozenset(
    {"_conj", "_local_scalar_dense", "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach",
     "device", "diagonal", "empty", "empty_like", "empty_strided", "expand", "imag", "is_same_size", "lift_fresh",
     "narrow", "new_empty", "new_empty_strided", "permute", "real", "resolve_conj", "select", "slice", "split",
     "split_with_sizes", "squeeze", "sym_numel", "sym_size", "sym_storage_offset", "sym_stride", "t", "transpose",
     "unbind", "unfold", "unsqueeze", "view", "view_as_complex", "view_as_real"}
)  # fmt: skip
"""Operations that start nothing on a card: views, and memory that nobody fills."""

WAITS = frozenset({"nonzero", "masked_select", "_unique2", "unique_dim"})
"""Operations whose result has a size that the host must ask the card for."""

PER_LAUNCH = 30
"""Tensors that one launch of a `_foreach` operation takes, about: what fits into a kernel's arguments."""


class Card(TorchDispatchMode):
    """While entered, counts what is done on the card."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[torch.dtype, Any] = {torch.bool: True}
        """What a number of this type, fetched from the card, is said to be; else 1."""
        self._tensors = FakeTensorMode(allow_non_fake_inputs=True)
        torch.cuda.synchronize = lambda *_: self._wait("synchronize")
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        self.launches: Counter[str] = Counter()
        self.bytes_moved = 0
        self.waits: list[str] = []
        self.uploads: Counter[str] = Counter()  # bytes, by the line that copied them and whether it waited

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_card = [tensor for tensor in given if _is_on_card(tensor)]
        wanted = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if name == "_local_scalar_dense" and on_card:
            self._wait("item")
            return self.answers.get(on_card[0].dtype, 1)
        if name == "_to_copy" and on_card and wanted == "cpu":
            self._wait("copy to the host")
            return torch.zeros(on_card[0].shape, dtype=kwargs.get("dtype") or on_card[0].dtype)
        if name == "copy_" and len(given) == 2 and len(on_card) == 1:
            if on_card[0] is given[1]:
                self._wait("copy to the host")
                return given[0].zero_()
            self._upload(given[1], kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
        by_mask = name == "index" and any(tensor.dtype == torch.bool for tensor in on_card[1:])
        if (on_card and name in WAITS) or by_mask:
            self._wait(name)
        if not on_card and wanted == "cuda":
            if given:
                self._upload(given[0], kwargs.get("non_blocking", False))
                if not isinstance(given[0], FakeTensor):
                    args = (self._tensors.from_tensor(given[0].detach()), *args[1:])
            with self._tensors:
                made = func(*args, **kwargs)
        else:
            made = func(*args, **kwargs)
        self._count(name, on_card, [leaf for leaf in tree_leaves(made) if _is_on_card(leaf)])
        return made

    def _wait(self, what: str) -> None:
        self.waits.append(f"{what} at {_our_line()}")

    def _upload(self, tensor: Tensor, goes_on: bool) -> None:
        self.uploads[f"{_our_line()}{'' if goes_on else ', and waited'}"] += tensor.nbytes

    def _count(self, name: str, on_card: list[Tensor], made: list[Tensor]) -> None:
        if name in NO_LAUNCH or not (on_card or made):
            return
        tensors = {id(tensor): tensor for tensor in (*on_card, *made)}
        self.bytes_moved += sum(tensor.nbytes for tensor in tensors.values())
        # In place, half of them are what is read.
        worked_on = max(len(made), -(-len(on_card) // 2))
        self.launches[name] += -(-worked_on // PER_LAUNCH) if name.startswith("_foreach") else 1


def _is_on_card(leaf: Any) -> bool:
    return isinstance(leaf, FakeTensor) and leaf.device.type == "cuda"


def _our_line() -> str:
    """The innermost line of ours on the stack."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and not path.is_relative_to(HERE) and ".venv" not in path.parts:
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "elsewhere"


def _pretend() -> None:
    """What torch would ask a driver for."""
    torch.cuda._lazy_init = lambda: None
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    torch.cuda.manual_seed_all = lambda seed: None
    torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    Tensor.pin_memory = lambda tensor: tensor


_pretend()
