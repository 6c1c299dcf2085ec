"""A Phalar of seeded weights, as our checkpoint and as its authors would publish it."""

from pathlib import Path

import pytest

from model.checkpoints import save_phalar
from model.phalar import Phalar, untrained_phalar
from tests.lightning import Lightning


@pytest.fixture(scope="module")
def phalar() -> Phalar:
    return untrained_phalar(3)


@pytest.fixture
def native(phalar: Phalar, tmp_path: Path) -> Path:
    path = tmp_path / "phalar.safetensors"
    save_phalar(phalar, path, trained=True, notes={"data": "none", "steps": "0"})
    return path


@pytest.fixture
def lightning(phalar: Phalar, tmp_path: Path) -> Lightning:
    return Lightning(phalar, tmp_path / "PHALAR_best.ckpt")
