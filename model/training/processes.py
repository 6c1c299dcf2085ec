"""Work shared by processes, spawned: a child forked from one that runs torch's threads may wait forever."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import starmap
from multiprocessing import get_context
from typing import Any, TypeVar

Result = TypeVar("Result")


def map_in_processes(function: Callable[..., Result], *arguments: Iterable[Any], jobs: int) -> Iterator[Result]:
    """`map`, in this process for one job, and in as many new ones for more; results in order.

    Args:
        function: of a module, so that another process finds it.
        arguments: one iterable for each of its arguments, as `map` takes them.
        jobs: processes, at least 1.
    """
    each = list(zip(*arguments, strict=False))  # one of them may repeat for ever
    jobs = min(jobs, len(each))
    if jobs <= 1:
        yield from starmap(function, each)
        return
    with ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, *zip(*each, strict=True))
