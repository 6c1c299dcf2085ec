"""ViSQOL (arXiv:2004.09584) from the PyPI package visqol-python, model included: how well one clip passes for another.

A reference-based metric that embeds nothing and takes about a second of a core for each pair of 5 s: evaluate it on
few pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.evaluation.baselines.resampling import resample
from model.evaluation.systems import package

RATE = 48_000
"""Samples a second in its mode for music."""


class Visqol:
    """Anchors are the reference, candidates the degraded clip."""

    def __init__(self, api: Any) -> None:
        self.api = api

    def embed(self, waveforms: Tensor) -> Tensor:
        """float32 (n, samples) at 16 kHz -> float32 (n, samples at 48 kHz): the waveforms themselves."""
        return resample(waveforms, RATE)

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean opinion score that it predicts for all pairs, float32 (n, m), from 1 to 5; not symmetric."""
        scores = torch.empty(len(x), len(y))
        for row, reference in enumerate(x.double().numpy()):
            for column, degraded in enumerate(y.double().numpy()):
                scores[row, column] = self.api.measure_from_arrays(reference, degraded, RATE).moslqo
        return scores


def load(checkpoint: str | None, device: str = "cpu") -> Visqol:
    """ViSQOL by its package.

    Args:
        checkpoint: another support vector model; None: the one in the package.
        device: only "cpu".

    Raises:
        FileNotFoundError: there is no such model.
        ImportError: visqol-python is not installed.
        ValueError: another device.
    """
    if device != "cpu":
        raise ValueError(f"ViSQOL runs on the CPU only, not on {device}")
    api = package("visqol", "ViSQOL", "baselines").VisqolApi()
    api.create(mode="audio", model_path=checkpoint)
    return Visqol(api)
