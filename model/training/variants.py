"""The paper's ablations: Phalar with one part replaced, each a class of its own that a recipe names.

They are trained, kept and evaluated as Phalar is, and never served.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.checkpoints import NotACheckpoint, UnsupportedModel, load_phalar, save_phalar
from model.checkpoints.weights import read_safetensors, write_safetensors
from model.complex_layers import ComplexLinear
from model.cqt import BeatClips, read_frames, reflected, refuse_other_keys_of, scale_decibels
from model.phalar import Phalar, PhalarConfig
from model.pooling import SpectralPooling
from model.similarity import COSINE_SCALE, HermitianSimilarity
from model.training import cocola

FORMAT = "phalar-variant-1"


class AveragePooling(SpectralPooling):
    """The mean over steps instead of Fourier components: what sounds, without when."""

    def pool(self, projected: Tensor) -> Tensor:
        """Real (batch, pooled_channels, steps) -> complex64 (batch, pooled_channels, 1), without imaginary part."""
        averaged = projected.float().mean(dim=2)[..., None]  # (batch, pooled_channels, 1)
        scale = averaged.abs().mean(dim=(1, 2), keepdim=True) + 1e-6
        return torch.complex(averaged / scale, torch.zeros_like(averaged))


class MagnitudePooling(SpectralPooling):
    """The magnitudes of the Fourier components without their phases: periods, without where they fall."""

    def pool(self, projected: Tensor) -> Tensor:
        """Real (batch, pooled_channels, steps) -> complex64 (batch, pooled_channels, n_components), real too."""
        magnitude = super().pool(projected).abs()
        return torch.complex(magnitude, torch.zeros_like(magnitude))


class ScaledMel(nn.Module):
    """A mel spectrogram in scaled decibels, as many bands as the CQT has bins, at the same frames."""

    def __init__(self, model: Phalar) -> None:
        from nnAudio.features.mel import MelSpectrogram  # brings scipy.signal, as nnAudio's CQT does

        super().__init__()
        config = model.config
        self.padding = model.cqt.padding  # the same clips are too short
        self.dynamic_range_db = config.dynamic_range_db
        self.transform = MelSpectrogram(
            sr=config.sample_rate,
            n_fft=2048,
            n_mels=config.bins,
            hop_length=config.hop,
            fmin=20.0,
            fmax=config.sample_rate / 2,
            power=1.0,
            center=True,
            pad_mode="reflect",
            verbose=False,
        )

    def forward(self, waveforms: Tensor) -> Tensor:
        """float32 (batch, samples) -> float32 (batch, bands, 1 + samples // hop), in scaled decibels."""
        with torch.autocast(waveforms.device.type, enabled=False):
            return scale_decibels(self.transform(waveforms.float()), self.dynamic_range_db)

    def in_beat_time(self, clips: BeatClips) -> Tensor:
        """Clips as if each were played at 120 BPM: float32 (n, bands, frames), in scaled decibels.

        Raises:
            ValueError: one of them in another key, which mel bands cannot show.
        """
        refuse_other_keys_of(clips)
        with torch.autocast(clips.waveforms.device.type, enabled=False):
            magnitudes = self.transform(reflected(clips.waveforms.float(), clips.samples))
            return scale_decibels(read_frames(magnitudes, clips.places), self.dynamic_range_db)


class CosineSimilarity(HermitianSimilarity):
    """One learned scale for all directions: H = exp(s) I, the plain cosine with a temperature."""

    def __init__(self, dimension: int) -> None:
        nn.Module.__init__(self)
        self.dimension = dimension
        self.log_scale = nn.Parameter(torch.tensor(math.log(COSINE_SCALE)))

    def start_as_cosine(self) -> None:
        """It is one, always."""

    @property
    def hermitian_form(self) -> Tensor:
        """complex64 (dimension, dimension)."""
        identity = torch.eye(self.dimension, dtype=torch.complex64, device=self.log_scale.device)
        return self.log_scale.exp() * identity


class PositiveSimilarity(HermitianSimilarity):
    """H = AᴴA: Hermitian without negative eigenvalues, so nothing ever repels."""

    def __init__(self, dimension: int) -> None:
        nn.Module.__init__(self)
        self.root = ComplexLinear(dimension, dimension)

    def start_as_cosine(self) -> None:
        """Set H = COSINE_SCALE I."""
        self.root.start_as_multiple(math.sqrt(COSINE_SCALE))

    @property
    def hermitian_form(self) -> Tensor:
        """complex64 (dimension, dimension)."""
        A = self.root.matrix
        return A.conj().T @ A


class Variant(Phalar):
    """Phalar with a part replaced; it is named, so that a checkpoint can tell which."""

    name = ""

    @property
    def hermitian(self) -> Any:
        """H in double precision, complex128 (dimension, dimension)."""
        form = self.similarity.hermitian_form.detach().cpu().to(torch.complex128).numpy()
        return (form + form.conj().T) / 2


class AveragePooled(Variant):
    """Average pooling instead of spectral pooling."""

    name = "average-pooling"

    def __init__(self, config: PhalarConfig | None = None) -> None:
        super().__init__(config)
        self.pooling = AveragePooling(self.config.bins, self.backbone.out_channels, self.config.pooled_channels, 1)
        self.widen = ComplexLinear(self.config.pooled_channels, self.config.dimension)


class WithoutPhase(Variant):
    """Magnitudes only."""

    name = "magnitudes"

    def __init__(self, config: PhalarConfig | None = None) -> None:
        super().__init__(config)
        self.pooling = MagnitudePooling(
            self.config.bins, self.backbone.out_channels, self.config.pooled_channels, self.config.n_components
        )


class OnMel(Variant):
    """A mel spectrogram instead of the CQT."""

    name = "mel"

    def __init__(self, config: PhalarConfig | None = None) -> None:
        super().__init__(config)
        mel: nn.Module = ScaledMel(self)
        del self.cqt
        self.cqt = mel  # type: ignore[assignment]


class Cosine(Variant):
    """Plain cosine instead of the Hermitian form."""

    name = "cosine"

    def __init__(self, config: PhalarConfig | None = None) -> None:
        super().__init__(config)
        self.similarity = CosineSimilarity(self.config.dimension)

    def as_phalar(self) -> Phalar:
        """The same model with its form written out, W = exp(s) I: what a service can load."""
        weights = {name: weight for name, weight in self.state_dict().items() if not name.startswith("similarity.")}
        identity = torch.eye(self.config.dimension)
        similarity = self.similarity
        assert isinstance(similarity, CosineSimilarity)
        scale = float(similarity.log_scale.detach().exp())
        model = Phalar(self.config)
        model.load_state_dict(weights | {"similarity.form.weight": torch.cat([scale * identity, 0 * identity])})
        model.notes, model.trained = self.notes, self.trained
        return model.eval()


class PositiveForm(Variant):
    """A positive semidefinite form instead of an indefinite one."""

    name = "psd"

    def __init__(self, config: PhalarConfig | None = None) -> None:
        super().__init__(config)
        self.similarity = PositiveSimilarity(self.config.dimension)


VARIANTS: Mapping[str, type[Variant]] = {
    kind.name: kind for kind in (AveragePooled, WithoutPhase, OnMel, Cosine, PositiveForm)
}


def build_model(name: str, config: PhalarConfig | None = None) -> nn.Module:
    """A new model by its name in a recipe: `phalar` or a variant, of this configuration, or `cocola`; random weights.

    Raises:
        ValueError: no such name.
    """
    if name == "phalar":
        return Phalar(config)
    if name == "cocola":
        return cocola.Cocola()
    if name not in VARIANTS:
        raise ValueError(f"no model is named {name!r}; there are phalar, cocola, {', '.join(VARIANTS)}")
    return VARIANTS[name](config)


def save_model(model: nn.Module, path: Path, notes: Mapping[str, str]) -> None:
    """Write what `build_model` made: Phalar and the cosine as native checkpoints, the others as safetensors that name
    themselves."""
    if isinstance(model, Cosine):
        save_phalar(model.as_phalar(), path, trained=True, notes=notes)
    elif isinstance(model, Variant):
        metadata = {"format": FORMAT, "variant": model.name, "notes": json.dumps(dict(notes), sort_keys=True)}
        metadata["config"] = json.dumps(asdict(model.config), sort_keys=True)
        write_safetensors(model.state_dict(), metadata, path)
    elif isinstance(model, Phalar):
        save_phalar(model, path, trained=True, notes=notes)
    else:
        assert isinstance(model, cocola.Cocola)
        cocola.save_cocola(model, path, notes)


def load_trained(path: str | os.PathLike[str], device: str = "cpu") -> nn.Module:
    """Load what `save_model` wrote, or the authors' own checkpoint of Phalar, in evaluation mode.

    Raises:
        CheckpointError: one of its children, which says what is wrong.
        OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError:
        metadata = {}
    if metadata.get("format") == FORMAT:
        return _load_variant(path, metadata).to(device).eval()
    if metadata.get("format") == cocola.FORMAT:
        return cocola.load_cocola(path, device)
    return load_phalar(path, device)


def _load_variant(path: Path, metadata: Mapping[str, str]) -> Variant:
    name = metadata.get("variant", "")
    if name not in VARIANTS:
        raise UnsupportedModel(path, "variant", name, tuple(VARIANTS))
    try:
        model = VARIANTS[name](PhalarConfig(**json.loads(metadata.get("config", "{}"))))
    except (TypeError, ValueError) as error:  # such as an entry that is newer than this program
        raise NotACheckpoint(path, f"its configuration cannot be used ({error})") from error
    with safe_open(path, framework="pt") as file:
        model.load_state_dict(read_safetensors(path, file, model.state_dict()))
    model.notes, model.trained = json.loads(metadata.get("notes", "{}")), True
    return model
