"""Save and load Phalar's checkpoints.

Ours is safetensors: our names, float32, and in its metadata the configuration, whether the weights were learned, and
notes. No CQT kernels: they follow from the configuration. The authors' Lightning `.ckpt` loads too, see `authors`.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.checkpoints.authors import authors_names, read_authors
from model.checkpoints.errors import NonFiniteWeights, UnsupportedModel
from model.checkpoints.lightning import is_lightning
from model.checkpoints.torch_archive import NotACheckpoint, TruncatedCheckpoint
from model.checkpoints.weights import read_safetensors, write_safetensors
from model.device import open_device
from model.phalar import Phalar, PhalarConfig

FORMAT = "phalar-1"


def load_phalar(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Phalar:
    """Load a checkpoint: ours, or the authors' Lightning `.ckpt`. The content decides, not the name.

    Args:
        path: the file.
        device: where the model goes.

    Returns:
        Phalar in evaluation mode; the same weights give the same fingerprint from either format.

    Raises:
        CheckpointError: one of its children, which says what is wrong. Nothing in the file is ever run.
        OSError: the file cannot be read.
        DeviceUnavailable: the device cannot be used.
    """
    path = Path(path)
    if is_lightning(path):
        model, weights, steps = read_authors(path)
        notes = {"source": "Lightning checkpoint"} | {key: str(value) for key, value in steps.items()}
        phalar = _fill(path, model, weights, authors_names(model), steps.get("global_step") != 0, notes)
    else:
        phalar = _load_native(path)
    return phalar.to(open_device(device) if isinstance(device, str) else device).eval()


def save_phalar(
    model: Phalar, path: str | os.PathLike[str], trained: bool = True, notes: Mapping[str, str] | None = None
) -> None:
    """Write a native checkpoint, whole or not at all.

    Args:
        model: on any device.
        path: the file to make or replace.
        trained: whether the weights were learned; False makes every user of the file say so.
        notes: free-form facts to keep with the weights (data, recipe, date); unset: those of the model.
    """
    metadata = {
        "format": FORMAT,
        "config": json.dumps(asdict(model.config), sort_keys=True),
        "trained": json.dumps(trained),
        "notes": json.dumps(dict(model.notes if notes is None else notes), sort_keys=True),
    }
    write_safetensors({name: weight.float() for name, weight in model.state_dict().items()}, metadata, Path(path))


def _load_native(path: Path) -> Phalar:
    _refuse_truncated_safetensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise NotACheckpoint(path, f"safetensors of another model: its format is {metadata.get('format')!r}")
            config, trained, notes = _read_metadata(path, metadata)
            model = Phalar(config)
            weights = read_safetensors(path, file, model.state_dict())
    except SafetensorError as error:
        raise NotACheckpoint(path, f"neither safetensors nor a Lightning checkpoint ({error})") from error
    return _fill(path, model, weights, {name: name for name in weights}, trained, notes)


def _read_metadata(path: Path, metadata: Mapping[str, str]) -> tuple[PhalarConfig, bool, dict[str, str]]:
    try:
        numbers = json.loads(metadata["config"])
        trained = json.loads(metadata["trained"])
        notes = json.loads(metadata.get("notes", "{}"))
    except (KeyError, json.JSONDecodeError) as error:
        raise NotACheckpoint(path, f"its metadata cannot be read ({error!r})") from error
    if not isinstance(numbers, dict) or not isinstance(trained, bool) or not isinstance(notes, dict):
        raise NotACheckpoint(path, "its metadata is of another form")
    numbers = {"kernel_fronts": False} | numbers  # checkpoints from before it do not say
    known = {field.name for field in fields(PhalarConfig)}
    for name in sorted(numbers.keys() ^ known):
        raise UnsupportedModel(path, f"configuration's {name}", numbers.get(name), "known fields, all of them")
    try:
        config = PhalarConfig(**numbers)
    except ValueError as error:
        raise UnsupportedModel(path, "configuration", numbers, str(error)) from error
    return config, trained, {str(key): str(value) for key, value in notes.items()}


def _refuse_truncated_safetensors(path: Path) -> None:
    """Compare the file's size with its header's promise; a file that has no such header is left to safetensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > 2**26 or file.read(1) != b"{":
            return
        if size < 8 + length:
            raise TruncatedCheckpoint(path, f"its header takes {length} bytes, the file {size}")
        try:
            header = json.loads(b"{" + file.read(length - 1))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            promised = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return
    if size < promised:
        raise TruncatedCheckpoint(path, f"{size} bytes of {promised}")


def _fill(
    path: Path,
    model: Phalar,
    weights: Mapping[str, Tensor],
    names_in_file: Mapping[str, str],
    trained: bool,
    notes: Mapping[str, str],
) -> Phalar:
    for name, weight in weights.items():
        if not weight.is_floating_point():
            raise UnsupportedModel(path, f"{names_in_file[name]}'s type", str(weight.dtype), "floating point")
        if not bool(torch.isfinite(weight).all()):
            raise NonFiniteWeights(path, names_in_file[name])
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    model.trained = trained
    model.notes = notes
    return model
