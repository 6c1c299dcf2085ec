"""No test times a benchmark, but each must still load, and that of training must run."""

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks.faults import balanced
from model.audio import SAMPLE_RATE
from model.demo import compose_track, write_track
from model.device import why_no_card

RECIPE = """
batch = 2
precision = "float32"
clips_per_pass = 4
[encoder]
depth = 3
growth = 1.0
dimension = 128
"""
ROUNDED = 0.1  # a ratio is told to a tenth, of seconds that are told to a thousandth
PARTS = ["data", "forward", "backward", "optimiser", "step"]


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(benchmarks.__path__)])
def test_every_benchmark_loads(name: str) -> None:
    assert importlib.import_module(f"benchmarks.{name}").__doc__


def test_a_training_step_is_timed_beside_the_ones_it_replaced(tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(RECIPE)
    for seed in (1, 2):
        write_track(compose_track(seed, 4.0, SAMPLE_RATE), tmp_path / "mine" / f"track {seed}")
    page = tmp_path / "page.md"
    page.write_text("<!-- results: training-step -->\n<!-- end of training-step -->\n")
    command = [sys.executable, "-m", "benchmarks.training", "--stems", str(tmp_path / "mine"), "--repeats", "1"]
    command += ["--threads", "1", "--recipe", str(tmp_path / "two.toml"), "--seconds", "1.5", "--page", str(page)]
    subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, timeout=120, check=True)
    rows = [line.strip("| ").split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == PARTS
    _, ours_s, layers_s, layers_ratio, plain_s, plain_ratio = rows[-1]
    assert float(layers_ratio) == pytest.approx(float(layers_s) / float(ours_s), abs=ROUNDED)
    assert float(plain_ratio) == pytest.approx(float(plain_s) / float(ours_s), abs=ROUNDED)


def test_a_run_of_faults_fails_where_a_clip_was_never_taken_or_a_ready_stem_is_not_found() -> None:
    right = {"clips uploaded": 3, "uploads acknowledged": 3, "ready at the end": 3, "doubled": 0}
    assert balanced(right)
    assert not balanced(right | {"uploads acknowledged": 2})
    for name in ("doubled", "ready and not the first hit for its own audio"):
        assert not balanced(right | {name: 1})


def test_what_runs_on_a_card_refuses_a_machine_without_one_before_anything_else(tmp_path: Path) -> None:
    if why_no_card() is None:
        pytest.skip("there is a card here")
    command = ["benchmarks/on_a_card.sh", "--out", str(tmp_path / "out")]
    environment = os.environ | {"PYTHON": sys.executable}
    ran = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 1
    assert "! workers will not start" in ran.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["doctor.txt"]
