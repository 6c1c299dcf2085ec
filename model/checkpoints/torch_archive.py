"""Read a torch file (a zip of one pickle and one file a tensor) without running anything in it.

A pickle is a program. It goes through torch's own unpickler of weights, which calls nothing but what makes tensors and
containers of them; for the few other names that Lightning's and the authors' files hold there are inert stand-ins.
"""

import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from model.audio.errors import BadFile


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


_AUTHORS_ENUMS = "contrastive_model.constants."
"""The authors' module of enumerations; their hyper-parameters hold members of it, we hold their values."""

_STAND_INS: dict[str, type] = {
    "lightning_fabric.utilities.data.AttributeDict": dict,
    "lightning.fabric.utilities.data.AttributeDict": dict,
    "pytorch_lightning.utilities.parsing.AttributeDict": dict,
    "pathlib.Path": Inert,
    "pathlib.PosixPath": Inert,
    "pathlib.WindowsPath": Inert,
}

_one_at_a_time = threading.Lock()  # torch keeps its list of safe names for the whole process


def read_torch_file(path: Path) -> Any:
    """What a torch file's pickle holds, tensors included, in the CPU's memory.

    Raises:
        CheckpointError: one of the children above.
    """
    _refuse_broken_zip(path)
    try:
        with _one_at_a_time, safe_globals(_stand_ins_for(path)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:
        # A broken pickle can fail in any way that Python knows; none of them is ours to tell apart.
        raise NotACheckpoint(path, f"its pickle cannot be read ({error!r})") from error


def _refuse_broken_zip(path: Path) -> None:
    """torch itself checks no sums, and would unpack a small compressed entry until the memory is full."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if not any(entry.filename.endswith("/data.pkl") for entry in entries):
                raise NotACheckpoint(path, "a zip without the data.pkl of a torch file")
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise NotACheckpoint(path, f"{entry.filename} is compressed, which no torch file is")
            if damaged := archive.testzip():
                raise TruncatedCheckpoint(path, f"{damaged} has another CRC than it should have")
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        # A zip's table of contents is its end, so this is what a cut one looks like.
        raise TruncatedCheckpoint(path, f"a broken zip ({error})") from error


def _stand_ins_for(path: Path) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """The stand-in of each name in the pickle that torch does not know, with that name."""
    found: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    for name in get_unsafe_globals_in_checkpoint(path):
        stand_in = Inert if name.startswith(_AUTHORS_ENUMS) else _STAND_INS.get(name)
        if stand_in is None:
            raise UnsafePickle(path, name)
        found.append((stand_in, name))
    return found
