"""Workers in processes of their own, killed for real."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.api.errors import problem_type
from service.settings import Settings
from service.work.jobs import WorkersLost
from tests.service.work.house import POISON, House, noise, wav
from tests.waiting import SOON_S, eventually

pytestmark = pytest.mark.anyio

REPOSITORY = Path(__file__).parents[3]

# Imports once, then forks a worker for each line of settings, and says what became of it: importing torch is most of a
# worker's start. It has computed nothing before, so forking it is safe.
NURSERY = f"""
import asyncio, os, signal, sys
import numpy as np
from model.phalar import Phalar
from service.api.errors import problem
from service.settings import Settings
from service.work.process import run_worker
embed = Phalar.embed
def deadly(self, windows):
    if (np.abs(windows).max(axis=1) == {POISON}).any():
        os.kill(os.getpid(), signal.SIGKILL)
    print("batch", len(windows), flush=True)
    return embed(self, windows)
Phalar.embed = deadly
while line := sys.stdin.readline():
    pid = os.fork()
    if pid == 0:
        asyncio.run(run_worker(Settings.model_validate_json(line), problem, slot=0))
        os._exit(0)
    print("pid", pid, flush=True)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    """Worker processes, one at a time."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.pid = 0

    async def start(self, settings: Settings) -> None:
        self._process.stdin.write(settings.model_dump_json() + "\n")
        self._process.stdin.flush()
        self.pid = await self.hears("pid")

    async def dies(self, settings: Settings) -> None:
        """Start one that is killed by what it finds."""
        await self.start(settings)
        assert await self.hears("ended") == -signal.SIGKILL

    async def stops(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
        assert await self.hears("ended") == 0

    async def hears(self, word: str) -> int:
        """The number that comes after the next line's word that is this one."""
        while True:
            line = await asyncio.wait_for(asyncio.to_thread(self._process.stdout.readline), SOON_S)
            said, number = line.split()
            if said == word:
                return int(number)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        yield Nursery(process)


async def test_poison_job_ends_failed_and_its_neighbours_ready(house: House, nursery: Nursery) -> None:
    ids = await house.submit(*(wav(noise(seed, peak=POISON if seed == 2 else 0.5)) for seed in range(8)))
    for _ in range(2):
        await nursery.dies(house.settings)
    await nursery.start(house.settings)
    await eventually(house.settled)
    await nursery.stops()
    assert await house.states(ids) == ["ready", "ready", "failed", *["ready"] * 5]
    said = (await house.catalog.stem(ids[2])).problem
    assert (said["type"], said["detail"]) == (
        "/problems/killed-its-worker",
        "Embedding this stem killed its worker twice.",
    )


async def test_query_whose_workers_were_killed_is_told_that_it_may_come_again(house: House, nursery: Nursery) -> None:
    """Whether it was the mix that killed them, nobody knows; one that did would be refused again."""
    asking = asyncio.create_task(house.embed(noise(3, peak=POISON)))
    for _ in range(2):
        await nursery.dies(house.settings)
    await nursery.start(house.settings)
    with pytest.raises(WorkersLost) as lost:
        await asking
    assert (problem_type(lost.value).status, problem_type(lost.value).code) == (503, "workers-lost")
    await nursery.stops()


async def test_kill_in_the_middle_of_a_batch_loses_nothing(house: House, nursery: Nursery) -> None:
    ids = await house.submit(*(wav(noise(seed)) for seed in range(5)))
    await nursery.start(house.settings)
    await nursery.hears("batch")
    os.kill(nursery.pid, signal.SIGKILL)
    assert await nursery.hears("ended") == -signal.SIGKILL
    await nursery.start(house.settings)
    await eventually(house.settled)
    await nursery.stops()
    assert await house.states(ids) == ["ready"] * 5
    assert await house.queue.worker_stats() == {}
