"""Shares: who goes next where there are more who wait than slots, and how much decoded audio there may be at a time."""

import asyncio
import time
import weakref
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import numpy as np
from numpy.typing import NDArray

LATELY_S = 60.0  # whoever has come within it is reckoned with


class Turns:
    """So many slots, by turns: of the callers that wait, the one served longest ago gets the next.

    While others have come lately, nobody holds more than half of the slots: there is one for whoever comes next. Where
    as many wait as may, the caller with the most in line loses its last one. In one event loop.
    """

    def __init__(self, slots: int, waiting: int | None = None, full: Callable[[int], Exception] | None = None) -> None:
        """`waiting`: how many may wait; `full` makes the error, given their number, that the one too many gets."""
        self._slots = slots
        self._most_waiting = waiting
        self._full = full
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the caller that is next stands first
        self._seen: dict[str, float] = {}  # the one seen longest ago stands first

    @asynccontextmanager
    async def turn(self, who: str) -> AsyncIterator[None]:
        """Hold a slot for as long as the context lasts."""
        await self._take(who)
        try:
            yield
        finally:
            self._give_back(who)

    def resize(self, slots: int) -> None:
        self._slots = slots
        self._hand_out()

    @property
    def share(self) -> int:
        """Slots that one caller may hold while others are about."""
        return (self._slots + 1) // 2

    def of(self, who: str) -> int:
        """Slots that a caller has or waits for."""
        return self._held[who] + len(self._waiting.get(who, ()))

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    async def _take(self, who: str) -> None:
        now = time.monotonic()
        self._seen.pop(who, None)
        self._seen[who] = now
        while now - self._seen[oldest := next(iter(self._seen))] > LATELY_S:
            del self._seen[oldest]
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(who, deque()).append(place)
        self._hand_out()
        if not place.done() and self._most_waiting is not None and self.waiting > self._most_waiting:
            self._turn_away()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self._give_back(who)
            raise
        finally:
            self._drop(who, place)

    def _give_back(self, who: str) -> None:
        self._held[who] -= 1
        if not self._held[who]:
            del self._held[who]
        self._hand_out()

    def _hand_out(self) -> None:
        while self._held.total() < self._slots:
            who = next((caller for caller in self._waiting if self._may_have(caller)), None)
            if who is None:
                return
            line = self._waiting.pop(who)
            place = line.popleft()
            if line:
                self._waiting[who] = line  # behind all others
            if not place.done():
                self._held[who] += 1
                place.set_result(None)

    def _may_have(self, who: str) -> bool:
        alone = all(caller == who for caller in self._seen)
        return alone or self._held[who] < self.share

    def _turn_away(self) -> None:
        """Make room: of places that were given up and not left yet; without one, of the last of the longest line."""
        assert self._full is not None
        if given_up := [(who, place) for who, line in self._waiting.items() for place in line if place.done()]:
            for who, place in given_up:
                self._drop(who, place)
            return
        who, line = max(self._waiting.items(), key=lambda waiting: len(waiting[1]))
        place = line.pop()
        if not line:  # no line is ever empty: a slot may be handed out before the one turned away has run
            del self._waiting[who]
        place.set_exception(self._full(self.waiting))

    def _drop(self, who: str, place: asyncio.Future[None]) -> None:
        line = self._waiting.get(who)
        if line is not None:
            with suppress(ValueError):
                line.remove(place)
            if not line:
                del self._waiting[who]


class Budget:
    """Decoded samples that this process may hold at a time. Whoever wants more waits, first come, first served."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, samples: int) -> int:
        """Wait until there is room; returns what to give back. One larger than the whole waits for all of it."""
        wanted = min(samples, self._samples)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, place))
        self._hand_out()
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                with suppress(ValueError):  # it was passed over
                    self._waiting.remove((wanted, place))
                self._hand_out()
            else:
                self.give_back(wanted)
            raise
        return wanted

    def give_back(self, samples: int) -> None:
        self._held -= samples
        self._hand_out()

    def until_forgotten(self, waveform: NDArray[np.float32], samples: int) -> None:
        """Give the samples back when nobody holds the waveform, or a view of it, any more."""
        weakref.finalize(waveform, _in_loop, asyncio.get_running_loop(), self.give_back, samples).atexit = False

    def _hand_out(self) -> None:
        while self._waiting and self._held + self._waiting[0][0] <= self._samples:
            samples, place = self._waiting.popleft()
            if not place.done():
                self._held += samples
                place.set_result(None)


class Manifold(Budget):
    """Of another budget everything is taken so many times: by whoever will hold as many waveforms of that length, and
    must not wait for the second one while others do the same."""

    def __init__(self, budget: Budget, times: int) -> None:
        self._budget = budget
        self._times = times

    async def take(self, samples: int) -> int:
        return await self._budget.take(self._times * samples)

    def give_back(self, samples: int) -> None:
        self._budget.give_back(samples)


def _in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[int], None], samples: int) -> None:
    with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
        loop.call_soon_threadsafe(call, samples)  # the last reference may have been a thread's
