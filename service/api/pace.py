"""The event loop's time by turns: where it is short, an address that took more than its share of it waits.

Every request is parsed and answered in one loop, so whoever sent the most would have the most of it: a flood of small
requests, each refused at once, or forms of a thousand heads.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any

BUSY = 0.1  # of the loop's time; while all together take less, nobody waits
LATELY_S = 1.0  # what was taken fades away with this time constant
FORGET_S = 10.0  # after about so long, an address that took nothing is nobody's neighbour any more
REQUEST_S = 0.0003  # what the server takes for each request before and after the application


class Pace:
    """Who took how much of the loop's time lately. In one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._taken: dict[str, float] = {}  # seconds, in which one of now counts e times one of LATELY_S ago
        self._total = 0.0
        self._lines: dict[str, asyncio.Lock] = {}

    def charge(self, who: str, seconds: float) -> None:
        """An address has taken so much of the loop's time."""
        taken = seconds * self._weight()
        self._taken[who] = self._taken.get(who, 0.0) + taken
        self._total += taken

    async def turn(self, who: str) -> None:
        """Wait until it is this address's turn; its requests go on in the order in which they came."""
        if self.wait_s(who):
            async with self._lines.setdefault(who, asyncio.Lock()):
                while wait_s := self.wait_s(who):  # noqa: ASYNC110 - it is time that changes
                    await asyncio.sleep(wait_s)

    def wait_s(self, who: str) -> float:
        """How long until it is worth asking again whether an address may go on; 0: it may."""
        busy = self._total / self._weight() / (BUSY * LATELY_S)
        greedy = len(self._taken) > 1 and self._taken.get(who, 0.0) > self._total / len(self._taken)
        return LATELY_S * math.log(busy) + 0.001 if greedy and busy > 1 else 0.0

    def _weight(self) -> float:
        age_s = self._clock() - self._since
        if age_s > FORGET_S:
            fade = math.exp(-age_s / LATELY_S)
            faded = {who: taken * fade for who, taken in self._taken.items()}
            self._taken = {who: taken for who, taken in faded.items() if taken > REQUEST_S / 1000}
            self._total = sum(self._taken.values())
            self._lines = {who: line for who, line in self._lines.items() if line.locked()}
            self._since, age_s = self._clock(), 0.0
        return math.exp(age_s / LATELY_S)


class Metered:
    """Awaits something, and tells how long each of its steps kept the loop."""

    def __init__(self, work: Coroutine[Any, Any, None], charge: Callable[[float], None]) -> None:
        self._work = work
        self._charge = charge

    def __await__(self) -> Generator[Any, Any, None]:
        go_on: Callable[[Any], Any] = self._work.send
        given: Any = None
        while True:
            begun = time.perf_counter()
            try:
                awaited = go_on(given)
            except StopIteration:
                return
            finally:
                self._charge(time.perf_counter() - begun)
            try:
                given, go_on = (yield awaited), self._work.send
            except BaseException as error:
                given, go_on = error, self._work.throw
