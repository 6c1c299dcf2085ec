"""Read a torch file (a zip of one pickle and one file a tensor) without running anything in it.

A pickle is a program. This unpickler knows a short list of names and gives an inert stand-in for each: nothing
that a file names is ever imported or called, a stand-in has no state that the file could change, and tensors are
read from the zip by us, once they are wanted.
"""

import io
import math
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor

from model.audio.errors import BadFile

MOST_PICKLE_BYTES = 64 * 2**20
"""A pickle of names and shapes takes tens of kilobytes; a larger one is refused unread."""

LARGEST_SIZE = 2**40
"""No size, stride or offset of a real tensor is larger."""


class CheckpointError(BadFile):
    """A file that cannot become a Phalar; each child names its cause and carries the facts."""


class NotACheckpoint(CheckpointError):
    """Neither our safetensors nor a Lightning checkpoint, or one of something else."""


class TruncatedCheckpoint(CheckpointError):
    """The file ends before what its own table of contents promises, or a part of it is damaged."""


class UnsafePickle(CheckpointError):
    """The pickle names something that no weights need, such as a function to run; nothing was run."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, f"its pickle asks for {name}, which no weights need; nothing was run")
        self.name = name


class TorchArchive:
    """An open torch file: `root` is what its pickle holds, by stand-ins; `read` gives one tensor of it.

    Raises:
        CheckpointError: one of the children above.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            # A zip's table of contents is its end, so this is what a cut one looks like.
            raise TruncatedCheckpoint(path, f"a zip without its end ({error})") from error
        try:
            self.root: Any = self._unpickle()
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def read(self, stored: "StoredTensor") -> Tensor:
        """The tensor itself, in memory of its own."""
        storage = stored.storage
        expected_bytes = storage.length * storage.dtype.itemsize
        data = self._read_entry(f"{self._folder}data/{storage.key}", expected_bytes)
        if len(data) != expected_bytes:
            raise TruncatedCheckpoint(self.path, f"storage {storage.key} has {len(data)} bytes of {expected_bytes}")
        last = stored.offset + sum((size - 1) * step for size, step in zip(stored.shape, stored.stride, strict=True))
        if math.prod(stored.shape) == 0 or last >= storage.length:
            raise NotACheckpoint(self.path, f"a tensor reaches beyond its storage {storage.key}")
        flat = torch.frombuffer(bytearray(data), dtype=storage.dtype)
        return torch.as_strided(flat, stored.shape, stored.stride, stored.offset).clone()

    def _unpickle(self) -> object:
        pickles = [name for name in self._zip.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise NotACheckpoint(self.path, "a zip without the one data.pkl of a torch file")
        self._folder = pickles[0].removesuffix("data.pkl")
        byte_order = f"{self._folder}byteorder"
        if byte_order in self._zip.namelist() and self._read_entry(byte_order, 16) != b"little":
            raise NotACheckpoint(self.path, "its tensors are big-endian")
        data = self._read_entry(pickles[0], MOST_PICKLE_BYTES)
        try:
            return _InertUnpickler(self.path, data).load()
        except CheckpointError:
            raise
        except Exception as error:
            # A broken pickle can fail in any way that Python knows; none of them is ours to tell apart.
            raise NotACheckpoint(self.path, f"its pickle cannot be read ({error!r})") from error

    def _read_entry(self, name: str, most_bytes: int) -> bytes:
        try:
            entry = self._zip.getinfo(name)
        except KeyError:
            raise TruncatedCheckpoint(self.path, f"{name} is not in the zip") from None
        # torch never compresses; a small compressed entry could fill all memory.
        if entry.compress_type != zipfile.ZIP_STORED:
            raise NotACheckpoint(self.path, f"{name} is compressed, which no torch file is")
        if entry.file_size > most_bytes:
            raise NotACheckpoint(self.path, f"{name} takes {entry.file_size} bytes, more than the {most_bytes} it may")
        try:
            return self._zip.read(entry)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise TruncatedCheckpoint(self.path, f"{name} cannot be read ({error})") from error


class Inert:
    """Stands in for an object of a class that we do not have, or do not want: keeps its arguments, does nothing."""

    arguments: tuple[object, ...]

    def __new__(cls, *arguments: object) -> Self:
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        """Ignore it: an inert object has no state."""


class _InertDict(dict[Any, Any]):
    """Stands in for every dictionary that has a class of its own."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(argument for argument in arguments[:1] if isinstance(argument, dict)))

    def __setstate__(self, state: object) -> None:
        """Ignore it, as above."""


class _NoState:
    """What a pickle may mention but not change."""

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError(f"a state for {type(self).__name__}")


@dataclass(frozen=True)
class _Storage(_NoState):
    key: str
    dtype: torch.dtype
    length: int


@dataclass(frozen=True)
class StoredTensor(_NoState):
    """Where a tensor lies in the zip: what a call of torch._utils._rebuild_tensor_v2 comes to here."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _RebuildTensor(_NoState):
    def __call__(self, storage: object, offset: object, shape: object, stride: object, *_: object) -> StoredTensor:
        if not isinstance(storage, _Storage) or not _is_size(offset):
            raise pickle.UnpicklingError("a tensor without a storage")
        if not _are_sizes(shape) or not _are_sizes(stride) or len(shape) != len(stride):
            raise pickle.UnpicklingError("a tensor of no proper shape")
        return StoredTensor(storage, offset, shape, stride)


class _RebuildParameter(_NoState):
    def __call__(self, tensor: object, *_: object) -> object:
        return tensor


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and 0 <= value <= LARGEST_SIZE


def _are_sizes(values: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(values, tuple) and all(_is_size(value) for value in values)


_STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

_STAND_INS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("collections", "OrderedDict"): _InertDict,
    # What Lightning or an optimiser may leave beside the weights.
    ("lightning_fabric.utilities.data", "AttributeDict"): _InertDict,
    ("lightning.fabric.utilities.data", "AttributeDict"): _InertDict,
    ("pytorch_lightning.utilities.parsing", "AttributeDict"): _InertDict,
    ("pathlib", "Path"): Inert,
    ("pathlib", "PosixPath"): Inert,
    ("pathlib", "WindowsPath"): Inert,
    ("torch", "device"): Inert,
    ("torch", "Size"): Inert,
    # A storage's type is only a dtype here, nothing that could be called.
    **{("torch", name): dtype for name, dtype in _STORAGE_TYPES.items()},
}

_AUTHORS_ENUMS = "contrastive_model.constants"
"""The authors' module of enumerations; their hyper-parameters hold members of it, we hold their values."""


class _InertUnpickler(pickle.Unpickler):
    """Resolves a name to its stand-in; every other name is refused before anything is imported."""

    def __init__(self, path: Path, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        if module == _AUTHORS_ENUMS and name.isidentifier():
            return Inert
        raise UnsafePickle(self.path, f"{module}.{name}")

    def persistent_load(self, reference: Any) -> _Storage:
        match reference:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(length)) if key.isalnum() and _is_size(
                length
            ):
                return _Storage(key, dtype, length)
        raise pickle.UnpicklingError("a storage of an unknown form")
