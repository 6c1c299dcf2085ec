"""Audio bytes by their SHA-256: in a local folder, or in any object store that `obstore` speaks to."""

import hashlib
import logging
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from model.errors import Told

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

log = logging.getLogger("phalar.blobs")
READ_BYTES = 1 << 20
# An object store is tried again for a while; obstore's own three minutes would outlast every client.
RETRY: "RetryConfig" = {"max_retries": 4, "retry_timeout": timedelta(seconds=15)}
# An endpoint that is written http://... is meant so.
CLIENT: "ClientConfig" = {"connect_timeout": "5s", "timeout": "60s", "allow_http": True}


class BlobMissing(Told):
    says = "no audio is stored under {sha256}"
    sha256: str


class BlobStoreUnavailable(Told):
    """The store does not answer, does not let us in, has no such bucket, or its disk is full."""

    says = "the audio store cannot be used now"
    reason: str  # for the log: it may name folders and hosts


@contextmanager
def _naming_failures() -> Iterator[None]:
    """What the store raises beyond "not found", as one error of ours."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (BaseError, OSError) as error:
        log.error("the audio store failed: %s", error)
        raise BlobStoreUnavailable(str(error)) from error


def sha256_of(file: BinaryIO) -> str:
    """SHA-256 of a file from its start, in hex; the file is left at its start."""
    digest = hashlib.sha256()
    file.seek(0)
    while piece := file.read(READ_BYTES):
        digest.update(piece)
    file.seek(0)
    return digest.hexdigest()


class Blobs:
    """A content-addressed store. Writing is atomic, and the same bytes are kept once.

    url: `file:///folder` (made when missing) or `s3://bucket/prefix` (credentials, region and endpoint from the
        environment, as AWS has it: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL).
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._folder: Path | None = None
        self._store: ObjectStore
        if parts.scheme == "file":
            self._folder = Path(unquote(parts.path))
            self._store = LocalStore(self._folder, mkdir=True)
        else:
            self._store = from_url(url, client_options=CLIENT, retry_config=RETRY)

    async def put(self, sha256: str, file: BinaryIO) -> bool:
        """Keep a file's bytes, unless they are here already. Returns whether they are new."""
        if await self.exists(sha256):
            return False
        try:
            with _naming_failures():
                await obstore.put_async(self._store, _path(sha256), file)
        except FileNotFoundError as error:  # of the bucket
            log.error("the audio store failed: %s", error)
            raise BlobStoreUnavailable(str(error)) from error
        return True

    async def exists(self, sha256: str) -> bool:
        try:
            await self.size(sha256)
        except BlobMissing:
            return False
        return True

    async def delete(self, sha256: str) -> None:
        """Forget the bytes; forgetting what is not there is no error."""
        with suppress(FileNotFoundError), _naming_failures():
            await obstore.delete_async(self._store, _path(sha256))

    async def size(self, sha256: str) -> int:
        """Bytes. Raises BlobMissing."""
        try:
            with _naming_failures():
                return int((await obstore.head_async(self._store, _path(sha256)))["size"])
        except FileNotFoundError:
            raise BlobMissing(sha256) from None

    async def read(self, sha256: str, start: int, end: int) -> AsyncIterator[memoryview]:
        """The bytes from `start` up to, not with, `end`, piece by piece. Raises BlobMissing."""
        for at in range(start, end, READ_BYTES):
            try:
                with _naming_failures():
                    piece = await obstore.get_range_async(
                        self._store, _path(sha256), start=at, end=min(at + READ_BYTES, end)
                    )
            except FileNotFoundError:
                raise BlobMissing(sha256) from None
            yield memoryview(piece)

    @asynccontextmanager
    async def fetch(self, sha256: str) -> AsyncIterator[Path]:
        """A local file with the bytes, for as long as the context lasts. Raises BlobMissing."""
        if self._folder is not None:
            path = self._folder / _path(sha256)
            if not path.is_file():
                raise BlobMissing(sha256)
            yield path
            return
        end = await self.size(sha256)
        with tempfile.NamedTemporaryFile(prefix="phalar-") as file:
            async for piece in self.read(sha256, 0, end):
                file.write(piece)
            file.flush()
            yield Path(file.name)


def _path(sha256: str) -> str:
    """Two levels of folders: a million files in one folder are slow to list and to back up."""
    return f"{sha256[:2]}/{sha256[2:4]}/{sha256}"
