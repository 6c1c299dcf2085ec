"""The lock on a data folder."""

import fcntl
import os
from pathlib import Path

from service.local.supervisor import ProcessError


class DataFolderInUse(ProcessError):
    """Another installation runs on this data folder."""

    def __init__(self, folder: Path, pid: int | None) -> None:
        who = f"process {pid}" if pid is not None else "another process"
        super().__init__(f"the data folder {folder} is in use by {who}; stop it, or choose another with PHALAR_DATA")
        self.folder = folder
        self.pid = pid


class DataFolderUnwritable(ProcessError):
    """Nothing can be written there."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"the data folder {folder} cannot be written: {reason}")


class DataFolderLock:
    """At most one installation on a data folder, by flock: the kernel lets go of it when its holder dies."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, or raise DataFolderInUse with the holder's pid, or DataFolderUnwritable."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                written = os.pread(descriptor, 32, 0).strip()
                os.close(descriptor)
                raise DataFolderInUse(self.path.parent, int(written) if written.isdigit() else None) from None
            # Between open and flock its last holder may have removed the file; then this lock guards nothing.
            if _same_file(descriptor, self.path):
                break
            os.close(descriptor)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        except OSError as error:  # the disk is full
            os.close(descriptor)
            raise DataFolderUnwritable(self.path.parent, error.strerror or str(error)) from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go, and leave no file behind."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "DataFolderLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
