"""Checkpoints of PyTorch Lightning, as PHALAR's authors publish theirs: read without running anything in them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from model.checkpoints.errors import LegacyPickle, UnsupportedModel
from model.checkpoints.torch_archive import Inert, NotACheckpoint, read_torch_file
from model.checkpoints.weights import refuse_other_keys, refuse_other_shape


def is_lightning(path: Path) -> bool:
    """Whether a file is torch's zip archive; if not, it may be safetensors. Its content decides, not its name.

    Raises:
        LegacyPickle: it is a bare pickle.
    """
    with path.open("rb") as file:
        magic = file.read(9)
    if magic[4:] == b"\0\0\0\0{":
        return False  # first: safetensors begin with their header's length, which may look like any magic number
    if magic[:1] == b"\x80":
        raise LegacyPickle(path)
    return magic[:2] == b"PK"


def read_lightning(path: Path) -> tuple[dict[Any, Any], dict[str, Tensor], dict[Any, Any]]:
    """All that the file says, its state_dict, and its hyper-parameters (none: empty).

    Raises:
        NotACheckpoint: it holds no state_dict of tensors, or hyper-parameters of another form.
        CheckpointError: as `read_torch_file`.
    """
    held = read_torch_file(path)
    root = held if isinstance(held, dict) else {}
    stored, parameters = root.get("state_dict"), root.get("hyper_parameters")
    if not isinstance(stored, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in stored.items()
    ):
        raise NotACheckpoint(path, "its pickle holds no state_dict of tensors")
    if parameters is not None and not isinstance(parameters, dict):
        raise NotACheckpoint(path, "its hyper_parameters are no table")
    return root, stored, parameters or {}


def refuse_other_choices(path: Path, parameters: Mapping[Any, Any], choices: Mapping[str, object]) -> None:
    """Raise UnsupportedModel where a hyper-parameter differs from the one value that we have; it may be left out."""
    for name, expected in choices.items():
        value = parameters.get(name, expected)
        if isinstance(value, Inert) and len(value.arguments) == 1:
            value = value.arguments[0]  # a member of one of the authors' enumerations, by its value
        if value != expected:
            raise UnsupportedModel(path, name, value, expected)


def read_weights(
    path: Path,
    stored: Mapping[str, Tensor],
    model: nn.Module,
    names: Mapping[str, str],
    unread: frozenset[str] = frozenset(),
) -> dict[str, Tensor]:
    """The model's weights by our names; `names` gives theirs, and `unread` what else the file may hold.

    Raises:
        MissingKeys, ForeignKeys, WrongShape: they are not those of the model; the message has the authors' names.
    """
    refuse_other_keys(path, stored.keys() - unread, names.values())
    for ours, weight in model.state_dict().items():
        refuse_other_shape(path, names[ours], tuple(stored[names[ours]].shape), tuple(weight.shape))
    return {ours: stored[theirs] for ours, theirs in names.items()}
