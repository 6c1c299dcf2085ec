"""Work shared by processes, spawned: a child forked from one that runs torch's threads may wait forever."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

Result = TypeVar("Result")


def map_in_processes(function: Callable[..., Result], *arguments: Iterable[Any], jobs: int) -> Iterator[Result]:
    """`map`, in this process for one job, and in as many new ones for more; results in order, as they are wanted.

    Args:
        function: of a module, so that another process finds it.
        arguments: one iterable for each of its arguments, as `map` takes them.
        jobs: processes, at least 1.
    """
    if jobs <= 1:
        yield from map(function, *arguments)
        return
    with ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, *arguments)
