"""What becomes of errors that the framework raises before any endpoint of ours."""

import json
import tempfile
from pathlib import Path
from string import Formatter

import pytest
from fastapi import FastAPI, UploadFile
from fastapi.testclient import TestClient

from indexer import CatalogUnavailable, IndexUnavailable, StemNotFound
from model.audio import AudioError
from model.checkpoints import CheckpointError
from service.api.errors import TABLE, add_error_handlers, problem
from service.work.blobs import BlobMissing, BlobStoreUnavailable
from service.work.decoding import DecoderCrashed
from service.work.jobs import EmbedFailed, FingerprintMismatch
from service.work.streams import QueueUnavailable
from service.work.worker import KilledItsWorker, StemNotEmbedded

SECRET = "/home/someone/redis.sock and redis://:sesame@10.0.0.7:6379"
SPOOLED_TO_DISK = b"\0" * (2 * 2**20)


def test_a_body_for_which_the_disk_has_no_place_is_no_fault_of_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = FastAPI()
    add_error_handlers(app)

    @app.post("/")
    async def size(file: UploadFile) -> int:
        return file.size or 0

    client = TestClient(app)
    assert client.post("/", files={"file": SPOOLED_TO_DISK}).json() == len(SPOOLED_TO_DISK)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    answer = client.post("/", files={"file": SPOOLED_TO_DISK})
    assert answer.status_code == 503
    assert answer.json()["type"] == "/problems/audio-store-unavailable"
    assert "Retry-After" in answer.headers


@pytest.mark.parametrize(
    "error",
    [
        QueueUnavailable(SECRET),
        EmbedFailed(SECRET),
        FingerprintMismatch(SECRET, [SECRET]),
        CatalogUnavailable(SECRET),
        BlobStoreUnavailable(SECRET),
        BlobMissing(SECRET),
        CheckpointError(Path(SECRET), SECRET),
        DecoderCrashed(SECRET),
        StemNotEmbedded(SECRET),
        IndexUnavailable("unreachable"),
        RuntimeError(SECRET),
        OSError(2, SECRET, SECRET),
    ],
    ids=lambda error: type(error).__name__,
)
def test_problem_tells_of_an_error_what_its_class_declares_public_and_nothing_else(error: Exception) -> None:
    said = problem(error)
    assert not any(word in json.dumps(said) for word in ("someone", "sesame", "10.0.0.7"))
    assert said["title"]


def test_facts_of_a_problem_are_those_of_its_public_sentence() -> None:
    assert problem(StemNotFound("a")) == {
        "type": "/problems/stem-not-found",
        "title": "No such stem",
        "status": 404,
        "detail": "No stem has the id 'a'.",
        "stem_id": "a",
    }
    assert (
        problem(KilledItsWorker("killed its worker twice"))["detail"] == "Embedding this stem killed its worker twice."
    )
    for kind in TABLE:
        names = [name for _, name, _, _ in Formatter().parse(getattr(kind, "public", "")) if name is not None]
        assert all(name.isidentifier() for name in names), kind
        assert not issubclass(kind, AudioError) or not names
