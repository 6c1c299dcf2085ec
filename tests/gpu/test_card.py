"""On a real card: a step, the CPU's embeddings, a resumed run, a worker short of memory. Else skipped."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from model.audio import SAMPLE_RATE
from model.checkpoints import load_phalar
from model.device import why_no_card
from model.training.data import training_bank
from model.training.recipe import Recipe, load_recipe
from model.training.train import Trainer
from service.settings import Settings
from service.work.device import Device
from service.work.models import DEFAULT_CHECKPOINT

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(why_no_card() is not None, reason=f"no card: {why_no_card()}")]

CARD = torch.device("cuda", 0)
SAME_EMBEDDING = 2e-4  # float32 sums in another order; TF32 would be ten times as far off
SAME_LOSS = 1e-3  # sums of a card in another order, which the steps in between magnify


def tiny(precision: str, steps: int = 4) -> Recipe:
    recipe = load_recipe(Path("smoke"), steps=steps, batch=4, precision=precision, validate_every=steps)
    return dataclasses.replace(recipe, loss=dataclasses.replace(recipe.loss, decoys=0.5, decoys_from=0))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_on_a_card_moves_every_weight_by_finite_numbers(tmp_path: Path, precision: str) -> None:
    recipe = tiny(precision)
    trainer = Trainer(recipe, training_bank([], recipe.data, tmp_path / "cache"), tmp_path / "run", CARD)
    before = [weight.detach().clone() for weight in trainer.model.parameters()]
    (step,) = trainer._fetch([trainer._train_step()])
    trainer._ahead.close()
    assert np.isfinite(step.loss)
    for old, weight in zip(before, trainer.model.parameters(), strict=True):
        assert torch.isfinite(weight).all()
        assert not torch.equal(old, weight)


def test_the_first_loss_on_a_card_is_that_of_the_cpu_without_noise(tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny("float32"), augment=dataclasses.replace(tiny("float32").augment, noise=0.0))
    bank = training_bank([], recipe.data, tmp_path / "cache")
    losses = []
    for device in (torch.device("cpu"), CARD):
        trainer = Trainer(recipe, bank, tmp_path / device.type, device)
        for module in trainer.model.modules():
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
            if isinstance(getattr(module, "probability", None), float):
                module.probability = 0.0
        losses.append(trainer._fetch([trainer._train_step()])[0].loss)
        trainer._ahead.close()
    assert losses[1] == pytest.approx(losses[0], rel=SAME_LOSS)


def test_embeddings_of_a_card_are_those_of_the_cpu() -> None:
    clips = 0.1 * np.random.default_rng(0).standard_normal((5, 5 * SAMPLE_RATE)).astype(np.float32)
    ours, theirs = (load_phalar(DEFAULT_CHECKPOINT, device).embed(clips).cpu() for device in ("cpu", "cuda"))
    assert (ours - theirs).abs().max() < SAME_EMBEDDING


def test_a_resumed_run_takes_the_same_steps(tmp_path: Path) -> None:
    recipe = tiny("float32")
    bank = training_bank([], recipe.data, tmp_path / "cache")
    losses: dict[str, list[float]] = {"whole": [], "resumed": []}
    Trainer(recipe, bank, tmp_path / "whole", CARD).run(lambda step: losses["whole"].append(step.loss))
    for stop_at in (2, None):
        run = Trainer(recipe, bank, tmp_path / "resumed", CARD)
        assert not any(state["step"].is_cuda for state in run.adam.state.values()), "a launch and a wait for each"
        run.run(lambda step: losses["resumed"].append(step.loss), stop_at)
    assert losses["resumed"] == pytest.approx(losses["whole"], rel=SAME_LOSS)


def test_a_worker_short_of_memory_halves_its_batch(tmp_path: Path) -> None:
    settings = Settings(device="cuda", data=tmp_path, batch_windows=64)
    card = torch.cuda.get_device_properties(CARD).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.4e9 / card, CARD)  # of which 64 windows want .64 GB
    try:
        device = Device(settings)
        assert device.batch_limit < 64
        windows = np.full((64, 5 * SAMPLE_RATE), 0.1, np.float32)
        assert device.embed(next(iter(device._held)), windows).shape == (64, 512)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, CARD)
