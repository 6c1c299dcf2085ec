"""`phalar doctor` tells what is there, and what it costs that something is not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.device import why_no_card

ROOT = Path(__file__).parents[2]


def doctor(**variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.commands", "doctor"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_doctor_names_everything_that_a_machine_is_asked_for(tmp_path: Path) -> None:
    ran = doctor(PHALAR_DATA=str(tmp_path / "not yet there"))
    assert ran.returncode == 0, ran.stderr
    said = dict(line.split("  ", 1) for line in ran.stdout.splitlines() if not line.startswith(" "))
    assert set(said) == {
        "PHALAR_DEVICE",
        "card",
        "CPU kernel",
        "processors",
        "memory",
        "free disk",
        "soundfonts",
        "FFmpeg",
    }
    assert str(tmp_path) in said["free disk"]


@pytest.mark.skipif(why_no_card() is None, reason="there is a card here")
def test_doctor_says_that_a_worker_will_not_start_without_its_card() -> None:
    ran = doctor(PHALAR_DEVICE="cuda")
    assert ran.returncode == 1
    assert "! workers will not start" in ran.stdout
    assert "! training is slow" in ran.stdout
