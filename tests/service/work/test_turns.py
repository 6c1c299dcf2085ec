"""Whose turn it is on a worker's device."""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from model.audio import Windows
from model.audio.analysis import analyse
from model.phalar import Phalar
from service.work import worker as worker_module
from service.work.queue import Share
from service.work.uploads import UPLOAD_NICE
from service.work.worker import LOOK_S
from tests.service.work.house import House, Start, noise, wav
from tests.waiting import SOON_S, eventually

pytestmark = pytest.mark.anyio


def slowed(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[int]:
    """Let each batch take so long; the lengths of the windows of each, as they come."""
    embed, lengths = Phalar.embed, list[int]()

    def slow(self: Phalar, windows: Any) -> torch.Tensor:
        lengths.append(windows.shape[1])
        time.sleep(seconds)
        return embed(self, windows[:1]).expand(len(windows), -1)

    monkeypatch.setattr(Phalar, "embed", slow)
    return lengths


async def test_who_asks_without_end_keeps_nobody_waiting_who_asks_now_and_then(
    house: House, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = slowed(monkeypatch, 0.02)
    greedy, modest, limit = 19_200, 17_000, house.settings.most_windows

    async def ask(who: str, length: int, batches: int) -> None:
        waveform, starts = noise(1, 3.0), np.arange(batches * limit, dtype=np.int64)
        laid = Windows.in_clock_time(starts, length)
        await house.queue.embed(house.fingerprint, waveform, laid, SOON_S, Share(who, 1))

    await start()
    asking = asyncio.create_task(ask("greedy", greedy, 100))
    await eventually(lambda: len(lengths) > 10)
    before = len(lengths)
    await ask("modest", modest, 10)
    assert lengths[before:].count(modest) == 10
    first = lengths.index(modest)
    assert lengths[first : first + 10] == [modest] * 10, "who had less goes first"
    assert not asking.done(), "the long one still waits"
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def test_a_query_that_nobody_waits_for_leaves_the_device_at_once(
    house: House, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = slowed(monkeypatch, 2 * LOOK_S)
    laid = Windows.in_clock_time(np.arange(100 * house.settings.most_windows, dtype=np.int64), 19_200)
    worker = await start()
    asking = asyncio.create_task(house.embed(noise(1, 3.0), laid))
    await eventually(lambda: len(lengths) > 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.gather(*house.queue._background)
    before = len(lengths)
    await eventually(lambda: not worker._queries)
    assert len(lengths) <= before + 2


async def test_uploads_are_analysed_behind_the_device(
    house: House, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    nices: dict[str, set[int]] = {"analyse": set(), "embed": set()}

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*given: Any) -> Any:
            nices[name].add(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            return call(*given)

        return noting

    monkeypatch.setattr(worker_module, "analyse", noted("analyse", analyse))
    monkeypatch.setattr(Phalar, "embed", noted("embed", Phalar.embed))
    await start()
    await house.submit(wav(noise(1)))
    await eventually(house.settled)
    assert nices == {"analyse": {UPLOAD_NICE}, "embed": {os.getpriority(os.PRIO_PROCESS, 0)}}


async def test_uploads_get_their_turn_among_queries_without_end(house: House, start: Start) -> None:
    await start()
    (stem_id,) = await house.submit(wav(noise(1)))
    waveform, starts = noise(2, 3.0), np.arange(40, dtype=np.int64) * 160

    async def ask_for_ever() -> None:
        while True:
            await house.embed(waveform, Windows.in_clock_time(starts, 19_200))

    asking = [asyncio.create_task(ask_for_ever()) for _ in range(3)]
    try:
        await eventually(house.settled)
        assert await house.states([stem_id]) == ["ready"]
        assert not any(task.done() for task in asking)
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
