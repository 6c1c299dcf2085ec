"""The training loop: seeded examples -> both sides' embeddings -> InfoNCE -> Muon and AdamW.

Every random choice of a step follows from the recipe's seed, the step's number and the file that the run began with, so
a run that was killed goes on from its last checkpoint as if nothing had happened, and a further round draws examples of
its own. With torchrun each process takes its share of every batch.

A card never waits: batches are prepared ahead in threads, and what a step measured is fetched some steps later.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.audio import SAMPLE_RATE
from model.checkpoints.heard import HEARD, encode_heard
from model.checkpoints.weights import write_whole
from model.cqt import BeatClips
from model.device import DeviceFacts, facts_of, upload
from model.errors import Told
from model.phalar import PhalarConfig
from model.training.batches import Ahead, Batch, augmented, draw_batch, embed_in_passes
from model.training.clock import Clock
from model.training.cocola import Cocola, refresh_statistics
from model.training.distributed import gather, mean_over_processes
from model.training.examples import draw_examples, mix_examples
from model.training.loss import contrastive_loss
from model.training.optimiser import Gradients, optimisers, rate_at
from model.training.recipe import Recipe, recipe_of
from model.training.stems import StemBank
from model.training.validation import VALIDATION_S, Validation
from model.training.variants import build_model, load_trained, save_model

CHECKPOINT = "last.pt"
MODEL = "model.safetensors"
LOG = "log.jsonl"
SETTLE_CLIPS = 128

FETCH_EVERY = 20
"""Steps on a card before what they measured is fetched; on a CPU it is there at once."""

AHEAD_ON_A_CARD, AHEAD = 3, 1
"""Batches that are prepared beside a step, each in a thread."""

MOST_LOST = 10
"""Steps in a row whose gradient is not finite: then the run is lost."""

BYTES_A_SECOND = {"bfloat16": 20e6, "float32": 40e6}
"""Of a card's memory that a second of one clip takes in training, generously: 15 and 30 MB for Phalar."""

PART_OF_MEMORY = 0.7
"""Of a card, for what a step keeps until its gradients are made."""

MAY_CHANGE = frozenset({"steps", "checkpoint_minutes", "validate_every", "clips_per_pass"})
"""Entries of a recipe that a run may change on the way: how long it lasts, how often it reports, what fits a cache."""

# What a step's random numbers are for, beside those of batches.py.
_DRAW, _AUGMENT, _DROPOUT, _START, _SETTLE = range(5)


class OtherRun(Told):
    """The folder holds something else than the beginning of this run."""

    says = "{folder} holds {what}: choose another folder"
    folder: Path
    what: str


class RunLost(Told):
    """Step after step the gradient was not finite."""

    says = (
        f"the gradient was not finite in {MOST_LOST} steps in a row, up to step {{step}}: train anew in another "
        "folder, with lower rates or in float32"
    )
    step: int


class TooLittleMemory(Told):
    """A card cannot hold a step."""

    says = (
        "{card} has too little free memory for a step of {clips} clips: end what else runs there, or give the recipe "
        "fewer or shorter examples (batch, data.longest_s)"
    )
    card: DeviceFacts
    clips: int


@dataclass(frozen=True)
class Step:
    """What one step measured. `timing_s` is its split: data (the wait for it), forward, backward, optimiser."""

    step: int  # of steps done, from 1
    steps: int
    loss: float
    accuracy: float  # in the batch
    rate: float  # part of the full learning rates
    timing_s: dict[str, float]
    lost: bool | None = None  # True: the gradient was not finite, and only momentum moved the weights
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
        self._on_card = self.device.type == "cuda"
        self._half = recipe.precision == "bfloat16" and self._on_card
        if recipe.batch % self.world:
            raise ValueError(f"a batch of {recipe.batch} cannot be shared by {self.world} processes")
        self.tracks = self.bank.of_split("train", data.split_seed)
        self.began = "" if self.begin is None else hashlib.sha256(self.begin.read_bytes()).hexdigest()
        torch.manual_seed(self._seed(_START, 0))
        self.model: nn.Module = build_model(recipe.model, recipe.encoder).to(self.device)
        names = [self.bank.tracks[track].name for track in self.tracks]
        self.heard: str | None = encode_heard(names)
        if self.begin is not None:
            begin = _begin(self.begin, self.model)
            self.model.load_state_dict(begin.state_dict())
            before = cast(Any, begin).notes.get(HEARD)
            # What is not known of the first run is not known of both.
            self.heard = None if before is None else encode_heard(names, before)
        elif recipe.loss.start == "cosine":
            cast(Any, self.model.similarity).start_as_cosine()
        self.muon, self.adam = optimisers(self.model, recipe.optimiser)
        self._gradients = Gradients(self.model.parameters())
        self._memory = facts_of(self.device).memory_bytes if torch.cuda.is_available() else math.inf
        self._ahead = Ahead(self._prepare, AHEAD_ON_A_CARD if self._on_card else AHEAD)
        self._lost = 0  # steps in a row
        self.step = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / CHECKPOINT).is_file():
            self._resume()
        # The same examples in every round.
        rngs = (np.random.default_rng(_mixed(recipe.seed, _DRAW, number)) for number in (2**40, 2**41))
        self._validation = Validation(self.bank, recipe, (next(rngs), next(rngs)))

    def run(self, report: Callable[[Step], None] | None = None, stop_at: int | None = None) -> None:
        """Train to the recipe's last step (or to `stop_at`), then write the model.

        Args:
            report: called after each step, by the first process only.
            stop_at: steps done when to stop early, with a checkpoint.
        """
        recipe = self.recipe
        last = recipe.steps if stop_at is None else min(stop_at, recipe.steps)
        saved = time.monotonic()
        pending: list[_Taken] = []
        every = FETCH_EVERY if self._on_card else 1
        try:
            while self.step < last:
                pending.append(self._train_step())
                validating = self.step % recipe.validate_every == 0 or self.step == recipe.steps
                saving = time.monotonic() - saved > 60 * recipe.checkpoint_minutes
                if not (validating or saving or self.step == last or len(pending) == every):
                    continue
                measured, pending = self._fetch(pending), []
                if validating:
                    recorded, matched = self.validate()
                    measured[-1] = replace(measured[-1], validation_accuracy=recorded, validation_matched=matched)
                if self.rank == 0:
                    for step in measured:
                        self._log(step)
                        if report is not None:
                            report(step)
                    if saving:
                        self.save()
                        saved = time.monotonic()
        finally:
            self._ahead.close()
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
        data = io.BytesIO()  # torch itself would end a full disk in a RuntimeError
        torch.save(state, data)
        write_whole(data.getbuffer(), self.folder / CHECKPOINT)

    @torch.no_grad()
    def validate(self) -> tuple[float | None, float | None]:
        """Accuracy among fixed examples of the validation tracks: does each anchor score its own positive highest?

        Returns:
            As recorded, and in beat time; None where there are not two such examples.
        """
        self._settle()
        self.model.eval()
        accuracies = self._validation.accuracies(self.model, self._embed_in_passes, self.device)
        self.model.train()
        return accuracies

    def _settle(self) -> None:
        """Let running statistics, where a model has some (COCOLA), be those of its present weights."""
        if not isinstance(self.model, Cocola):
            return
        length = round(VALIDATION_S * SAMPLE_RATE)
        rng = np.random.default_rng(self._seed(_SETTLE, 0))
        count = min(SETTLE_CLIPS, len(self.tracks))
        examples = draw_examples(self.bank, self.tracks, count, length, rng)
        clips = upload(mix_examples(self.bank, examples, length)[0], self.device)
        refresh_statistics(self.model, torch.split(clips, 32))

    def _train_step(self) -> _Taken:
        recipe = self.recipe
        clock = Clock(self.device)
        batch = self._ahead.of(self.step)
        if self._on_card:
            batch = self._augmented(batch, self.step)
        clock.tick("data")

        self.model.train()
        self.muon.zero_grad(set_to_none=True)
        self.adam.zero_grad(set_to_none=True)
        try:
            loss, accuracy = self._loss_and_gradients(batch, clock)
        except torch.OutOfMemoryError as error:
            raise TooLittleMemory(facts_of(self.device), len(batch.clips)) from error
        clock.tick("backward")

        settings = recipe.optimiser
        rate = rate_at(self.step, recipe.steps, settings)
        norm = self._gradients.cut(settings.most_gradient, mean_over_processes)
        for optimiser, full in ((self.muon, settings.muon_rate), (self.adam, settings.adam_rate)):
            for group in optimiser.param_groups:
                group["lr"] = rate * full
            optimiser.step()
        clock.tick("optimiser")
        self.step += 1
        return _Taken(self.step, rate, torch.stack([loss.detach(), accuracy, norm]), clock)

    def _prepare(self, step: int) -> Batch:
        batch = draw_batch(self.bank, self.tracks, self.recipe, step, self._seed, self.rank, self.world)
        return batch if self._on_card else self._augmented(batch, step)

    def _augmented(self, batch: Batch, step: int) -> Batch:
        return augmented(batch, self.recipe, self.device, self._seed(_AUGMENT, step * self.world + self.rank))

    def _loss_and_gradients(self, batch: Batch, clock: Clock) -> tuple[Tensor, Tensor]:
        seed = self._seed(_DROPOUT, self.step * self.world + self.rank)
        each = self._clips_at_once(batch)
        if each >= len(batch.clips):
            torch.manual_seed(seed)
            loss, accuracy = self._loss(self._embed_in_passes(batch.clips, self.recipe.loss.keys), batch)
            clock.tick("forward")
            loss.backward()  # type: ignore[no-untyped-call]
            return loss, accuracy
        # What does not fit at once is embedded twice: first for the loss's gradient of each embedding, then, some clips
        # at a time, for what that says of the weights (Gao et al. 2021). Dropout must be the same both times.
        parts = batch.clips.split(each)
        with torch.no_grad():
            embedded = torch.cat([self._embed_seeded(part, seed + at) for at, part in enumerate(parts)])
        embedded.requires_grad_()
        loss, accuracy = self._loss(embedded, batch)
        clock.tick("forward")
        loss.backward()  # type: ignore[no-untyped-call]
        assert embedded.grad is not None
        for at, (part, gradient) in enumerate(zip(parts, torch.split(embedded.grad, each), strict=True)):
            self._embed_seeded(part, seed + at).backward(gradient)  # type: ignore[no-untyped-call]
        return loss, accuracy

    def _loss(self, embedded: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        settings, similarity = self.recipe.loss, cast(Any, self.model.similarity)
        score = similarity.one_way if settings.form == "one way" else similarity
        # One gather for all: of each process its anchors, positives and decoys.
        rows = gather(embedded).view(self.world, -1, *embedded.shape[1:])
        x, y, others = (part.flatten(0, 1) for part in torch.split(rows, batch.sizes, dim=1))
        decoys_of = gather(batch.decoys_of + self.rank * batch.pairs)
        if batch.pitched is None or not settings.keys:
            return contrastive_loss(x, y, score, settings, others, decoys_of)
        own = settings.keys  # the key in the middle
        both, pitched = torch.cat([x, y]), gather(batch.pitched).view(self.world, 2, -1).transpose(0, 1).flatten() > 0
        in_keys = torch.cat([both[:, :own], both[:, own + 1 :]], dim=1)
        x, y, others = x[:, own], y[:, own], others[:, own]
        return contrastive_loss(x, y, score, settings, others, decoys_of, in_keys, pitched)

    def _embed_seeded(self, clips: Tensor | BeatClips, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return self._embed_in_passes(clips, self.recipe.loss.keys)

    def _embed_in_passes(self, clips: Tensor | BeatClips, keys: int = 0) -> Tensor:
        """On a CPU as many at once as its caches like, on a card all: it has memory, and would only launch more."""
        each = 0 if self._on_card else self.recipe.clips_per_pass
        return embed_in_passes(self.model, clips, each, self._half, keys)

    def _clips_at_once(self, batch: Batch) -> int:
        """How many clips' forward passes a card keeps until their backward passes; the recipe may say fewer."""
        clips = batch.clips
        if not self._on_card or isinstance(self.model, Cocola):
            return len(clips)  # COCOLA's statistics are those of a whole batch
        seconds = (clips if isinstance(clips, Tensor) else clips.waveforms).shape[1] / SAMPLE_RATE
        room = PART_OF_MEMORY * self._memory / BYTES_A_SECOND["bfloat16" if self._half else "float32"]
        return max(1, int(min(room / seconds, len(clips))))

    def _fetch(self, taken: Sequence[_Taken]) -> list[Step]:
        """What steps measured, in one copy from the card. Raises RunLost."""
        numbers = torch.stack([step.measured for step in taken]).cpu().tolist()
        steps: list[Step] = []
        for step, (loss, accuracy, norm) in zip(taken, numbers, strict=True):
            lost = not math.isfinite(norm)
            self._lost = self._lost + 1 if lost else 0
            if self._lost >= MOST_LOST:
                raise RunLost(step.step)
            split_s = step.clock.split_s()
            steps.append(Step(step.step, self.recipe.steps, loss, accuracy, step.rate, split_s, True if lost else None))
        return steps

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        try:
            # On the CPU first: there AdamW wants its count of steps, where each would otherwise be a launch and a wait.
            state = torch.load(path, map_location="cpu", weights_only=True)
            recipe = json.loads(state["recipe"])
        except OSError:
            raise
        except Exception as error:  # a broken or foreign file fails in any way that Python knows
            raise OtherRun(self.folder, f"a {CHECKPOINT} that is broken, or of another program") from error
        there, here = (_flat(each.as_dict()) for each in (recipe_of(recipe, path), self.recipe))
        for entry in here:
            if entry not in MAY_CHANGE and there[entry] != here[entry]:
                raise OtherRun(self.folder, f"a run whose {entry} is {there[entry]!r}, not {here[entry]!r}")
        if state["tracks"] != _digest(self.bank):
            raise OtherRun(self.folder, "a run on other stems, or whose stems were changed or moved since")
        if state.get("began", "") != self.began:
            raise OtherRun(self.folder, "a run with another first checkpoint (--begin)")
        if state["step"] > self.recipe.steps:
            raise OtherRun(self.folder, f"a run of {state['step']} steps already, more than {self.recipe.steps}")
        self.model.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.step = state["step"]
        if self.rank == 0 and (log := self.folder / LOG).is_file():
            # What a killed run wrote beyond its checkpoint comes again, and its last line may be cut short.
            lines: dict[int, bytes] = {}
            for line in log.read_bytes().splitlines():
                with suppress(ValueError):
                    lines[json.loads(line)["step"]] = line
            write_whole(b"".join(line + b"\n" for step, line in lines.items() if step <= self.step), log)

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


@dataclass(frozen=True)
class _Taken:
    """A step that was begun; what it measured may still be on its way."""

    step: int  # of steps begun, from 1
    rate: float
    measured: Tensor  # float32 (3,): loss, accuracy, the gradient's norm
    clock: Clock


def _begin(checkpoint: Path, model: nn.Module) -> nn.Module:
    """A trained model of the same layers; in beat time it may have been trained on other frames of the CQT."""
    begin = load_trained(checkpoint)
    holds, trains = map(_layers, (begin, model))
    if holds != trains:
        raise ValueError(f"{checkpoint} holds a {holds}; this recipe trains a {trains}")
    return begin


def _layers(model: nn.Module) -> str:
    config = getattr(model, "config", None)
    if isinstance(config, PhalarConfig):
        config = replace(config, kernel_fronts=False)
    return f"{type(model).__name__} {config or ''}"


def _flat(entries: dict[str, Any], where: str = "") -> dict[str, Any]:
    """A recipe's entries by their full names, such as "data.matched"."""
    flat: dict[str, Any] = {}
    for name, value in entries.items():
        flat |= _flat(value, f"{where}{name}.") if isinstance(value, dict) else {where + name: value}
    return flat


def _digest(bank: StemBank) -> str:
    named: Sequence[Any] = [(track.name, track.stems, track.samples) for track in bank.tracks]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()
