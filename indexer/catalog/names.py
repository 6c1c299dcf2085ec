"""Names that one task of all processes on an SQLite file holds at a time."""

import asyncio
import fcntl
import hashlib
import os
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

ASK_AGAIN_S = 0.02
# An open file's own locks, which the kernel drops with it; a process's would go with any file that it closes. Linux.
_TAKE: int | None = getattr(fcntl, "F_OFD_SETLK", None)


class Names:
    """Each name is a byte of one empty file, which its holder has locked. On another system than Linux, names are held
    in this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def held(self, names: Iterable[str]) -> AsyncIterator[None]:
        """Wait for these names and hold them. They are taken in one order, so two who want the same do not block each
        other."""
        wanted = sorted(set(names))
        async with AsyncExitStack() as held:
            for name in wanted:
                await held.enter_async_context(self._locks.setdefault(name, asyncio.Lock()))
            if _TAKE is not None:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                held.callback(os.close, file)
                held.callback(_lock, file, fcntl.F_UNLCK, 0, 0)  # a forked child may have the file, too
                for name in wanted:
                    while not _lock(file, fcntl.F_WRLCK, number_of(name) & (2**62 - 1), 1):  # noqa: ASYNC110 - another process
                        await asyncio.sleep(ASK_AGAIN_S)
            yield


def number_of(name: str) -> int:
    """A name as a place in a file, or as PostgreSQL's advisory locks want it: 64 bits, signed."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)


def _lock(file: int, how: int, start: int, length: int) -> bool:
    """Lock or unlock bytes of a file (length 0: to its end); False where another open file holds them."""
    assert _TAKE is not None
    try:
        fcntl.fcntl(file, _TAKE, struct.pack("hhqqi4x", how, os.SEEK_SET, start, length, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True
