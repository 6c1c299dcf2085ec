"""The floor: how far two clips sound the same pitch classes at the same time, without anything learnt."""

from __future__ import annotations

import torch
from torch import Tensor

from model.cqt import BeatClips
from model.phalar import Phalar


class Chroma:
    """Correlates chromagrams: decibels above the floor, summed over octaves, about each frame's mean."""

    def __init__(self, device: str) -> None:
        self.cqt = Phalar().cqt.to(device)

    def embed(self, waveforms: Tensor) -> Tensor:
        """float32 (n, samples) -> float32 (n, 12 * frames), of norm 1."""
        with torch.no_grad():
            return self._flat(self.cqt(waveforms.to(self.cqt.lengths.device)))

    def in_beat_time(self, clips: BeatClips) -> Tensor:
        """n clips -> float32 (n, 12 * frames), of norm 1."""
        with torch.no_grad():
            return self._flat(self.cqt.in_beat_time(clips))

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        """The correlation of all against all, float32 (n, m)."""
        return x @ y.T

    def _flat(self, cqt: Tensor) -> Tensor:
        chroma = cqt.view(len(cqt), -1, 12, cqt.shape[2]).sum(dim=1)  # (n, 12, frames)
        return torch.nn.functional.normalize((chroma - chroma.mean(dim=1, keepdim=True)).flatten(1), dim=1)


def load(checkpoint: str | None, device: str = "cpu") -> Chroma:
    """The baseline; it has no checkpoint.

    Raises:
        ValueError: one was named.
    """
    if checkpoint is not None:
        raise ValueError("chroma correlation learns nothing: it has no checkpoint")
    return Chroma(device)
