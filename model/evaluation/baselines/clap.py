"""CLAP (arXiv:2211.06687) from transformers: its audio tower, and the cosine of two embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.evaluation.baselines.resampling import resample
from model.evaluation.systems import package

HUB_NAME = "laion/larger_clap_music"
"""The hub's weights for music, HTSAT-base as in the PHALAR paper."""


class Clap:
    """A CLAP without feature fusion, which draws stretches of the clip at random."""

    def __init__(self, model: Any, extractor: Any, device: str) -> None:
        self.model = model.to(device).eval()
        self.extractor = extractor
        self.device = device

    @torch.no_grad()
    def embed(self, waveforms: Tensor) -> Tensor:
        """float32 (n, samples) at 16 kHz -> float32 (n, projection), of unit norm.

        Of a clip longer than the model's own (10 s), the beginning; a shorter one is repeated until it fills that.
        """
        rows = resample(waveforms, self.extractor.sampling_rate)[:, : self.extractor.nb_max_samples]
        embeddings = []
        for row in rows:
            features = self.extractor(
                row.numpy(), sampling_rate=self.extractor.sampling_rate, truncation="rand_trunc", return_tensors="pt"
            )
            projected = self.model.get_audio_features(input_features=features["input_features"].to(self.device))
            embeddings.append(projected.pooler_output)  # (1, projection)
        return torch.cat(embeddings)

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        """The cosine of all against all, float32 (n, m)."""
        return torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(y, dim=1).T


def load(checkpoint: str | None, device: str = "cpu") -> Clap:
    """CLAP by a folder or a name on the hub.

    Args:
        checkpoint: the folder that `save_pretrained` wrote, or the name; None: `HUB_NAME`.
        device: where the model goes.

    Raises:
        ImportError: transformers is not installed.
        OSError: there is no such folder, and the hub has no such name or cannot be reached.
        ValueError: the model fuses features.
    """
    transformers = package("transformers", "CLAP", "baselines")
    name = HUB_NAME if checkpoint is None else checkpoint
    model = transformers.ClapModel.from_pretrained(name)
    if model.config.audio_config.enable_fusion:
        raise ValueError(f"{name} fuses stretches drawn at random, so an embedding is not a clip's own; use another")
    return Clap(model, transformers.ClapFeatureExtractor.from_pretrained(name), device)
