"""The training loop: seeded examples -> both sides' embeddings -> InfoNCE -> Muon and AdamW.

Every random choice of a step follows from the recipe's seed, the step's number and the file that the run began with, so
a run that was killed goes on from its last checkpoint as if nothing had happened, and a further round draws examples of
its own. With torchrun each process takes its share of every batch.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.audio import SAMPLE_RATE
from model.cqt import BeatClips
from model.training.batches import BeatWindow, beat_clips, draw_batch, draw_beat_pair
from model.training.distributed import gather
from model.training.heard import HEARD, encode_heard
from model.training.loss import contrastive_loss
from model.training.optimiser import optimisers, rate_at
from model.training.recipe import Recipe, recipe_of
from model.training.stems import Example, StemBank, draw_example, draw_examples, mix_examples, on_device
from model.training.variants import build_model, load_trained, save_model

CHECKPOINT = "last.pt"
MODEL = "model.safetensors"
LOG = "log.jsonl"
VALIDATION_S = 5.0
VALIDATION_BEATS = 10
SETTLE_CLIPS = 128

MAY_CHANGE = frozenset({"steps", "checkpoint_minutes", "validate_every", "clips_per_pass"})
"""Entries of a recipe that a run may change on the way: how long it lasts, how often it reports, what fits a cache."""

_DRAW, _DROPOUT, _START, _SETTLE = 0, 2, 3, 4  # what a step's random numbers are for, beside those of batches.py


class OtherRun(Exception):
    """The folder holds a run of another recipe or of other data."""

    def __init__(self, folder: Path, entry: str, there: object, here: object) -> None:
        super().__init__(f"{folder} holds a run whose {entry} is {there!r}, not {here!r}: choose another folder")
        self.folder = folder
        self.entry = entry


@dataclass(frozen=True)
class Step:
    """What one step measured. `timing_s` is its split: data, forward, backward, optimiser."""

    step: int  # of steps done, from 1
    steps: int
    loss: float
    accuracy: float  # in the batch
    rate: float  # part of the full learning rates
    timing_s: dict[str, float]
    validation_accuracy: float | None = None
    validation_matched: float | None = None  # the same in beat time


@dataclass
class Trainer:
    """A run in a folder: made anew, or gone on with where it ended."""

    recipe: Recipe
    bank: StemBank
    folder: Path
    device: torch.device
    begin: Path | None = None
    """A checkpoint of the recipe's model whose weights a new run starts from; its optimisers start anew."""

    def __post_init__(self) -> None:
        recipe, data = self.recipe, self.recipe.data
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        if recipe.batch % self.world:
            raise ValueError(f"a batch of {recipe.batch} cannot be shared by {self.world} processes")
        self.tracks = self.bank.of_split("train", data.split_seed)
        self.validation_tracks = self.bank.of_split("validation", data.split_seed)
        self.samples = on_device(self.bank, self.device)
        self.began = "" if self.begin is None else hashlib.sha256(self.begin.read_bytes()).hexdigest()
        torch.manual_seed(self._seed(_START, 0))
        self.model: nn.Module = build_model(recipe.model).to(self.device)
        self.heard: str | None = encode_heard(map(self._name, self.tracks))
        if self.begin is not None:
            begin = _begin(self.begin, type(self.model))
            self.model.load_state_dict(begin.state_dict())
            before = cast(Any, begin).notes.get(HEARD)
            # What is not known of the first run is not known of both.
            self.heard = None if before is None else encode_heard(map(self._name, self.tracks), before)
        elif recipe.loss.start == "cosine":
            cast(Any, self.model.similarity).start_as_cosine()
        self.muon, self.adam = optimisers(self.model, recipe.optimiser)
        self.step = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / CHECKPOINT).is_file():
            self._resume()
        self._validation = self._validation_examples()
        self._validation_beats = self._validation_beat_pairs()

    def run(self, report: Callable[[Step], None] | None = None, stop_at: int | None = None) -> None:
        """Train to the recipe's last step (or to `stop_at`), then write the model.

        Args:
            report: called after each step, by the first process only.
            stop_at: steps done when to stop early, with a checkpoint.
        """
        recipe = self.recipe
        last = recipe.steps if stop_at is None else min(stop_at, recipe.steps)
        saved = time.monotonic()
        while self.step < last:
            measured = self._train_step()
            if self.step % recipe.validate_every == 0 or self.step == recipe.steps:
                recorded, matched = self.validate()
                measured = replace(measured, validation_accuracy=recorded, validation_matched=matched)
            if self.rank == 0:
                self._log(measured)
                if report is not None:
                    report(measured)
                if time.monotonic() - saved > 60 * recipe.checkpoint_minutes:
                    self.save()
                    saved = time.monotonic()
        if self.rank == 0:
            self.save()
            if self.step == recipe.steps:
                self._settle()
                save_model(self.model, self.folder / MODEL, self.notes())

    def notes(self) -> dict[str, str]:
        """What a checkpoint says of its making."""
        notes = {
            "recipe": json.dumps(self.recipe.as_dict(), sort_keys=True),
            "steps": str(self.step),
            "tracks": str(len(self.tracks)),
        }
        if self.began:
            notes["began_with"] = self.began
        if self.heard is not None:
            notes[HEARD] = self.heard
        return notes

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "recipe": json.dumps(self.recipe.as_dict(), sort_keys=True),
            "tracks": _digest(self.bank),
            "began": self.began,
            "step": self.step,
            "model": self.model.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
        }
        scratch = self.folder / f"{CHECKPOINT}.partial"
        with scratch.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, self.folder / CHECKPOINT)

    @torch.no_grad()
    def validate(self) -> tuple[float | None, float | None]:
        """Accuracy among fixed examples of the validation tracks: does each anchor score its own positive highest?

        Returns:
            As recorded, and in beat time; None where there are not two such examples.
        """
        length = round(VALIDATION_S * SAMPLE_RATE)
        self._settle()
        self.model.eval()
        accuracies: list[float | None] = [None, None]
        if len(self._validation) > 1:
            sides = mix_examples(self.bank, self.samples, self._validation, length)
            accuracies[0] = self._accuracy(*map(self._embed_in_passes, sides))
        if self.recipe.data.matched and len(self._validation_beats) > 1:
            pairs = zip(*self._validation_beats, strict=True)
            clips = (beat_clips(self.bank, self.samples, side) for side in pairs)
            accuracies[1] = self._accuracy(*map(self._embed_in_passes, clips))
        self.model.train()
        return accuracies[0], accuracies[1]

    def _accuracy(self, x: Tensor, y: Tensor) -> float:
        scores = cast(Any, self.model.similarity)(x, y)
        return float((scores.argmax(dim=1) == torch.arange(len(x), device=self.device)).float().mean())

    def _settle(self) -> None:
        """Let running statistics, where a model has some (COCOLA), be those of its present weights."""
        if not any(isinstance(layer, nn.BatchNorm2d) for layer in self.model.modules()):
            return
        from model.evaluation.baselines.cocola import Cocola, refresh_statistics

        assert isinstance(self.model, Cocola)
        length = round(VALIDATION_S * SAMPLE_RATE)
        rng = np.random.default_rng(self._seed(_SETTLE, 0))
        count = min(SETTLE_CLIPS, len(self.tracks))
        examples = draw_examples(self.bank, self.tracks, count, length, rng)
        refresh_statistics(self.model, torch.split(mix_examples(self.bank, self.samples, examples, length)[0], 32))

    def _train_step(self) -> Step:
        recipe = self.recipe
        clock = _Clock(self.device)
        batch = draw_batch(
            self.bank, self.samples, self.tracks, recipe, self.step, self._seed, self.rank, self.world
        )
        clock.tick("data")

        torch.manual_seed(self._seed(_DROPOUT, self.step * self.world + self.rank))
        self.model.train()
        embedded = self._embed_in_passes(batch.clips)
        x, y, others = (gather(part) for part in torch.split(embedded, batch.sizes))
        decoys_of = gather(batch.decoys_of.to(self.device) + self.rank * batch.pairs)
        loss, accuracy = contrastive_loss(x, y, self._score(), recipe.loss, others, decoys_of)
        clock.tick("forward")

        self.muon.zero_grad(set_to_none=True)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._average_gradients()
        clock.tick("backward")

        settings = recipe.optimiser
        rate = rate_at(self.step, recipe.steps, settings)
        nn.utils.clip_grad_norm_(self.model.parameters(), settings.most_gradient, error_if_nonfinite=True)
        for optimiser, full in ((self.muon, settings.muon_rate), (self.adam, settings.adam_rate)):
            for group in optimiser.param_groups:
                group["lr"] = rate * full
            optimiser.step()
        clock.tick("optimiser")
        self.step += 1
        return Step(self.step, recipe.steps, float(loss.detach()), float(accuracy), rate, clock.split_s)

    def _embed_in_passes(self, clips: Tensor | BeatClips) -> Tensor:
        half = self.recipe.precision == "bfloat16" and self.device.type == "cuda"
        return embed_in_passes(self.model, clips, self.recipe.clips_per_pass, half)

    def _score(self) -> Callable[[Tensor, Tensor], Tensor]:
        similarity = cast(Any, self.model.similarity)
        score: Callable[[Tensor, Tensor], Tensor] = (
            similarity.one_way if self.recipe.loss.form == "one way" else similarity
        )
        return score

    def _name(self, track: int) -> str:
        return self.bank.tracks[track].name

    def _average_gradients(self) -> None:
        if self.world == 1:
            return
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.world

    def _validation_examples(self) -> list[Example]:
        rng = np.random.default_rng(_mixed(self.recipe.seed, _DRAW, 2**40))  # the same in every round
        wanted = round(VALIDATION_S * SAMPLE_RATE)
        drawn = (draw_example(self.bank, track, wanted, rng) for track in rng.permutation(self.validation_tracks))
        return [example for example in drawn if example is not None][: self.recipe.validation_pairs]

    def _validation_beat_pairs(self) -> list[tuple[BeatWindow, BeatWindow]]:
        rng = np.random.default_rng(_mixed(self.recipe.seed, _DRAW, 2**41))
        tracks = rng.permutation(self.validation_tracks)
        drawn = (draw_beat_pair(self.bank, int(track), VALIDATION_BEATS, rng) for track in tracks)
        pairs = [pair for pair in drawn if pair is not None][: self.recipe.validation_pairs]
        return [(replace(x, transpose=0), replace(y, transpose=0)) for x, y in pairs]

    def _resume(self) -> None:
        state = torch.load(self.folder / CHECKPOINT, map_location=self.device, weights_only=True)
        there = recipe_of(json.loads(state["recipe"]), self.folder / CHECKPOINT).as_dict()
        here = self.recipe.as_dict()
        for entry in here:
            if entry not in MAY_CHANGE and there[entry] != here[entry]:
                raise OtherRun(self.folder, entry, there[entry], here[entry])
        if state["tracks"] != _digest(self.bank):
            raise OtherRun(self.folder, "data", state["tracks"], _digest(self.bank))
        if state.get("began", "") != self.began:
            raise OtherRun(self.folder, "first checkpoint", state.get("began", ""), self.began)
        self.model.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.step = state["step"]

    def _log(self, measured: Step) -> None:
        line = {name: value for name, value in vars(measured).items() if value is not None}
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _seed(self, purpose: int, number: int) -> int:
        rounds = [int(self.began[:16], 16)] if self.began else []
        return _mixed(self.recipe.seed, purpose, number, *rounds)


def _mixed(*numbers: int) -> int:
    mixed: int = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return int(mixed) >> 1  # torch takes signed seeds


def embed_in_passes(model: nn.Module, clips: Tensor | BeatClips, each: int, half: bool) -> Tensor:
    """Embed clips, so many at once.

    Args:
        model: of `build_model`.
        clips: float32 (n, samples), or n clips in beat time.
        each: at once; 0: all.
        half: multiply in bfloat16, where autocast finds that safe.

    Returns:
        (n, ...), complex64 or float32 in either case: scores are computed in full precision.
    """
    device = clips.device if isinstance(clips, Tensor) else clips.waveforms.device
    with torch.autocast(device.type, dtype=torch.bfloat16) if half else nullcontext():
        embed = model if isinstance(clips, Tensor) else cast(Any, model).in_beat_time
        embedded = torch.cat([embed(part) for part in clips.split(each or len(clips))])
    return embedded if embedded.is_complex() else embedded.float()


class _Clock:
    """Seconds since the last tick, by name."""

    def __init__(self, device: torch.device) -> None:
        self.split_s: dict[str, float] = {}
        self._device = device
        self._since = time.perf_counter()

    def tick(self, name: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.split_s[name] = now - self._since
        self._since = now


def _begin(checkpoint: Path, kind: type[nn.Module]) -> nn.Module:
    begin = load_trained(checkpoint)
    if type(begin) is not kind:
        raise ValueError(f"{checkpoint} holds a {type(begin).__name__}; this recipe trains a {kind.__name__}")
    return begin


def _digest(bank: StemBank) -> str:
    named: Sequence[Any] = [(track.name, track.stems, track.samples) for track in bank.tracks]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()
