"""Fitted audio on disk: made once, kept while there is room, forgotten with its stem."""

import asyncio
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from model.errors import Told
from service.work.encoding import Order

log = logging.getLogger("phalar.fitted")
READ_BYTES = 1 << 18
MAKING = ".making-"  # how the name of an unfinished file begins
MAKING_S = 3600.0  # it grew last so long ago: whoever made it was killed
SOUND = 1
"""Another number where the same order sounds otherwise; what was kept under the last one is not found any more."""


class NoRoom(Told):
    """The disk that fitted audio and sessions are made on is full, or cannot be written."""

    public = "There is no room on the service's disk for this audio."
    says = "no room for fitted audio: {reason}"
    reason: str


class KeptFile:
    """A fitted file that stays readable while somebody holds this, whether it is still kept or not.

    `tag` is one of these very bytes: made again, a file has another, as the same audio may be encoded otherwise.
    """

    def __init__(self, name: str, file: BinaryIO) -> None:
        self._file = file
        found = os.fstat(file.fileno())
        self.size = found.st_size
        self.tag = f'"{hashlib.sha256(f"{name} {found.st_mtime_ns} {found.st_ino}".encode()).hexdigest()[:32]}"'

    def __del__(self) -> None:
        self._file.close()

    async def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to, not with, `end`, piece by piece."""
        for at in range(start, end, READ_BYTES):
            yield await asyncio.to_thread(os.pread, self._file.fileno(), min(READ_BYTES, end - at), at)


class FittedFiles:
    """Files by the recording's SHA-256 and what was ordered, in one folder. Writing is atomic; beyond `most_bytes` the
    ones that nobody asked for longest go."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes

    async def get(self, sha256: str, order: Order) -> KeptFile | None:
        return await asyncio.to_thread(self._get, _name(sha256, order))

    async def make(self, sha256: str, order: Order, write: Callable[[BinaryIO], Awaitable[object]]) -> KeptFile:
        """Have a file written, and keep it. What is not written whole leaves nothing behind.

        Raises:
            NoRoom: and whatever `write` raises that is no OSError.
        """
        try:
            making = await asyncio.to_thread(self._begin)
            try:
                await write(making)
                return await asyncio.to_thread(self._keep, making, _name(sha256, order))
            except BaseException:
                making.close()
                with suppress(FileNotFoundError):
                    os.unlink(making.name)
                raise
        except OSError as error:
            log.error("fitted audio cannot be kept: %s", error)
            raise NoRoom(str(error)) from error

    async def forget(self, sha256: str) -> None:
        """Drop all that was made of a recording."""
        await asyncio.to_thread(self._forget, sha256)

    def _get(self, name: str) -> KeptFile | None:
        path = self._folder / name
        try:
            kept = KeptFile(name, path.open("rb"))
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # its last use; a file system may not note it
        except FileNotFoundError:
            return None
        return kept

    def _begin(self) -> BinaryIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        return tempfile.NamedTemporaryFile(dir=self._folder, prefix=MAKING, delete=False)  # type: ignore[return-value]

    def _keep(self, making: BinaryIO, name: str) -> KeptFile:
        making.flush()
        os.replace(making.name, self._folder / name)
        kept = KeptFile(name, making)
        self._shrink()
        return kept

    def _shrink(self) -> None:
        found, now = [], time.time()
        for entry in os.scandir(self._folder):
            with suppress(FileNotFoundError):
                stat = entry.stat()
                if not entry.name.startswith(MAKING) or stat.st_mtime < now - MAKING_S:
                    found.append((max(stat.st_atime_ns, stat.st_mtime_ns), stat.st_size, entry.path))
        left = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if left <= self._most_bytes:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            left -= size

    def _forget(self, sha256: str) -> None:
        for path in self._folder.glob(f"{sha256}-*"):
            path.unlink(missing_ok=True)


def _name(sha256: str, order: Order) -> str:
    text = json.dumps([SOUND, order.as_json()], sort_keys=True)
    return f"{sha256}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.{order.format}"
