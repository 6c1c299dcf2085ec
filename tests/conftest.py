"""Fixtures that more than one folder uses."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch: threads that spin starve the services under test, and so do more of them than there are cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

DEMO_TRACKS, DEMO_SECONDS = 3, 10.0
# They train, render, or start programs; `make quick` goes without them.
SLOW = {
    *("test_baselines.py", "test_beats.py", "test_benchmarks.py", "test_chords.py", "test_cocola.py", "test_deploy.py"),
    *("test_matched.py", "test_on_a_card.py", "test_render.py", "test_retimed.py", "test_retrieval_protocol.py"),
    *("test_servers.py", "test_threads.py", "test_training.py", "test_training_parts.py"),
}


# What takes longest is begun first, so that processes which share the files end together.
LONGEST = (
    *("test_default_model.py", "test_faults.py", "test_on_a_card.py", "test_evaluate_catalog.py", "test_page.py"),
    *("test_training.py", "test_cli.py", "test_upgrade.py", "test_messy_folders.py", "test_replicas.py"),
    *("test_chords.py", "test_processes.py", "test_uploads.py", "test_worker.py", "test_benchmarks.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
    for item in items:
        if item.path.name in SLOW:
            item.add_marker("slow")


@pytest.fixture
def anyio_backend() -> str:
    """Tests marked `anyio` run on asyncio, as the service does."""
    return "asyncio"


@pytest.fixture(scope="session")
def hour_of_silence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file that keeps a decoder busy for seconds."""
    import numpy as np
    import soundfile

    path = tmp_path_factory.mktemp("silence") / "silence.flac"
    with soundfile.SoundFile(path, "w", 44100, 1, format="FLAC", subtype="PCM_16") as file:
        minute = np.zeros(60 * 44100, np.int16)
        for _ in range(60):
            file.write(minute)
    return path


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small composed catalog as files, and `mix.flac`, a mix that lacks a stem of it."""
    from service.local.demo import compose_demo

    folder = tmp_path_factory.mktemp("demo")
    assert len(list(compose_demo(folder, DEMO_TRACKS, DEMO_SECONDS))) == DEMO_TRACKS
    return folder


@pytest.fixture(scope="session")
def live_service(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Iterator[str]:
    """The URL of a running `phalar serve` as a newcomer has it: seeded weights, and the small composed catalog."""
    from service.local.serve import ingest_demo
    from tests.installation import Installation

    running = Installation(tmp_path_factory.mktemp("live")).start()
    assert ingest_demo(running.url, None, demo_folder, DEMO_TRACKS, DEMO_SECONDS, seed=0) == 0
    yield running.url
    assert running.stop() == 0
