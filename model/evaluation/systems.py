"""What the protocols measure: anything that embeds clips and scores embeddings; Phalar is one, each baseline another."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class System(Protocol):
    """Clips in, scores of all against all out; the protocols ask nothing else of a model."""

    def embed(self, waveforms: Tensor) -> Tensor:
        """float32 (n, samples) at 16 kHz, mono -> (n, ...), whatever `score` takes. No row depends on another."""
        ...

    def score(self, x: Tensor, y: Tensor) -> Tensor:
        """The score of all against all, float32 (n, m), higher is better."""
        ...
