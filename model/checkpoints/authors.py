"""PHALAR's checkpoint as its authors publish it: their names, their hyper-parameters and the CQT kernels."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.errors import UnsupportedModel
from model.checkpoints.lightning import read_lightning, read_weights, refuse_other_choices
from model.phalar import Phalar, PhalarConfig

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
_CQT_BUFFERS = frozenset(
    {_CQT_LENGTHS, "encoder.cqt_extractor.0.cqt_kernels_real", "encoder.cqt_extractor.0.cqt_kernels_imag"}
)
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


def authors_names(model: Phalar) -> dict[str, str]:
    """The authors' name of each of our weights, by our name."""
    return {name: _authors_name(name) for name in model.state_dict()}


def _authors_name(name: str) -> str:
    if match := _OUR_BLOCK.fullmatch(name):
        block, branch, layer = match.groups()
        return f"encoder.backbone.layers.{block}.{_AUTHORS_BRANCH[branch]}.{_AUTHORS_LAYER[layer]}"
    if match := _OUR_COMPRESSION.fullmatch(name):
        return f"encoder.backbone.layers.{match[1]}.compression.weight"
    return _AUTHORS_OUTSIDE_BLOCKS[name]


def read_authors(path: Path) -> tuple[Phalar, dict[str, Tensor], dict[str, int]]:
    """A model of the file's configuration, the weights to fill it with, and the epoch and step that the file tells.

    Raises:
        CheckpointError: one of its children, which says what is wrong.
    """
    root, stored, parameters = read_lightning(path)
    model = Phalar(_authors_config(path, parameters))
    weights = read_weights(path, stored, model, authors_names(model), _CQT_BUFFERS)
    if _CQT_LENGTHS in stored:
        lengths = stored[_CQT_LENGTHS].float()
        if not torch.equal(lengths, model.cqt.lengths):
            raise UnsupportedModel(path, "CQT kernels' lengths", lengths.tolist(), model.cqt.lengths.tolist())
    return model, weights, {key: root[key] for key in ("epoch", "global_step") if isinstance(root.get(key), int)}


def _authors_config(path: Path, parameters: dict[str, object]) -> PhalarConfig:
    """The configuration that a Lightning file's hyper-parameters state; what they leave out is the default."""
    refuse_other_choices(path, parameters, _AUTHORS_CHOICES)
    numbers: dict[str, Any] = {ours: parameters[name] for name, ours in _AUTHORS_NUMBERS.items() if name in parameters}
    try:
        return PhalarConfig(**numbers)
    except ValueError as error:
        raise UnsupportedModel(path, "hyper_parameters", numbers, str(error)) from error
