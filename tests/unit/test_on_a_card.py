"""What our code does to a card, counted on one without numbers (tests/card). Tests marked `gpu` ask a real one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.training.recipe import RECIPES

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))
PATIENCE_S = 240

MOST_LAUNCHES = 1_700  # of a step of `paper`, 64 pairs of 6 s
MOST_GIGABYTES = 105.0  # that such a step reads and writes on the card
NOISE_LAUNCHES = 40  # a batch's noise takes some more or fewer, by its kinds
SERVED_LAUNCHES = 300  # of 64 windows of 5 s

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: torch cannot be told of a card"),
    pytest.mark.timeout(2 * PATIENCE_S),
]


@pytest.fixture(scope="module")
def told() -> list[dict[str, Any]]:
    """A small model's step and validation by every recipe, `paper` in bfloat16; then a step of the paper's run, its
    second, for what is made once is made by then; one of a new run and of one that goes on; and what is served."""
    asked = [*NAMES, "--small", "+", "step", "paper", "--batch", "64", "--seconds", "6", "--steps", "2"]
    asked += ["+", "step", "smoke", "--batch", "4", "--steps", "2", "--resumed", "+", "serve"]
    command = [sys.executable, "-m", "tests.card", "step", *asked]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.fixture(scope="module")
def steps(told: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By the recipe's name."""
    return {one["recipe"]: one for one in told[: len(NAMES)]}


@pytest.fixture(scope="module")
def paper(told: list[dict[str, Any]]) -> dict[str, Any]:
    return told[len(NAMES)]


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_steps_and_validates_on_a_card(steps: dict[str, dict[str, Any]], name: str) -> None:
    if name == "cocola":
        pytest.importorskip("efficientnet_pytorch", reason="the extra `baselines` is not installed")
    assert "error" not in steps[name], steps[name].get("error")
    assert steps[name]["devices"] == ["cuda:0"], "nothing of the model stays on the CPU"


def test_a_step_starts_few_kernels_and_moves_few_bytes(paper: dict[str, Any]) -> None:
    assert paper["launches"] <= MOST_LAUNCHES, paper["by_operation"]
    assert paper["gigabytes"] <= MOST_GIGABYTES


def test_a_step_waits_for_nothing(paper: dict[str, Any]) -> None:
    assert paper["waits"] == []
    assert [line for line in paper["uploads"] if line.endswith("waited")] == []


def test_what_steps_measured_is_fetched_by_one_copy(paper: dict[str, Any]) -> None:
    assert len(paper["fetched"]) == 1, paper["fetched"]


def test_a_resumed_run_launches_no_more_than_a_new_one(told: list[dict[str, Any]]) -> None:
    """A count of steps that lies on the card would be a launch, and a wait, for each of AdamW's parameters."""
    new, resumed = told[len(NAMES) + 1 : -1]
    assert resumed["waits"] == []
    assert resumed["launches"] == pytest.approx(new["launches"], abs=NOISE_LAUNCHES)


def test_embedding_waits_once_for_whether_its_clips_are_finite(told: list[dict[str, Any]]) -> None:
    served = told[-1]
    assert len(served["waits"]) == 1, served["waits"]
    assert served["launches"] <= SERVED_LAUNCHES
    assert served["devices"] == ["cuda:0"]
    assert served["types"] == ["torch.complex64", "torch.float32"]
    assert served["fingerprint"] == 64
