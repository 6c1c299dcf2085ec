"""PhalarConfig, and Phalar: waveform -> CQT -> axial CNN -> spectral pooling -> complex head -> embedding."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.audio import ClipTooShort
from model.axial import AxialBackbone
from model.complex_layers import ComplexDropout, ComplexLinear, ComplexRMSNorm, ModReLU
from model.cqt import MOST_SEMITONES, BeatClips, CQTSettings, ScaledCQT
from model.device import upload
from model.pooling import SpectralPooling
from model.similarity import HermitianSimilarity, to_unit_norm

SAMPLES_PER_PASS = 64 * 80_000
"""Most samples that one pass of `embed` takes, which bounds memory: 64 windows of 5 s."""

SAMPLES_PER_CQT = 4 * 80_000
"""Most samples that one CQT takes on a CPU: more fall out of its caches."""

SLOWEST, FASTEST = 0.25, 4.0
"""How many times faster a clip may be as if played."""


@dataclass(frozen=True)
class PhalarConfig:
    """The architecture; the defaults are the authors' released configuration (2,293,104 parameters)."""

    sample_rate: int = 16_000  # samples a second
    hop: int = 160  # samples between frames
    lowest_hz: float = 16.35  # bin 0
    bins: int = 96
    bins_per_octave: int = 12
    dynamic_range_db: float = 80.0  # from a clip's maximum down to its floor
    channels: int = 8  # of the axial CNN's first block
    growth: float = 1.5  # of channels, each time frames are halved
    depth: int = 5  # how often frames are halved
    pooled_channels: int = 80
    n_components: int = 8
    dimension: int = 512  # of the embedding, and of the layer before it
    dropout: float = 0.1  # in training only
    kernel_fronts: bool = False  # whether beat time moves the kernels' fronts, which meet the onsets, or their centres

    def __post_init__(self) -> None:
        """Refuse numbers that no model of ours can have, before anything of their size is allocated."""
        if not isinstance(self.kernel_fronts, bool):
            raise ValueError(f"kernel_fronts must be true or false, not {self.kernel_fronts!r}")
        for name, lowest, highest in (
            ("sample_rate", 1_000, 192_000),
            ("hop", 1, 16_384),
            ("lowest_hz", 10.0, 20_000.0),
            ("bins", 1, 1024),
            ("bins_per_octave", 1, 96),
            ("dynamic_range_db", 1.0, 400.0),
            ("channels", 1, 256),
            ("growth", 1.0, 4.0),
            ("depth", 1, 8),
            ("pooled_channels", 1, 4096),
            ("n_components", 1, 256),
            ("dimension", 1, 8192),
            ("dropout", 0.0, 0.99),
        ):
            value = getattr(self, name)
            whole = isinstance(lowest, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise ValueError(f"{name} must be {'a whole number' if whole else 'a number'}, not {value!r}")
            if not lowest <= value <= highest:
                raise ValueError(f"{name} must be from {lowest} to {highest}, not {value!r}")

    @property
    def step(self) -> int:
        """Samples from one of the network's steps to the next: 320 ms."""
        return self.hop << self.depth

    @property
    def cqt(self) -> CQTSettings:
        """Which constant-Q transform its clips become."""
        return CQTSettings(self.sample_rate, self.hop, self.lowest_hz, self.bins, self.bins_per_octave)


class Phalar(nn.Module):
    """The encoder and its similarity. `forward` is for training, `embed` and `score` are for use."""

    def __init__(self, config: PhalarConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PhalarConfig()
        self.trained = False
        """Whether the weights were learned: retrieval by seeded weights must never look like the real thing."""
        self.notes: Mapping[str, str] = {}
        """Free-form notes that a checkpoint carried."""
        self.cqt = ScaledCQT(config.cqt, config.dynamic_range_db, config.kernel_fronts)
        self.backbone = AxialBackbone(config.channels, config.growth, config.depth, config.dropout)
        self.pooling = SpectralPooling(
            config.bins, self.backbone.out_channels, config.pooled_channels, config.n_components
        )
        self.dropout = ComplexDropout(config.dropout)
        self.widen = ComplexLinear(config.pooled_channels * config.n_components, config.dimension)
        self.norm = ComplexRMSNorm(config.dimension)
        self.activation = ModReLU(config.dimension)
        self.mix = ComplexLinear(config.dimension, config.dimension)
        self.similarity = HermitianSimilarity(config.dimension)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mix.weight.device

    @property
    def minimum_seconds(self) -> float:
        """A clip must be longer than this: 1.024 s, the samples that the CQT reflects at either end."""
        return self.cqt.padding / self.config.sample_rate

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights and the configuration, 64 hexadecimal digits, whatever file they came from.

        Computed anew from the weights at each call (some milliseconds): keep it where it is used often.
        """
        config = asdict(self.config)
        if not self.config.kernel_fronts:  # models from before it keep theirs
            del config["kernel_fronts"]
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for name, weight in sorted(self.state_dict().items()):
            digest.update(f"\0{name}\0{tuple(weight.shape)}\0".encode())
            digest.update(weight.detach().cpu().float().contiguous().numpy().astype("<f4", copy=False).data)
        return digest.hexdigest()

    def pool(self, waveforms: Tensor) -> Tensor:
        """Waveforms to the phasors that the head reads, with gradients.

        Args:
            waveforms: float32, (batch, samples) at 16 kHz, longer than `minimum_seconds`.

        Returns:
            complex64, (batch, pooled_channels, n_components).
        """
        phasors: Tensor = self.pooling(self.backbone(self.cqt(waveforms)))
        return phasors

    def head(self, phasors: Tensor) -> Tensor:
        """complex64 (batch, pooled_channels, n_components) -> complex64 (batch, dimension), not of unit norm."""
        flat = self.dropout(phasors.flatten(1))  # (batch, pooled_channels * n_components)
        mixed: Tensor = self.mix(self.activation(self.norm(self.widen(flat))))
        return mixed

    def forward(self, waveforms: Tensor) -> Tensor:
        """The head's output, for training: not of unit norm, with gradients, dropout in training mode.

        Args:
            waveforms: float32, (batch, samples) at 16 kHz, longer than `minimum_seconds`.

        Returns:
            complex64, (batch, dimension).
        """
        return self.head(self.pool(waveforms))

    def in_beat_time(self, clips: BeatClips, keys: int = 0) -> Tensor:
        """`forward` of clips as if each were played at 120 BPM and in another key.

        Args:
            clips: n of them.
            keys: in each key up to so many semitones away too, by one pass of the network.

        Returns:
            complex64, (n, dimension), not of unit norm; with gradients, where they are enabled. With keys,
            (n, 2 * keys + 1, dimension), the lowest first.
        """
        if keys:
            cqt = self.cqt.in_beat_time(clips, beside=keys, reach=MOST_SEMITONES + keys)
            phasors = torch.stack([self.pooling(key) for key in self._in_each_key(self.backbone(cqt), keys)], dim=1)
            return self.head(phasors.flatten(0, 1)).view(len(clips), 2 * keys + 1, -1)
        cqt = self.cqt.in_beat_time(clips)
        if torch.is_grad_enabled() or self.training:
            return self.head(self.pooling(self.backbone(cqt)))
        return self.head(self.pooling.pool(self.pooling.project(self._features(cqt))))

    @torch.no_grad()
    def embed(self, waveforms: Tensor | NDArray[np.floating[Any]], speed: float = 1.0, transpose: int = 0) -> Tensor:
        """The embeddings of clips of one length. An embedding never depends on the rest of its batch.

        Args:
            waveforms: real, (batch, samples) at 16 kHz, mono, finite; any batch size, zero included.
            speed: how many times faster the clips are as if played, from SLOWEST to FASTEST. Only the CQT's
                magnitudes are read elsewhere, no audio is stretched.
            transpose: semitones that they are as if moved up, at most MOST_SEMITONES either way.

        Returns:
            complex64, (batch, dimension), of unit norm, on the model's device; up to what a stretcher does to the
            sound, those of the stretched and transposed audio. Silence gets a finite embedding that means nothing:
            callers leave silent windows out (`is_silent`).

        Raises:
            ClipTooShort: of `minimum_seconds` or less, as recorded or as played.
            ValueError: not two-dimensional, not real floating point, a NaN or an infinity among the samples; a speed
                or transposition that cannot be.
        """
        clips = torch.as_tensor(waveforms)
        if clips.ndim != 2:
            raise ValueError(f"waveforms must be of shape (batch, samples), not {tuple(clips.shape)}")
        if not clips.is_floating_point():
            raise ValueError(f"waveforms must be floating point between -1 and 1, not {clips.dtype}")
        if not SLOWEST <= speed <= FASTEST:
            raise ValueError(f"speed must be from {SLOWEST:g} to {FASTEST:g}, not {speed:g}")
        if abs(transpose) > MOST_SEMITONES:
            raise ValueError(f"transpose must be at most {MOST_SEMITONES} semitones either way, not {transpose}")
        batch, samples = clips.shape
        if samples / max(1.0, speed) <= self.cqt.padding:
            played_s = samples / max(1.0, speed) / self.config.sample_rate
            raise ClipTooShort(seconds=played_s, minimum=self.minimum_seconds)
        if batch == 0:
            return torch.empty((0, self.config.dimension), dtype=torch.complex64, device=self.device)
        clips = clips.to(torch.float32)
        if speed == 1 and transpose == 0:
            return self._embedded(upload(clips, self.device))
        places = (torch.arange(1 + round(samples / speed) // self.config.hop) * speed).clamp_max(
            samples // self.config.hop
        )
        return self.embed_in_beat_time(
            BeatClips(
                clips, torch.full((batch,), samples), places.float().expand(batch, -1), torch.full((batch,), transpose)
            )
        )

    @torch.no_grad()
    def embed_in_beat_time(self, clips: BeatClips) -> Tensor:
        """`embed` of clips of several lengths, as if each were played at 120 BPM and in another key.

        Args:
            clips: n of them, finite, each longer than `minimum_seconds`; each transposition within MOST_SEMITONES.

        Returns:
            complex64, (n, dimension), of unit norm, on the model's device.

        Raises:
            ValueError: a NaN or an infinity among the samples.
        """
        return self._embedded(clips.on(self.device))

    @torch.no_grad()
    def embed_each_step(self, clips: Tensor, samples: int) -> Tensor:
        """The embeddings of all windows that begin a step apart in each clip, by one pass of the network over it.

        At either end a window hears what lies beside it, where `embed` of that window alone hears an end: on real
        songs the two are alike to a cosine of .96, for a fifth of the work where windows lie close.

        Args:
            clips: float32, (batch, samples of a clip) at 16 kHz, finite.
            samples: length of a window, no longer than a clip.

        Returns:
            complex64, (batch, windows, dimension), of unit norm, on the model's device.

        Raises:
            ValueError: clips shorter than a window, a NaN or an infinity among the samples.
        """
        batch, length = clips.shape
        if length < samples:
            raise ValueError(f"a window of {samples} samples does not fit in a clip of {length}")
        embedded = self._embedded(upload(clips, self.device), samples)
        return embedded.view(batch, -1, self.config.dimension)

    @torch.no_grad()
    def embed_in_keys(self, clips: BeatClips, semitones: int) -> Tensor:
        """The embeddings of clips in each key from so many semitones down to so many up, by one pass of the network.

        At the lowest and the highest bins a key hears what lies beyond, where `embed_in_beat_time` of that key alone
        hears an end: on real songs the two are alike to a cosine of .999, for the work of little more than one key.

        Args:
            clips: as for `embed_in_beat_time`, transposed by 0.
            semitones: at most MOST_SEMITONES.

        Returns:
            complex64, (n, 2 * semitones + 1, dimension), the lowest key first, of unit norm, on the model's device.

        Raises:
            ValueError: more semitones; a NaN or an infinity among the samples.
        """
        if not 0 <= semitones <= MOST_SEMITONES:
            raise ValueError(f"semitones must be from 0 to {MOST_SEMITONES}, not {semitones}")
        embedded = self._embedded(clips.on(self.device), semitones=semitones)
        return embedded.view(len(clips), -1, self.config.dimension)

    def _embedded(self, clips: Tensor | BeatClips, window: int | None = None, semitones: int = 0) -> Tensor:
        """Of clips on the model's device; of each of their windows, where told how long, or in each key."""
        waveforms = clips if isinstance(clips, Tensor) else clips.waveforms
        if not bool(torch.isfinite(waveforms).all()):
            raise ValueError("waveforms must be finite: there is a NaN or an infinity among the samples")
        was_training = self.training
        if was_training:
            self.eval()
        try:
            passes = clips.split(max(1, SAMPLES_PER_PASS // waveforms.shape[1]))
            with _without_tf32():
                pooled = (self._infer(part, waveforms.shape[1], window, semitones) for part in passes)
                return torch.cat([to_unit_norm(self.head(phasors)) for phasors in pooled])
        finally:
            if was_training:  # setting it takes a visit to every layer
                self.train()

    @torch.no_grad()
    def score(
        self, x: Tensor | NDArray[np.complexfloating[Any, Any]], y: Tensor | NDArray[np.complexfloating[Any, Any]]
    ) -> Tensor:
        """The score of all against all: Re(xᴴ H y), higher is better, score(x, y) = score(y, x).T.

        Args:
            x: complex64, (n, dimension); brought to unit norm here.
            y: complex64, (m, dimension); brought to unit norm here.

        Returns:
            float32, (n, m), on the model's device.

        Raises:
            ValueError: not two-dimensional, or of another dimension than the model's.
        """
        left, right = self._embeddings(x), self._embeddings(y)
        return (left.conj() @ self.similarity.hermitian_form @ right.T).real

    @property
    def hermitian(self) -> NDArray[np.complex128]:
        """H = (W + Wᴴ) / 2, complex128 (dimension, dimension), exactly Hermitian: what the index folds."""
        return self.similarity.hermitian()

    def _infer(self, clips: Tensor | BeatClips, samples: int, window: int | None, semitones: int) -> Tensor:
        """`pool`, by the fastest path for this device; with a window's length, of every one that begins on a step; with
        semitones, in each key."""
        at_once = max(1, SAMPLES_PER_CQT // samples) if self.device.type == "cpu" else len(clips)
        if isinstance(clips, BeatClips):
            cqt = self.cqt.in_beat_time(clips, at_once, semitones)
        else:
            cqt = torch.cat([self.cqt(part) for part in torch.split(clips, at_once)])
        in_each = self._in_each_key(self._features(cqt), semitones)
        projected = torch.stack([self.pooling.project(key) for key in in_each], dim=1).flatten(0, 1)
        if window is not None:
            steps = -(-(1 + window // self.config.hop) // (1 << self.config.depth))
            windows = 1 + (samples - window) // self.config.step
            projected = projected.unfold(2, steps, 1)[:, :, :windows].transpose(1, 2).flatten(0, 1)
        return self.pooling.pool(projected)

    def _features(self, cqt: Tensor) -> Tensor:
        """float32 (batch, bins, frames) -> (batch, channels, bins, steps), without gradients and dropout: on a CPU by
        the compiled kernel."""
        features: Tensor = self.backbone.infer(cqt) if self.device.type == "cpu" else self.backbone(cqt)
        return features

    def _in_each_key(self, features: Tensor, semitones: int) -> list[Tensor]:
        """(batch, channels, bins and those beside them, steps) -> (batch, channels, bins, steps), the lowest first."""
        return [features[:, :, low : low + self.config.bins] for low in range(2 * semitones, -1, -1)]

    def _embeddings(self, embeddings: Tensor | NDArray[np.complexfloating[Any, Any]]) -> Tensor:
        tensor = torch.as_tensor(embeddings)
        if tensor.ndim != 2 or tensor.shape[1] != self.config.dimension:
            raise ValueError(f"embeddings must be of shape (n, {self.config.dimension}), not {tuple(tensor.shape)}")
        return to_unit_norm(tensor.to(self.device, torch.complex64))


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Let cuDNN convolve in float32 as it is told to, which it does not by itself.

    With TF32's ten bits an embedding moves by 2e-3: cards and CPUs that fill one catalog would tell each other's apart.
    """
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def untrained_phalar(seed: int = 0) -> Phalar:
    """A model of the default configuration with seeded random weights, to the bit the same on every machine.

    torch draws normal numbers by other instructions on other processors; here each weight is a sum of four 16-bit
    integers, scaled in exact steps, so machines that share a catalog also share its fingerprint.

    Args:
        seed: not negative.

    Returns:
        Phalar in evaluation mode, on the CPU, with `trained` False.
    """
    phalar = Phalar()
    generator = np.random.Generator(np.random.PCG64(seed))
    with torch.no_grad():
        for parameter in phalar.parameters():
            if parameter.ndim < 2:
                continue  # norms, scales and biases start at their constants
            shape = tuple(parameter.shape)
            sums = generator.integers(0, 2**16, size=(4, *shape), dtype=np.int64).sum(axis=0) - 2 * (2**16 - 1)
            deviation = math.sqrt(4 * (2.0**32 - 1) / 12)  # of such a sum
            fan_in = parameter.numel() // shape[0]
            values = sums * (1 / (deviation * math.sqrt(fan_in)))
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    return phalar.eval()
