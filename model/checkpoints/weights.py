"""What every format of checkpoint must satisfy, and how each of ours is written."""

import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from model.checkpoints.errors import ForeignKeys, MissingKeys, WrongShape


def write_safetensors(weights: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Write a file, whole or not at all; the weights may be on any device."""
    write_whole(
        save({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, dict(metadata)), path
    )


def write_whole(data: bytes | memoryview, path: Path) -> None:
    """Make or replace a file, and leave nothing behind where that fails."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def read_safetensors(path: Path, file: Any, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an open file of safetensors.

    Raises:
        MissingKeys, ForeignKeys, WrongShape: they are not those expected.
    """
    refuse_other_keys(path, file.keys(), expected)
    for name, weight in expected.items():
        refuse_other_shape(path, name, tuple(file.get_slice(name).get_shape()), tuple(weight.shape))
    return {name: file.get_tensor(name) for name in expected}


def refuse_other_keys(path: Path, names: Iterable[str], expected: Iterable[str]) -> None:
    present, needed = set(names), set(expected)
    if needed - present:
        raise MissingKeys(path, needed - present)
    if present - needed:
        raise ForeignKeys(path, present - needed)


def refuse_other_shape(path: Path, name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise WrongShape(path, name, shape, expected)
