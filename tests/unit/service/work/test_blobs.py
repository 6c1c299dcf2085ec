"""The store of audio bytes, on a real folder and on a server that speaks S3 over HTTP."""

import hashlib
import io
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from moto.server import ThreadedMotoServer

from benchmarks.installation import free_port
from service.work.blobs import RETRY, BlobMissing, Blobs, BlobStoreUnavailable, sha256_of

pytestmark = pytest.mark.anyio

BYTES = bytes(range(256)) * 5000


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    httpx.put(f"http://{host}:{port}/audio", timeout=120).raise_for_status()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_that_asks_for_keys(s3: str) -> Iterator[str]:
    """The same server, which knows no key and now wants one."""
    httpx.post(f"{s3}/moto-api/reset-auth", content=b"0", timeout=120).raise_for_status()
    yield s3
    httpx.post(f"{s3}/moto-api/reset-auth", content=b"inf", timeout=120).raise_for_status()


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "folder":
        return (tmp_path / "audio with space").as_uri()
    use_endpoint(monkeypatch, request.getfixturevalue("s3"))
    return f"s3://audio/{tmp_path.name}"


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    given = {"ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
    for name, value in (given | {"ENDPOINT_URL": endpoint}).items():
        monkeypatch.setenv(f"AWS_{name}", value)


async def test_bytes_come_back_whole_and_in_ranges(url: str) -> None:
    blobs, sha256 = Blobs(url), hashlib.sha256(BYTES).hexdigest()
    assert sha256_of(io.BytesIO(BYTES)) == sha256
    await blobs.put(sha256, io.BytesIO(BYTES))
    async with blobs.fetch(sha256) as path:
        assert path.read_bytes() == BYTES
    assert await blobs.size(sha256) == len(BYTES)
    assert b"".join([bytes(piece) async for piece in blobs.read(sha256, 10, 1_200_000)]) == BYTES[10:1_200_000]


async def test_missing_bytes_are_named(url: str) -> None:
    blobs = Blobs(url)
    with pytest.raises(BlobMissing, match="ab" * 32):
        await blobs.size("ab" * 32)
    with pytest.raises(BlobMissing):
        async with blobs.fetch("ab" * 32):
            pass
    with pytest.raises(BlobMissing):
        await anext(blobs.read("ab" * 32, 0, 10))


async def test_deleting_is_final_and_may_be_repeated(url: str) -> None:
    blobs, sha256 = Blobs(url), hashlib.sha256(BYTES).hexdigest()
    await blobs.put(sha256, io.BytesIO(BYTES))
    await blobs.delete(sha256)
    await blobs.delete(sha256)
    assert not await blobs.exists(sha256)


async def test_a_store_that_cannot_write_says_so_and_keeps_no_half(tmp_path: Path) -> None:
    blobs, sha256 = Blobs(tmp_path.as_uri()), hashlib.sha256(BYTES).hexdigest()
    (tmp_path / sha256[:2]).write_text("a file where the store needs a folder")
    with pytest.raises(BlobStoreUnavailable):
        await blobs.put(sha256, io.BytesIO(BYTES))
    (tmp_path / sha256[:2]).unlink()
    assert not await blobs.exists(sha256)
    await blobs.put(sha256, io.BytesIO(BYTES))
    assert await blobs.size(sha256) == len(BYTES)


async def test_bytes_larger_than_one_request_reach_a_server_whole(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, s3)
    large = BYTES * 6  # obstore sends 5 MiB at a time
    blobs, sha256 = Blobs("s3://audio/large"), hashlib.sha256(large).hexdigest()
    await blobs.put(sha256, io.BytesIO(large))
    async with blobs.fetch(sha256) as path:
        assert path.read_bytes() == large
    assert not path.exists()


async def test_a_bucket_that_is_not_there_is_a_store_that_cannot_be_used(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_endpoint(monkeypatch, s3)
    with pytest.raises(BlobStoreUnavailable):
        await Blobs("s3://nowhere").put("ab" * 32, io.BytesIO(BYTES))


async def test_a_server_that_does_not_let_us_in_is_a_store_that_cannot_be_used(
    s3_that_asks_for_keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_endpoint(monkeypatch, s3_that_asks_for_keys)
    blobs = Blobs("s3://audio/refused")
    for ask in (blobs.size("ab" * 32), blobs.put("ab" * 32, io.BytesIO(BYTES)), blobs.delete("ab" * 32)):
        with pytest.raises(BlobStoreUnavailable):
            await ask


async def test_a_server_that_is_away_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setitem(RETRY, "retry_timeout", timedelta(seconds=0.5))
    with pytest.raises(BlobStoreUnavailable):
        await Blobs("s3://audio").size("ab" * 32)
