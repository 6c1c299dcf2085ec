"""COCOLA: harmonic and percussive mel spectrograms, EfficientNet-B0, and a bilinear form; to train and to compare with.

arXiv:2404.16969, in the form that PHALAR's authors trained beside theirs and published as `COCOLA_best.ckpt`: 64 mel
bands a channel, a head of two linear layers, embeddings that only the similarity squashes. The backbone is
efficientnet_pytorch's, as theirs, so that their weights fit by name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.audio import SAMPLE_RATE, ClipTooShort
from model.checkpoints.errors import NonFiniteWeights
from model.checkpoints.lightning import is_lightning, read_lightning, read_weights, refuse_other_choices
from model.checkpoints.torch_archive import NotACheckpoint
from model.checkpoints.weights import read_safetensors, write_safetensors
from model.cqt import BeatClips, read_frames, reflected, refuse_other_keys_of
from model.training.separation import separate, to_decibels

FORMAT = "cocola-1"

DIMENSION = 512
"""Of the embedding, and of the layer before it."""

FEATURES = 1280
"""Channels that EfficientNet-B0 ends with."""

MIN_SAMPLES = 6400
"""0.4 s: of fewer frames, the backbone's last layers have none left."""

START = 0.05
"""Of the bilinear form: its entries' deviation, or its diagonal. Squashed embeddings have a norm of 10 to 20."""

SAMPLES_PER_PASS = 16 * 80_000
"""Most samples that one pass of `embed` takes: 16 clips of 5 s, which bounds memory."""


class HarmonicPercussiveMel(nn.Module):
    """Waveform -> mel spectrograms of its harmonic and its percussive share, in dB. Nothing here is learned."""

    n_fft = 1024  # samples
    window_length = 400  # samples, 25 ms
    hop = 160  # samples, 10 ms
    bands = 64
    lowest_hz = 60.0
    highest_hz = 7800.0

    def __init__(self) -> None:
        super().__init__()
        from nnAudio.librosa_functions import get_mel

        mel = get_mel(SAMPLE_RATE, self.n_fft, self.bands, self.lowest_hz, self.highest_hz)  # Slaney's, as librosa's
        self.register_buffer("mel", torch.as_tensor(mel, dtype=torch.float32), persistent=False)
        self.register_buffer("window", torch.hann_window(self.window_length), persistent=False)

    def power(self, waveforms: Tensor) -> Tensor:
        """Mel power before decibels, so that the two channels can be compared.

        Args:
            waveforms: float32, (batch, samples) at 16 kHz, at least `MIN_SAMPLES`.

        Returns:
            float32, (batch, 2, bands, frames): harmonic, percussive; one frame every 10 ms.
        """
        spectrum = torch.stft(
            waveforms,
            self.n_fft,
            hop_length=self.hop,
            win_length=self.window_length,
            window=self.get_buffer("window"),
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        shares = torch.stack(separate(spectrum.abs()), dim=1)  # (batch, 2, bins, frames)
        return self.get_buffer("mel") @ shares.square()  # (batch, 2, bands, frames)

    @torch.no_grad()
    def forward(self, waveforms: Tensor) -> Tensor:
        """float32 (batch, samples) -> float32 (batch, 2, bands, frames), dB from -80 to 0, each channel for itself."""
        with torch.autocast(waveforms.device.type, enabled=False):
            return to_decibels(self.power(waveforms.float()))

    @torch.no_grad()
    def in_beat_time(self, clips: BeatClips) -> Tensor:
        """Clips as if each were played at 120 BPM: float32 (n, 2, bands, frames), as `forward`."""
        refuse_other_keys_of(clips)
        with torch.autocast(clips.waveforms.device.type, enabled=False):
            power = self.power(reflected(clips.waveforms.float(), clips.samples))
            return to_decibels(torch.stack([read_frames(each, clips.places) for each in power.unbind(dim=1)], dim=1))


class CocolaSimilarity(nn.Module):
    """tanh(norm(x))ᵀ W tanh(norm(y)): bilinear, and not symmetric, as trained and published."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dimension)
        self.weight = nn.Parameter(START * torch.randn(dimension, dimension))

    @torch.no_grad()
    def start_as_cosine(self) -> None:
        """Make the score the plain product of the squashed embeddings, scaled as the random start is."""
        nn.init.eye_(self.weight).mul_(START)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Embeddings (n, dimension) and (m, dimension) -> logits (n, m), with gradients."""
        left, right = torch.tanh(self.norm(x)), torch.tanh(self.norm(y))
        return left @ self.weight @ right.T


class Cocola(nn.Module):
    """The encoder and its similarity: 5.2 million parameters. `forward` trains, `embed` and `score` are for use."""

    def __init__(self, dropout: float = 0.1, drop_connect: float = 0.2) -> None:
        """Random weights.

        Args:
            dropout: of the backbone's features, in training.
            drop_connect: how often the backbone's last block is left out in training; earlier ones less.
        """
        super().__init__()
        self.notes: Mapping[str, str] = {}
        self.frontend = HarmonicPercussiveMel()
        self.backbone = _efficientnet(drop_connect)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Sequential(
            nn.Linear(FEATURES, DIMENSION), nn.BatchNorm1d(DIMENSION), nn.SiLU(), nn.Linear(DIMENSION, DIMENSION)
        )
        for layer, start in ((self.project[0], nn.init.kaiming_normal_), (self.project[3], nn.init.xavier_normal_)):
            assert isinstance(layer, nn.Linear)
            start(layer.weight)
            nn.init.zeros_(layer.bias)
        self.similarity = CocolaSimilarity(DIMENSION)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.similarity.weight.device

    def forward(self, waveforms: Tensor) -> Tensor:
        """The embeddings with gradients; in training mode, dropout and batch statistics make them random.

        Args:
            waveforms: float32, (batch, samples) at 16 kHz.

        Returns:
            float32, (batch, DIMENSION).

        Raises:
            ClipTooShort: fewer than `MIN_SAMPLES`.
        """
        if waveforms.shape[1] < MIN_SAMPLES:
            raise ClipTooShort(seconds=waveforms.shape[1] / SAMPLE_RATE, minimum=(MIN_SAMPLES - 1) / SAMPLE_RATE)
        return self._embedded(self.frontend(waveforms))

    def in_beat_time(self, clips: BeatClips) -> Tensor:
        """`forward` of clips as if each were played at 120 BPM.

        Raises:
            ValueError: one of them in another key, which mel bands cannot show.
        """
        return self._embedded(self.frontend.in_beat_time(clips))

    def _embedded(self, channels: Tensor) -> Tensor:
        channels = channels.contiguous(memory_format=torch.channels_last)
        features = self.backbone.extract_features(channels).mean(dim=(2, 3))  # (batch, FEATURES)
        embeddings: Tensor = self.project(self.dropout(features))
        return embeddings

    @torch.no_grad()
    def embed(self, waveforms: Tensor) -> Tensor:
        """float32 (n, samples) at 16 kHz -> float32 (n, DIMENSION), in evaluation mode: no row depends on another.

        Raises:
            ClipTooShort: fewer than `MIN_SAMPLES`.
        """
        was_training = self.training
        self.eval()
        try:
            passes = torch.split(waveforms, max(1, SAMPLES_PER_PASS // max(1, waveforms.shape[1])))
            return torch.cat([self(part.to(self.device, torch.float32)) for part in passes])
        finally:
            self.train(was_training)

    @torch.no_grad()
    def score(self, x: Tensor, y: Tensor) -> Tensor:
        """Anchors (n, DIMENSION) and candidates (m, DIMENSION) -> float32 (n, m); the sides may not be exchanged."""
        scores: Tensor = self.similarity(x.to(self.device), y.to(self.device))
        return scores


@torch.no_grad()
def refresh_statistics(model: Cocola, batches: Iterable[Tensor]) -> None:
    """Take the batch normalisations' running statistics anew, as their mean over these batches, nothing dropped.

    The backbone's running statistics follow the weights a hundred steps behind, and with layers dropped at random; so
    after a short training, `embed` would meet statistics of weights that are no more.

    Args:
        model: changed in place; whether it trains is kept.
        batches: float32, (batch, samples) at 16 kHz, like those of the training.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    was_training = model.training
    model.eval()
    try:
        for layer in layers:
            layer.train()
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean of all batches
        for batch in batches:
            model(batch.to(model.device))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.train(was_training)


def _efficientnet(drop_connect: float) -> Any:
    """EfficientNet-B0 of two channels, without its classifier, random weights."""
    try:
        from efficientnet_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "COCOLA needs efficientnet_pytorch: pip install 'phalar-retrieval[baselines]'"
        ) from error
    network = EfficientNet.from_name(
        "efficientnet-b0", in_channels=2, include_top=False, drop_connect_rate=drop_connect
    )
    for module in network.modules():
        if hasattr(module, "_swish"):
            module._swish = nn.SiLU()  # the same function, fused
    return network.to(memory_format=torch.channels_last)  # a quarter faster on a CPU


# -- checkpoints ---------------------------------------------------------------------------------------------------


def load_cocola(path: str | os.PathLike[str], device: str = "cpu") -> Cocola:
    """COCOLA from a file: ours, or the authors' `COCOLA_best.ckpt`. The content decides, not the name.

    Args:
        path: the file.
        device: where the model goes.

    Returns:
        Cocola in evaluation mode.

    Raises:
        CheckpointError: one of its children, which says what is wrong. Nothing in the file is ever run.
        OSError: the file cannot be read.
    """
    path, model = Path(path), Cocola()
    weights = _read_authors(path, model) if is_lightning(path) else _read_native(path, model)
    for name, weight in weights.items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise NonFiniteWeights(path, name)
    model.load_state_dict(weights)
    return model.to(device).eval()


def save_cocola(model: Cocola, path: str | os.PathLike[str], notes: Mapping[str, str] | None = None) -> None:
    """Write a native checkpoint, whole or not at all.

    Args:
        model: on any device.
        path: the file to make or replace.
        notes: facts to keep with the weights (data, recipe, steps).
    """
    metadata = {"format": FORMAT, "notes": json.dumps(dict(notes or {}), sort_keys=True)}
    write_safetensors(model.state_dict(), metadata, Path(path))


def authors_names(model: Cocola) -> dict[str, str]:
    """The name in `COCOLA_best.ckpt` of each of our weights, by our name."""
    return {name: _authors_name(name) for name in model.state_dict()}


def _authors_name(name: str) -> str:
    part, _, rest = name.partition(".")
    match part:
        case "backbone":
            return f"encoder.backbone.model.{rest}"
        case "project":
            return f"encoder.mlp.{rest}"
        case _:
            return {"similarity.weight": "similarity.w"}.get(name, name.replace(".norm.", ".layer_norm."))


_AUTHORS_CHOICES: dict[str, object] = {
    "backbone_type": "efficientnet",
    "pool_type": "avg",
    "comparison_method": "cocola_similarity",
    "input_type": "double_channel_harmonic_percussive",
    "embedding_dim": DIMENSION,
    "do_cqt": False,
    "final_mlp": True,
    "final_mlp_norm": "bn",
    "final_mlp_expansion_factor": None,
}
"""The hyper-parameters that make this architecture, each with the one value that we have."""


def _read_authors(path: Path, model: Cocola) -> dict[str, Tensor]:
    _, stored, parameters = read_lightning(path)
    refuse_other_choices(path, parameters, _AUTHORS_CHOICES)
    return read_weights(path, stored, model, authors_names(model))


def _read_native(path: Path, model: Cocola) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            form = metadata.get("format")
            if form != FORMAT:
                raise NotACheckpoint(path, f"safetensors of another model: its format is {form!r}")
            weights = read_safetensors(path, file, model.state_dict())
            model.notes = json.loads(metadata.get("notes", "{}"))
            return weights
    except SafetensorError as error:
        raise NotACheckpoint(path, f"neither safetensors nor a Lightning checkpoint ({error})") from error
