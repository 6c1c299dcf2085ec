"""`phalar doctor` tells what is there, and what it costs that something is not."""

import sys
from pathlib import Path

import pytest

from model.device import why_no_card
from tests.command import files_guarded, phalar


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


@pytest.mark.skipif(sys.platform != "linux", reason="root's rights are Linux capabilities here")
@pytest.mark.parametrize(("below", "reason"), [
    ("closed/data", "nothing may be written there"),
    ("closed/shut/data", "Permission denied"),
    ("file/data", "that is no folder"),
    ("x" * 300, "File name too long"),
])  # fmt: skip
def test_doctor_says_of_a_folder_that_cannot_be_used_why_and_goes_on(tmp_path: Path, below: str, reason: str) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "closed" / "shut").mkdir(parents=True)
    (tmp_path / "closed" / "shut").chmod(0)
    (tmp_path / "closed").chmod(0o500)
    with files_guarded():
        ran = phalar("doctor", PHALAR_DATA=str(tmp_path / below))
    assert ran.exit_code == 0, ran.stderr
    assert f"! `phalar serve` will not start: {reason}" in ran.stdout
    assert "FFmpeg" in ran.stdout
