"""Work shared by processes, spawned: a child forked from one that runs torch's threads may wait forever."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import starmap
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

from model.errors import Told
from model.training.console import err

Result = TypeVar("Result")


class ProcessDied(Told):
    """One of the processes of `map_in_processes` was killed."""

    says = "one of {jobs} processes was killed, perhaps since memory was short: try fewer with --jobs"
    jobs: int


class FolderInUse(Told):
    """Another process trains in this folder."""

    says = "another training runs in {folder}: choose another folder, or wait for its end"
    folder: Path


def map_in_processes(function: Callable[..., Result], *arguments: Iterable[Any], jobs: int) -> Iterator[Result]:
    """`map`, in this process for one job, and in as many new ones for more; results in order.

    Args:
        function: of a module, so that another process finds it.
        arguments: one iterable for each of its arguments, as `map` takes them.
        jobs: processes, at least 1; they end with this one, however it ends.

    Raises:
        ProcessDied: one of them was killed.
    """
    each = list(zip(*arguments, strict=False))  # one of them may repeat for ever
    jobs = min(jobs, len(each))
    if jobs <= 1:
        yield from starmap(function, each)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), _end_with_parent) as pool:
        try:
            yield from pool.map(function, *zip(*each, strict=True))
        except BrokenProcessPool as error:
            raise ProcessDied(jobs) from error


def _end_with_parent() -> None:
    """A killed parent tells its processes nothing: they would wait for work for ever."""

    def watch() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def alone_in(folder: Path, *, waits: bool = True) -> Iterator[None]:
    """A block that one process at a time runs for a folder, which is made where it is missing.

    The kernel lets go of the lock when its holder dies. On a file system without locks the block just runs.

    Raises:
        FolderInUse: another process holds it, and this one does not wait.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waits:
                raise FolderInUse(folder) from None
            err.print(f"waiting for another process that fills {folder}", markup=False, highlight=False, soft_wrap=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # no locks here
        yield
