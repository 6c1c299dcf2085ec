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
from service.api import bodies, keys, origins, rates
from service.api.app import create_app
from service.api.errors import TABLE, add_error_handlers, problem
from service.settings import Settings
from service.work.blobs import BlobMissing, BlobStoreUnavailable
from service.work.decoding import DecoderCrashed
from service.work.jobs import EmbedFailed, FingerprintMismatch, KilledItsWorker, StemNotEmbedded
from service.work.streams import QueueUnavailable

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
        FingerprintMismatch(SECRET, (SECRET,)),
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
        names = [name for _, name, _, _ in Formatter().parse(getattr(kind, "public", None) or "") if name is not None]
        assert all(name.isidentifier() for name in names), kind
        assert not issubclass(kind, AudioError) or not names


def test_every_operation_names_what_the_door_and_the_access_layer_may_answer() -> None:
    before_any_endpoint = {module.__name__ for module in (bodies, origins, keys, rates)}
    statuses = {str(row.status) for kind, row in TABLE.items() if kind.__module__ in before_any_endpoint}
    assert statuses >= {"401", "403", "408", "413", "421", "429"}
    for path, operations in create_app(Settings()).openapi()["paths"].items():
        for method, operation in operations.items():
            assert statuses | {"400", "500", "503"} <= operation["responses"].keys(), f"{method} {path}"
