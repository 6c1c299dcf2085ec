"""CDPAM (arXiv:2102.05109) from its PyPI package, weights included: minus its perceptual distance.

As its package computes it; PHALAR's authors leave out the norm of the acoustics. Sixteen convolutions at full rate make
it dear: 80 billion multiplications for each second of a clip.
"""

from __future__ import annotations

import importlib.util
import io
import pickletools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from model.evaluation.baselines.resampling import resample

RATE = 22_050
"""Samples a second that it was trained on."""

WEIGHTS = "CDPAM_trained/scratchJNDdefault_best_model.pth"
"""In the package."""

ARCHITECTURE = {"encoder_layers": 16, "encoder_filters": 64, "input_size": 512, "ndim": [16, 6], "classif_BN": 0}
"""What these weights need; other models of the package have other sizes."""

CLIPS_AT_ONCE = 4
"""How many clips go through the encoder together, which bounds memory."""


class Cdpam:
    """The metric split in two: each clip is encoded once, and the distance is one of encodings."""

    def __init__(self, network: Any, device: str) -> None:
        self.network = network.to(device).eval()
        self.device = device

    @torch.no_grad()
    def embed(self, waveforms: Tensor) -> Tensor:
        """float32 (n, samples) at 16 kHz -> float32 (n, 512): the acoustics that the distance compares."""
        rows = torch.round(resample(waveforms, RATE) * 32_768)  # it reads whole numbers of 16 bits
        acoustics = []
        for part in torch.split(rows, CLIPS_AT_ONCE):
            _, heard, _ = self.network.base_encoder(part.to(self.device).unsqueeze(1))
            acoustics.append(functional.normalize(heard, dim=1))
        return torch.cat(acoustics)

    @torch.no_grad()
    def score(self, x: Tensor, y: Tensor) -> Tensor:
        """Minus the distance of all pairs, float32 (n, m): 0 for the same clip, else below; symmetric."""
        return -torch.stack([self.network.model_dist(row.expand(len(y), -1), y).flatten() for row in x])


def load(checkpoint: str | None, device: str = "cpu") -> Cdpam:
    """CDPAM by its package.

    Args:
        checkpoint: a file of weights of the same layout; None: those in the package.
        device: where the model goes.

    Raises:
        ModuleNotFoundError: cdpam is not installed.
        OSError: the file cannot be read.
        pickle.UnpicklingError: the file asks for more than tensors; nothing was run.
        RuntimeError: weights are missing, unknown or of another shape.
    """
    found = importlib.util.find_spec("cdpam")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("CDPAM needs cdpam: pip install 'phalar-retrieval[baselines]'")
    folder = Path(found.origin).parent
    network = _models(folder / "models.py").FINnet(dev=torch.device("cpu"), **ARCHITECTURE)
    network.load_state_dict(_read(folder / WEIGHTS if checkpoint is None else Path(checkpoint)))
    return Cdpam(network, device)


def _models(path: Path) -> Any:
    """The package's networks alone: its root imports resampy, which it neither declares nor needs for this."""
    spec = importlib.util.spec_from_file_location("cdpam_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _read(path: Path) -> Any:
    """The weights, by torch's safe unpickler."""
    data = io.BytesIO(_with_long_integers(path.read_bytes()))
    return torch.load(data, map_location="cpu", weights_only=True)["state"]


def _with_long_integers(data: bytes) -> bytes:
    """A torch file from before 1.6 with its decimal integers written in binary; any other file as it is.

    Python 2 pickled this file, and wrote large integers (the optimiser's keys) by an opcode that torch's safe
    unpickler does not know.
    """
    if data[:2] == b"PK":
        return data
    stream = io.BytesIO(data)
    for _ in range(3):  # a magic number, a version, facts of the machine; then the contents
        for _ in pickletools.genops(stream):
            pass
    rewritten, copied = bytearray(), 0
    integer_at: int | None = None
    value = 0
    for opcode, argument, place in pickletools.genops(stream):
        assert place is not None
        if integer_at is not None:
            rewritten += data[copied:integer_at] + b"\x8a\x08" + value.to_bytes(8, "little", signed=True)
            copied, integer_at = place, None
        if opcode.name == "INT" and isinstance(argument, int):
            integer_at, value = place, argument
    return bytes(rewritten) + data[copied:]
