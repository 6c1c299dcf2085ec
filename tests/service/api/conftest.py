"""A fresh installation's settings, for tests that serve in this process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.local.valkey import EmbeddedValkey


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def chosen(tmp_path: Path, valkey: EmbeddedValkey, small_checkpoint: Path) -> dict[str, Any]:
    """Settings of a fresh installation."""
    return {
        "data": tmp_path / "data",
        "redis_url": valkey.url,
        "redis_prefix": tmp_path.name,
        "checkpoint": small_checkpoint,
        "sweep_s": 3600,
    }
