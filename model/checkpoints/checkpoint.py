"""Save and load our checkpoints; read the authors' Lightning `.ckpt` without running anything in it.

A native checkpoint is safetensors: our names, float32, and in its metadata the configuration, whether the
weights were learned, and notes. No CQT kernels: they follow from the configuration.

The authors' file has their names, their hyper-parameters and the CQT kernels; `torch_archive` reads it.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from model.checkpoints.torch_archive import (
    CheckpointError,
    Inert,
    NotACheckpoint,
    StoredTensor,
    TorchArchive,
    TruncatedCheckpoint,
)
from model.device import open_device
from model.phalar import Phalar, PhalarConfig

FORMAT = "phalar-1"


class LegacyPickle(CheckpointError):
    """A bare pickle, from before torch 1.6 or from no torch at all: refused unread."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "a bare pickle, which may run code: save it again with a torch of this decade")


class UnsupportedModel(CheckpointError):
    """A checkpoint of another architecture than PhalarConfig can express."""

    def __init__(self, path: Path, field: str, value: object, expected: object) -> None:
        super().__init__(path, f"its {field} is {value!r}; supported: {expected!r}")
        self.field = field
        self.value = value
        self.expected = expected


class MissingKeys(CheckpointError):
    """Weights that the model needs and the file does not have."""

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self.names = tuple(sorted(names))
        super().__init__(path, f"lacks {_some(self.names)}")


class ForeignKeys(CheckpointError):
    """Weights that the file has and the model does not know."""

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self.names = tuple(sorted(names))
        super().__init__(path, f"holds {_some(self.names)}, unknown to this model")


class WrongShape(CheckpointError):
    """A weight of another shape than the model's."""

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
        super().__init__(path, f"{name} is of shape {shape}, not {expected}")
        self.name = name
        self.shape = shape
        self.expected = expected


class NonFiniteWeights(CheckpointError):
    """A weight with a NaN or an infinity in it."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, f"{name} holds a NaN or an infinity")
        self.name = name


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
    with path.open("rb") as file:
        magic = file.read(9)
    if magic[4:] == b"\0\0\0\0{":
        # First: a safetensors file begins with its header's length, which may look like any magic number.
        phalar = _load_native(path)
    elif magic[:2] == b"PK":
        phalar = _load_lightning(path)
    elif magic[:1] == b"\x80":
        raise LegacyPickle(path)
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
    path = Path(path)
    weights = {name: weight.detach().cpu().float().contiguous() for name, weight in model.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "config": json.dumps(asdict(model.config), sort_keys=True),
        "trained": json.dumps(trained),
        "notes": json.dumps(dict(model.notes if notes is None else notes), sort_keys=True),
    }
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(save(weights, metadata))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def authors_names(model: Phalar) -> dict[str, str]:
    """The authors' name of each of our weights, by our name."""
    return {name: _authors_name(name) for name in model.state_dict()}


# -- native ------------------------------------------------------------------------------------------------------


def _load_native(path: Path) -> Phalar:
    _refuse_truncated_safetensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise NotACheckpoint(path, f"safetensors of another model: its format is {metadata.get('format')!r}")
            config, trained, notes = _read_metadata(path, metadata)
            model = Phalar(config)
            ours = model.state_dict()
            refuse_other_keys(path, file.keys(), ours)
            for name, weight in ours.items():
                shape = tuple(file.get_slice(name).get_shape())
                refuse_other_shape(path, name, shape, tuple(weight.shape))
            weights = {name: file.get_tensor(name) for name in ours}
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


# -- what both formats must satisfy ------------------------------------------------------------------------------


def refuse_other_keys(path: Path, names: Iterable[str], expected: Iterable[str]) -> None:
    present, needed = set(names), set(expected)
    if needed - present:
        raise MissingKeys(path, needed - present)
    if present - needed:
        raise ForeignKeys(path, present - needed)


def refuse_other_shape(path: Path, name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise WrongShape(path, name, shape, expected)


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


# -- the authors' Lightning checkpoint -----------------------------------------------------------------------------

_AUTHORS_OUTSIDE_BLOCKS = {
    "backbone.input_projection.weight": "encoder.backbone.input_proj.weight",
    "pooling.projection.weight": "encoder.pooling.0.project_in.1.weight",
    "widen.weight": "encoder.mlp.0.W.weight",
    "norm.weight": "encoder.mlp.1.weight",
    "activation.bias": "encoder.mlp.2.b",
    "mix.weight": "encoder.mlp.3.W.weight",
    "similarity.form.weight": "similarity.W.W.weight",
}
_AUTHORS_BRANCH = {"along_frequency": "freq_conv", "along_time": "time_conv", "pointwise": "pointwise_op"}
_AUTHORS_LAYER = {
    "norm.weight": "0.weight",
    "norm.bias": "0.bias",
    "spread.weight": "1.weight",
    "spread.bias": "1.bias",
    "contract.weight": "3.weight",
    "scale": "4.weight",
}
_OUR_BLOCK = re.compile(r"backbone\.blocks\.(\d+)\.(along_frequency|along_time|pointwise)\.(.+)")
_OUR_COMPRESSION = re.compile(r"backbone\.blocks\.(\d+)\.compression\.weight")

_CQT_LENGTHS = "encoder.cqt_extractor.0.lenghts"  # the authors' spelling, from nnAudio
_CQT_BUFFERS = {
    _CQT_LENGTHS,
    "encoder.cqt_extractor.0.cqt_kernels_real",
    "encoder.cqt_extractor.0.cqt_kernels_imag",
}

# What the authors' hyper-parameters say about the architecture: ours to take over, or the one value that we have.
_AUTHORS_NUMBERS = {
    "ft_sep_init_hidden_dim": "channels",
    "ft_sep_depth": "depth",
    "spec_pool_out_channels": "pooled_channels",
    "spec_pool_components": "n_components",
    "embedding_dim": "dimension",
    "input_freq_bins": "bins",
    "dropout_p": "dropout",
}
_AUTHORS_CHOICES: dict[str, object] = {
    "do_cqt": True,
    "backbone_type": "freqtimeseparable",
    "pool_type": "spec_pool",
    "spec_pool_norm": "global",
    "spec_pool_complex_output": True,
    "spec_pool_center_padding": True,
    "comparison_method": "bilinear_similarity",
}


def _authors_name(name: str) -> str:
    if match := _OUR_BLOCK.fullmatch(name):
        block, branch, layer = match.groups()
        return f"encoder.backbone.layers.{block}.{_AUTHORS_BRANCH[branch]}.{_AUTHORS_LAYER[layer]}"
    if match := _OUR_COMPRESSION.fullmatch(name):
        return f"encoder.backbone.layers.{match[1]}.compression.weight"
    return _AUTHORS_OUTSIDE_BLOCKS[name]


def _load_lightning(path: Path) -> Phalar:
    with TorchArchive(path) as archive:
        root = archive.root if isinstance(archive.root, dict) else {}
        stored = root.get("state_dict")
        if not isinstance(stored, dict) or not all(
            isinstance(name, str) and isinstance(tensor, StoredTensor) for name, tensor in stored.items()
        ):
            raise NotACheckpoint(path, "its pickle holds no state_dict of tensors")
        model = Phalar(_authors_config(path, root.get("hyper_parameters")))
        names = authors_names(model)
        refuse_other_keys(path, stored.keys() - _CQT_BUFFERS, names.values())
        for ours, weight in model.state_dict().items():
            refuse_other_shape(path, names[ours], stored[names[ours]].shape, tuple(weight.shape))
        weights = {ours: archive.read(stored[theirs]) for ours, theirs in names.items()}
        if _CQT_LENGTHS in stored:
            lengths = archive.read(stored[_CQT_LENGTHS]).float()
            if not torch.equal(lengths, model.cqt.lengths):
                raise UnsupportedModel(path, "CQT kernels' lengths", lengths.tolist(), model.cqt.lengths.tolist())
    steps = {key: root[key] for key in ("epoch", "global_step") if isinstance(root.get(key), int)}
    notes = {"source": "Lightning checkpoint"} | {key: str(value) for key, value in steps.items()}
    return _fill(path, model, weights, names, steps.get("global_step") != 0, notes)


def _authors_config(path: Path, parameters: object) -> PhalarConfig:
    """The configuration that a Lightning file's hyper-parameters state; what they leave out is the default."""
    if parameters is None:
        return PhalarConfig()
    if not isinstance(parameters, dict):
        raise NotACheckpoint(path, "its hyper_parameters are no table")
    for theirs, expected in _AUTHORS_CHOICES.items():
        value = parameters.get(theirs, expected)
        if isinstance(value, Inert) and len(value.arguments) == 1:
            value = value.arguments[0]  # a member of one of the authors' enumerations, by its value
        if value != expected:
            raise UnsupportedModel(path, theirs, value, expected)
    numbers = {ours: parameters[theirs] for theirs, ours in _AUTHORS_NUMBERS.items() if theirs in parameters}
    try:
        return PhalarConfig(**numbers)
    except ValueError as error:
        raise UnsupportedModel(path, "hyper_parameters", numbers, str(error)) from error


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
