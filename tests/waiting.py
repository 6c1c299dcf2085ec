"""Waiting for what a server, a worker or another process changes."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
SOON_S = 120.0  # on a busy machine; nothing waits it out on success


async def eventually(claim: Callable[[], T | Awaitable[T]], within_s: float = SOON_S) -> T:
    """What is claimed, once it is true."""
    deadline = time.monotonic() + within_s
    while True:
        found = claim()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"not so within {within_s:g} s"
        await asyncio.sleep(0.01)
