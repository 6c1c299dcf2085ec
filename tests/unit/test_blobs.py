"""The store of audio bytes, on a real folder."""

import hashlib
import io
from pathlib import Path

import pytest

from service.blobs import BlobMissing, Blobs, BlobStoreUnavailable, sha256_of

pytestmark = pytest.mark.anyio

BYTES = bytes(range(256)) * 5000


async def test_bytes_come_back_whole_and_in_ranges(tmp_path: Path) -> None:
    blobs, sha256 = Blobs((tmp_path / "audio with space").as_uri()), hashlib.sha256(BYTES).hexdigest()
    assert sha256_of(io.BytesIO(BYTES)) == sha256
    await blobs.put(sha256, io.BytesIO(BYTES))
    async with blobs.fetch(sha256) as path:
        assert path.read_bytes() == BYTES
    assert await blobs.size(sha256) == len(BYTES)
    assert b"".join([bytes(piece) async for piece in blobs.read(sha256, 10, 1_200_000)]) == BYTES[10:1_200_000]


async def test_missing_bytes_are_named(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path.as_uri())
    with pytest.raises(BlobMissing, match="ab" * 32):
        await blobs.size("ab" * 32)
    with pytest.raises(BlobMissing):
        async with blobs.fetch("ab" * 32):
            pass


async def test_deleting_is_final_and_may_be_repeated(tmp_path: Path) -> None:
    blobs, sha256 = Blobs(tmp_path.as_uri()), hashlib.sha256(BYTES).hexdigest()
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
