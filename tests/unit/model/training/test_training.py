"""A run is the same to the digit when it is repeated, and when it was killed and went on."""

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from model.checkpoints import NotAlike, average_models, load_phalar, save_phalar
from model.checkpoints.heard import HEARD, Heard, encode_heard, heard_of
from model.phalar import Phalar, PhalarConfig
from model.training.clock import Clock
from model.training.commands import train_app
from model.training.data import training_bank
from model.training.processes import alone_in
from model.training.recipe import Recipe, load_recipe
from model.training.stems import StemBank
from model.training.train import CHECKPOINT, LOG, MODEL, OtherRun, RunLost, Step, Trainer

RECIPE = """
steps = 4
batch = 4
precision = "float32"
clips_per_pass = 4
checkpoint_minutes = 0.0
validate_every = 2
validation_pairs = 4
[encoder]
channels = 2
growth = 1.0
depth = 2
pooled_channels = 16
dimension = 32
[data]
composed = 24
composed_seconds = 6.0
shortest_s = 1.5
longest_s = 2.0
matched = 0.5
most_beats = 4
[loss]
negatives = "all"
keys = 1
[optimiser]
warmup = 1
"""
SUMMATION = 1e-3  # two processes add gradients in another order, which the step in between magnifies
ROUNDING = 1e-6
PATIENCE_S = 120
KILLED_AT_STEP_3 = """
import os, signal, sys
from pathlib import Path
import torch
from model.training.data import training_bank
from model.training.recipe import load_recipe
from model.training.train import Trainer
home, out = map(Path, sys.argv[1:3])
torch.set_num_threads(int(sys.argv[3]))
recipe = load_recipe(home / "tiny.toml")
run = Trainer(recipe, training_bank([], recipe.data, home / "cache"), out, torch.device("cpu"))
run.run(lambda step: os.kill(os.getpid(), signal.SIGKILL) if step.step == 3 else None)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    (folder / "tiny.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def recipe(home: Path) -> Recipe:
    return load_recipe(home / "tiny.toml")


@pytest.fixture(scope="module")
def bank(home: Path, recipe: Recipe) -> StemBank:
    return training_bank([], recipe.data, home / "cache")


@pytest.fixture(scope="module")
def whole(home: Path, recipe: Recipe, bank: StemBank) -> Path:
    """A run that nothing disturbed, on as many threads as a process of its own would have.

    A device thread of another test may have set them for the threads to come, whatever `get_num_threads` says here.
    """
    torch.set_num_threads(torch.get_num_threads())
    Trainer(recipe, bank, home / "whole", torch.device("cpu")).run()
    return home / "whole"


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def assert_same_weights(left: Path, right: Path) -> None:
    ours, theirs = load_file(left / MODEL), load_file(right / MODEL)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_repeated_run_is_the_same_to_the_digit(home: Path, recipe: Recipe, bank: StemBank, whole: Path) -> None:
    Trainer(recipe, bank, home / "again", torch.device("cpu")).run()
    assert losses(home / "again") == losses(whole)
    assert_same_weights(home / "again", whole)


def test_a_killed_run_goes_on_to_the_same_digits(home: Path, whole: Path) -> None:
    """Killed between its third step's log and that step's checkpoint."""
    out, threads = home / "killed", str(torch.get_num_threads())
    killed = subprocess.run([sys.executable, "-c", KILLED_AT_STEP_3, str(home), str(out), threads], timeout=PATIENCE_S)
    assert killed.returncode == -signal.SIGKILL
    assert len(losses(out)) == 3
    with (out / LOG).open("a") as log:
        log.write('{"step": 4, "lo')  # as a machine without power leaves it
    assert (out / CHECKPOINT).is_file()
    assert not (out / MODEL).exists()
    command = [sys.executable, "-m", "service.commands", "train", str(home / "tiny.toml"), "--device", "cpu"]
    command += ["--out", str(out), "--cache", str(home / "cache"), "--threads", threads]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert str(out / MODEL) in finished.stdout
    assert_same_weights(out, whole)
    assert losses(out) == losses(whole)


def test_a_step_in_two_halves_has_the_gradients_of_the_whole(home: Path, recipe: Recipe, bank: StemBank) -> None:
    """Gradient caching, as on a card that cannot hold the batch: twice embedded, with the same dropout both times."""
    still = replace(recipe, encoder=replace(recipe.encoder, dropout=0.0))
    runs = [Trainer(still, bank, home / name, torch.device("cpu")) for name in ("at once", "in halves")]
    whole, halves = (run.model for run in runs)
    batch = next(drawn for step in range(9) if (drawn := runs[0]._ahead.of(step)).pitched is not None)  # in keys
    runs[1]._clips_at_once = lambda _: 3  # type: ignore[method-assign]
    losses_of = [run._loss_and_gradients(batch, Clock(run.device))[0] for run in runs]
    assert losses_of[1].item() == pytest.approx(losses_of[0].item(), rel=SUMMATION)
    for (name, ours), theirs in zip(whole.named_parameters(), halves.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() <= SUMMATION * ours.grad.norm() + ROUNDING, name
    for run in runs:
        run._ahead.close()


def test_the_second_pass_of_a_step_in_halves_drops_what_the_first_did(
    home: Path, recipe: Recipe, bank: StemBank
) -> None:
    run = Trainer(recipe, bank, home / "dropped alike", torch.device("cpu"))
    clips = run._ahead.of(0).clips
    run._ahead.close()
    run.model.train()
    with torch.no_grad():
        first = run._embed_seeded(clips, 5)
        other = run._embed_seeded(clips, 6)
    assert torch.allclose(first, run._embed_seeded(clips, 5), atol=SUMMATION)
    assert not torch.allclose(first, other, atol=SUMMATION)


def test_a_gradient_that_is_not_finite_costs_its_step_and_not_the_run(
    home: Path, recipe: Recipe, bank: StemBank
) -> None:
    run = Trainer(recipe, bank, home / "one lost", torch.device("cpu"))
    weight = next(run.model.parameters())
    seen: list[Step] = []
    hook = weight.register_hook(lambda gradient: gradient * (torch.nan if run.step == 1 else 1.0))
    run.run(seen.append)
    hook.remove()
    assert [step.lost for step in seen] == [None, True, None, None]
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())


def test_a_run_without_a_finite_gradient_ends_in_a_sentence(home: Path, recipe: Recipe, bank: StemBank) -> None:
    run = Trainer(replace(recipe, steps=20), bank, home / "all lost", torch.device("cpu"))
    next(run.model.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(RunLost, match="10 steps in a row, up to step 10"):
        run.run()


@pytest.mark.parametrize(
    ("change", "device", "sentence"),
    [("batch = 24", "cpu", "tracks to train on have"), ("", "mars", "the device 'mars' cannot be used")],
)
def test_a_run_that_cannot_be_ends_in_a_sentence(home: Path, change: str, device: str, sentence: str) -> None:
    (home / "wrong.toml").write_text(f'extends = "tiny.toml"\n{change}\n')
    asked = [home / "wrong.toml", "--device", device, "--out", home / "wrong", "--cache", home / "cache"]
    run = CliRunner().invoke(train_app, [*map(str, asked), "--jobs", "1"])
    assert run.exit_code == 1
    assert sentence in run.stderr


def test_every_step_is_reported_with_its_split(home: Path, recipe: Recipe, bank: StemBank) -> None:
    seen: list[Step] = []
    Trainer(recipe, bank, home / "reported", torch.device("cpu")).run(seen.append, stop_at=2)
    assert [step.step for step in seen] == [1, 2]
    assert all(set(step.timing_s) == {"data", "forward", "backward", "optimiser"} for step in seen)
    assert all(min(step.timing_s.values()) > 0 for step in seen)
    assert [step.validation_accuracy is not None for step in seen] == [False, True]


def test_a_folder_of_another_recipe_is_refused(home: Path, recipe: Recipe, bank: StemBank, whole: Path) -> None:
    other = replace(recipe, batch=2)
    with pytest.raises(OtherRun, match="batch"):
        Trainer(other, bank, whole, torch.device("cpu"))
    with pytest.raises(OtherRun, match=r"whose data.matched is 0.5, not 0.25"):
        Trainer(replace(recipe, data=replace(recipe.data, matched=0.25)), bank, whole, torch.device("cpu"))
    with pytest.raises(OtherRun, match="4 steps already, more than 2"):
        Trainer(replace(recipe, steps=2), bank, whole, torch.device("cpu"))
    longer = replace(recipe, steps=6)
    assert Trainer(longer, bank, whole, torch.device("cpu")).step == 4, "a run may be made longer"


@pytest.mark.parametrize("how", ["text", "cut", "of another program"])
def test_a_folder_of_a_checkpoint_that_is_no_run_is_refused(
    tmp_path: Path, recipe: Recipe, bank: StemBank, whole: Path, how: str
) -> None:
    data = io.BytesIO()
    torch.save({"epoch": 3, "model": {}}, data)
    held = {"text": b"hello", "cut": (whole / CHECKPOINT).read_bytes()[:1000], "of another program": data.getvalue()}
    (tmp_path / CHECKPOINT).write_bytes(held[how])
    with pytest.raises(OtherRun, match="broken, or of another program: choose another folder"):
        Trainer(recipe, bank, tmp_path, torch.device("cpu"))


def test_a_folder_takes_one_training_at_a_time(home: Path) -> None:
    asked = [home / "tiny.toml", "--device", "cpu", "--out", home / "busy", "--cache", home / "cache", "--jobs", "1"]
    with alone_in(home / "busy"):
        second = CliRunner().invoke(train_app, [*map(str, asked)])
    assert second.exit_code == 1
    assert "another training runs in" in second.stderr
    assert not (home / "busy" / LOG).exists()


def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_else(
    home: Path, recipe: Recipe, bank: StemBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Trainer(recipe, bank, home / "full", torch.device("cpu"))
    run.save()
    before = (run.folder / CHECKPOINT).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    run.step = 1
    with pytest.raises(OSError, match="No space left"):
        run.save()
    assert [path.name for path in run.folder.iterdir()] == [CHECKPOINT]
    assert (run.folder / CHECKPOINT).read_bytes() == before


def test_a_run_may_begin_with_a_trained_model(home: Path, recipe: Recipe, bank: StemBank, whole: Path) -> None:
    device, folder = torch.device("cpu"), home / "second"
    second = Trainer(recipe, bank, folder, device, whole / MODEL)
    ours, theirs = second.model.state_dict(), load_file(whole / MODEL)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert second.notes()["began_with"] == hashlib.sha256((whole / MODEL).read_bytes()).hexdigest()
    assert second.notes()[HEARD] == load_phalar(whole / MODEL).notes[HEARD]
    second.run(stop_at=1)
    assert Trainer(recipe, bank, folder, device, whole / MODEL).step == 1, "it goes on, and does not begin again"
    with pytest.raises(OtherRun, match="first checkpoint"):
        Trainer(recipe, bank, folder, device)
    fronts = replace(recipe, encoder=replace(recipe.encoder, kernel_fronts=not recipe.encoder.kernel_fronts))
    third = Trainer(fronts, bank, home / "fronts", device, whole / MODEL).model
    assert all(torch.equal(third.state_dict()[name], theirs[name]) for name in theirs)


def test_a_further_round_draws_other_examples_and_validates_by_the_same(
    home: Path, recipe: Recipe, bank: StemBank, whole: Path
) -> None:
    device, same_weights = torch.device("cpu"), home / "renamed.safetensors"
    model = load_phalar(whole / MODEL)
    save_phalar(model, same_weights, notes=model.notes | {"note": "another file"})
    rounds = [Trainer(recipe, bank, home / path.stem, device, path) for path in (whole / MODEL, same_weights)]
    assert rounds[0].validate() == rounds[1].validate()
    for one in rounds:
        one.run(stop_at=1)
    assert losses(rounds[0].folder) != losses(rounds[1].folder), "the weights are equal, so the examples are not"


def test_a_model_tells_what_it_heard_and_what_was_held_out(bank: StemBank, whole: Path) -> None:
    notes = load_phalar(whole / MODEL).notes
    splits = ("train", "validation", "test")
    names = {split: [bank.tracks[at].name for at in bank.of_split(split)] for split in splits}
    assert names["train"]
    assert names["validation"]
    for split in splits:
        heard = len(names[split]) if split == "train" else 0
        assert heard_of(notes, names[split]) == Heard(heard, len(names[split]))


def test_what_is_not_known_of_the_first_round_is_not_known_of_the_second(
    home: Path, recipe: Recipe, bank: StemBank, whole: Path
) -> None:
    model = load_phalar(whole / MODEL)
    save_phalar(model, home / "unknown.safetensors", notes={})
    second = Trainer(recipe, bank, home / "of unknown", torch.device("cpu"), home / "unknown.safetensors")
    assert HEARD not in second.notes()


def test_two_rounds_are_averaged_and_the_mean_tells_of_both(
    home: Path, recipe: Recipe, bank: StemBank, whole: Path
) -> None:
    first = home / "first round.safetensors"
    earlier = encode_heard(["elsewhere/of the first round"])
    save_phalar(load_phalar(whole / MODEL), first, notes={HEARD: earlier})
    second = Trainer(recipe, bank, home / "second round", torch.device("cpu"), first)
    second.run()
    paths = [first, home / "second round" / MODEL]
    mean = average_models(paths)
    states = [load_file(path) for path in paths]
    for name, weight in mean.state_dict().items():
        torch.testing.assert_close(weight, (states[0][name] + states[1][name]) / 2)
    assert mean.trained
    assert json.loads(mean.notes["averaged"]) == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert mean.notes["steps"] == "4"
    names = [bank.tracks[at].name for at in bank.of_split("train")]
    assert heard_of(mean.notes, [*names, "any/of the first round"]) == Heard(len(names) + 1, len(names) + 1)


def test_models_are_not_averaged_alone_or_with_another_configuration(home: Path, whole: Path) -> None:
    with pytest.raises(NotAlike, match="needs two"):
        average_models([whole / MODEL])
    save_phalar(Phalar(PhalarConfig(dimension=16)), home / "small.safetensors")
    with pytest.raises(NotAlike, match="different configurations"):
        average_models([whole / MODEL, home / "small.safetensors"])


def test_a_run_begins_with_no_other_model(home: Path, recipe: Recipe, bank: StemBank, whole: Path) -> None:
    mel, larger = replace(recipe, model="mel"), replace(recipe, encoder=replace(recipe.encoder, dimension=64))
    with pytest.raises(ValueError, match=r"holds a Phalar .*dimension=32.*; this recipe trains .*dimension=64"):
        Trainer(larger, bank, home / "larger", torch.device("cpu"), whole / MODEL)
    with pytest.raises(ValueError, match=r"holds a Phalar .*; this recipe trains a OnMel "):
        Trainer(mel, bank, home / "mel", torch.device("cpu"), whole / MODEL)


def test_two_processes_train_as_one(home: Path, bank: StemBank) -> None:
    """Without what is drawn for each process by itself (dropout, augmentation), the gradients of the first step and the
    losses of the next agree. A later step's gradients need not: Muon may round the first update to bfloat16."""
    plain = home / "plain.toml"
    plain.write_text('extends = "tiny.toml"\n[encoder]\ndropout = 0.0\n[augment]\ngain_db = 0.0\nnoise = 0.0\n')
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "service.commands", "train", str(plain), "--device", "cpu"]
    command += ["--out", str(home / "pair"), "--cache", str(home / "cache")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for steps in (1, 2):
        Trainer(load_recipe(plain), bank, home / "alone", torch.device("cpu")).run(stop_at=steps)
        stopped = [*command, "--stop-at", str(steps)]
        subprocess.run(stopped, env=environment, capture_output=True, timeout=PATIENCE_S, check=True)
        assert dict(losses(home / "pair")) == pytest.approx(dict(losses(home / "alone")), rel=SUMMATION)
        if steps > 1:
            break
        one, two = (torch.load(home / name / CHECKPOINT, weights_only=True) for name in ("alone", "pair"))
        # Means of gradients, not weights: AdamW moves a weight by its full rate whatever the gradient, so where that is
        # nothing but rounding, a weight may go either way.
        for optimiser, mean in (("muon", "momentum"), ("adam", "exp_avg")):
            states = [checkpoint[optimiser]["state"] for checkpoint in (one, two)]
            assert states[0].keys() == states[1].keys()
            for number in states[0]:
                ours, theirs = (state[number][mean] for state in states)
                assert (ours - theirs).norm() <= SUMMATION * ours.norm(), (optimiser, number)


def test_training_learns(home: Path) -> None:
    """On music that it has heard, nineteen tracks as recorded: the positive is soon often found among 23."""
    (home / "learning.toml").write_text(
        'extends = "tiny.toml"\nsteps = 24\nbatch = 12\ncheckpoint_minutes = 60.0\nvalidate_every = 1000\n'
        "[encoder]\nchannels = 8\ndepth = 3\npooled_channels = 80\ndimension = 256\ndropout = 0.0\n"
        "[data]\nmatched = 0.0\n[augment]\nnoise = 0.0\n"
        "[optimiser]\nmuon_rate = 0.03\nwarmup = 5\ndecay = 0.4\n"
    )
    recipe = load_recipe(home / "learning.toml")
    seen: list[Step] = []
    Trainer(recipe, training_bank([], recipe.data, home / "cache"), home / "learned", torch.device("cpu")).run(
        seen.append
    )
    first, last = (np.mean([step.accuracy for step in part]) for part in (seen[:6], seen[-6:]))
    assert first < 0.25, "chance is 1 in 23"
    assert last > 0.3
