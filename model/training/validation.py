"""Accuracy among fixed examples of the validation tracks: does each anchor score its own positive highest?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from model.audio import SAMPLE_RATE
from model.cqt import BeatClips
from model.device import upload
from model.training.batches import beat_clips, draw_beat_pair
from model.training.examples import draw_example, mix_examples
from model.training.recipe import Recipe
from model.training.stems import StemBank

VALIDATION_S = 5.0
VALIDATION_BEATS = 10


class Validation:
    """The examples of a run, drawn once: windows as recorded, and pairs in beat time."""

    def __init__(self, bank: StemBank, recipe: Recipe, rngs: tuple[np.random.Generator, np.random.Generator]) -> None:
        self.bank, self.matched = bank, recipe.data.matched
        tracks = bank.of_split("validation", recipe.data.split_seed)
        samples, rng = round(VALIDATION_S * SAMPLE_RATE), rngs[0]
        drawn = (draw_example(bank, track, samples, rng) for track in rng.permutation(tracks))
        self._examples = [example for example in drawn if example is not None][: recipe.validation_pairs]
        pairs = (draw_beat_pair(bank, int(track), VALIDATION_BEATS, rngs[1]) for track in rngs[1].permutation(tracks))
        self._pairs = [pair for pair in pairs if pair is not None][: recipe.validation_pairs]

    def accuracies(
        self, model: nn.Module, embed: Callable[[Tensor | BeatClips], Tensor], device: torch.device
    ) -> tuple[float | None, float | None]:
        """As recorded, and in beat time; None where there are not two such examples."""

        def accuracy(x: Tensor, y: Tensor) -> float:
            scores = cast(Any, model.similarity)(x, y)
            return float((scores.argmax(dim=1) == torch.arange(len(x), device=device)).float().mean())

        recorded = matched = None
        if len(self._examples) > 1:
            sides = mix_examples(self.bank, self._examples, round(VALIDATION_S * SAMPLE_RATE))
            recorded = accuracy(*(embed(upload(side, device)) for side in sides))
        if self.matched and len(self._pairs) > 1:
            pairs = zip(*self._pairs, strict=True)
            matched = accuracy(*(embed(beat_clips(self.bank, side).on(device)) for side in pairs))
        return recorded, matched
