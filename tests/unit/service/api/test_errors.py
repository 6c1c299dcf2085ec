"""What becomes of errors that the framework raises before any endpoint of ours."""

import tempfile
from pathlib import Path

import pytest
from fastapi import FastAPI, UploadFile
from fastapi.testclient import TestClient

from service.api.errors import add_error_handlers

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
