"""One installation with a small model, shared by the tests that leave it as they found it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.local.valkey import EmbeddedValkey
from tests import servers
from tests.installation import Installation, add_stem, encode, noise_bursts, save_small_checkpoint, wait_ready

CATALOG_STEMS = 6


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_small_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory, small_checkpoint: Path) -> Iterator[Installation]:
    """Running, with CATALOG_STEMS ready stems: noise_bursts(0), noise_bursts(1), ..."""
    running = Installation(
        tmp_path_factory.mktemp("installation"),
        {"PHALAR_CHECKPOINT": str(small_checkpoint), "PHALAR_MAX_BODY_BYTES": str(4 * 2**20)},
    ).start()
    with running.client() as client:
        added = [
            add_stem(
                client,
                encode(noise_bursts(seed)),
                f"{seed}.flac",
                instrument="bass" if seed % 2 else "drums",
                track=f"track {seed // 2}",
                collection="shared",
                tempo_bpm=100 + seed,
                tags=["warm"],
            )
            for seed in range(CATALOG_STEMS)
        ]
        wait_ready(client, *added)
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, small_checkpoint: Path) -> Iterator[Installation]:
    """Running, empty, for the tests of one file alone."""
    started = Installation(tmp_path_factory.mktemp("own"), {"PHALAR_CHECKPOINT": str(small_checkpoint)}).start()
    yield started
    started.stop()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey as it is embedded, or a Redis server where servers are wanted; tests share it, each with its prefix."""
    if servers.wanted():
        yield servers.redis_url()
        return
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


@pytest.fixture
def client(installation: Installation) -> Iterator[httpx.Client]:
    with installation.client() as opened:
        yield opened
