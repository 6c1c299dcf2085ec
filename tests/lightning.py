"""Checkpoints as PHALAR's authors publish theirs, for tests to write; and what an evil one may hold."""

import enum
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.authors import authors_names
from model.phalar import Phalar

AUTHORS_MODULE = "contrastive_model.constants"


@contextmanager
def authors_enumerations() -> Iterator[Any]:
    """The module of the authors' enumerations, there only while a file is written, as it is on no user's machine."""
    package, module = types.ModuleType("contrastive_model"), types.ModuleType(AUTHORS_MODULE)
    for name, values in {
        "ModelComparisonMethod": ("cocola_similarity", "bilinear_similarity", "cosine_similarity"),
        "ModelInputType": ("double_channel_harmonic_percussive",),
        "EmbeddingMode": ("random",),
    }.items():
        setattr(module, name, enum.Enum(name, {value: value for value in values}, module=AUTHORS_MODULE))
    sys.modules |= {"contrastive_model": package, AUTHORS_MODULE: module}
    try:
        yield module
    finally:
        del sys.modules["contrastive_model"], sys.modules[AUTHORS_MODULE]


class Member:
    """Pickles as a member of one of the authors' enumerations does."""

    def __init__(self, kind: str, value: str) -> None:
        self.kind, self.value = kind, value

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return getattr(sys.modules[AUTHORS_MODULE], self.kind), (self.value,)


class Attack:
    """Unpickles by calling a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.arguments


def lightning_file(state: Mapping[str, Tensor], parameters: Mapping[str, object]) -> dict[str, Any]:
    """What Lightning saves, around some weights and hyper-parameters."""
    return {
        "epoch": 499,
        "global_step": 80_000,
        "pytorch-lightning_version": "2.2.1",
        "state_dict": dict(state),
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": dict(parameters),
    }


@dataclass(frozen=True)
class Lightning:
    """Writes the authors' files."""

    phalar: Phalar
    path: Path

    def contents(self) -> dict[str, Any]:
        """Of the layout that the authors publish; the CQT kernels, which nothing reads, are cut short."""
        names = authors_names(self.phalar)
        state = {
            "encoder.cqt_extractor.0.lenghts": self.phalar.cqt.lengths.clone(),
            "encoder.cqt_extractor.0.cqt_kernels_real": torch.zeros(96, 1, 2),
            "encoder.cqt_extractor.0.cqt_kernels_imag": torch.zeros(96, 1, 2),
        }
        state |= {names[ours]: weight.clone() for ours, weight in self.phalar.state_dict().items()}
        parameters = {
            "embedding_dim": 512,
            "comparison_method": Member("ModelComparisonMethod", "bilinear_similarity"),
            "backbone_type": "freqtimeseparable",
            "ft_sep_depth": 5,
            "dropout_p": 0.1,
            "do_cqt": True,
        }
        return lightning_file(state, parameters)

    def write(self, contents: object) -> Path:
        with authors_enumerations():
            torch.save(contents, self.path)
        return self.path
