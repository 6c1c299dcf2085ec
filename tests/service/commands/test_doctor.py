"""`phalar doctor` tells what is there, and what it costs that something is not."""

from pathlib import Path

import pytest

from model.device import why_no_card
from tests.command import phalar


def test_doctor_names_everything_that_a_machine_is_asked_for(tmp_path: Path) -> None:
    ran = phalar("doctor", PHALAR_DATA=str(tmp_path / "not yet there"))
    assert ran.exit_code == 0, ran.stderr
    said = dict(line.split("  ", 1) for line in ran.stdout.splitlines() if not line.startswith(" "))
    things = "PHALAR_DEVICE, card, CPU kernel, processors, memory, free disk, soundfonts, FFmpeg"
    assert set(said) == set(things.split(", "))
    assert str(tmp_path) in said["free disk"]


@pytest.mark.skipif(why_no_card() is None, reason="there is a card here")
def test_doctor_says_that_a_worker_will_not_start_without_its_card() -> None:
    ran = phalar("doctor", PHALAR_DEVICE="cuda")
    assert ran.exit_code == 1
    assert "! workers will not start" in ran.stdout
    assert "! training is slow" in ran.stdout
