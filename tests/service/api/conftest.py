"""Fresh installations' settings, for tests that serve in this process, and a service for the tests of one file."""

import resource
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.settings import Settings
from tests.installation import add_stem, serving, wait_ready

Fresh = Callable[..., Settings]


@contextmanager
def added(client: httpx.Client, audio: bytes, name: str = "stem.flac", **metadata: Any) -> Iterator[str]:
    """A stem of a shared catalog, ready, for as long as the context lasts."""
    stem_id = add_stem(client, audio, name, **metadata)
    try:
        wait_ready(client, stem_id)
        yield stem_id
    finally:
        client.delete(f"/stems/{stem_id}")


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file of this process, in which the service runs, may grow beyond so many bytes: a write fails as on a full
    disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, redis_url: str, small_checkpoint: Path) -> Fresh:
    """Settings of a fresh installation, with what is chosen beside."""

    def settings(**chosen: Any) -> Settings:
        folder = tmp_path_factory.mktemp("fresh")
        given = {"data": folder / "data", "redis_url": redis_url, "redis_prefix": uuid.uuid4().hex, "sweep_s": 3600}
        return Settings(**given | {"checkpoint": small_checkpoint} | chosen)

    return settings


@pytest.fixture
def chosen(fresh: Fresh) -> dict[str, Any]:
    """The same, to be added to."""
    return fresh().model_dump(exclude_unset=True)


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    """What a file's own service is set to; a file says its own."""
    return {}


@pytest.fixture(scope="module")
def own(fresh: Fresh, limits: dict[str, Any]) -> Iterator[tuple[httpx.Client, Path]]:
    """An API without workers for the tests of one file: its client, and its data folder."""
    settings = fresh(**limits)
    with serving(settings) as url, httpx.Client(base_url=url, timeout=120) as client:
        yield client, settings.data


@pytest.fixture(scope="module")
def fitted(own: tuple[httpx.Client, Path]) -> Path:
    """Where it keeps fitted audio."""
    return own[1] / "fitted"
