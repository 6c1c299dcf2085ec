"""What tests of the queue share: jobs, and how a test takes and awaits them."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from redis.asyncio import Redis

from model.audio import Windows
from service.work.jobs import Poisoned, QueryJob, UploadJob
from service.work.queue import Queue
from tests.waiting import eventually

SOON_MS = 2000
CLAIM_AFTER_S = 0.5  # a busy machine must get a beat in between
MODEL = "f" * 64
WAVEFORM = np.sin(np.arange(32_000, dtype=np.float32))
WINDOWS = Windows(np.array([0, 640, 1280]), np.array([16_000, 15_000, 14_000]), frames=501, inner=14_000, semitones=2)
Open = Callable[..., Queue]


async def forget_everything(queue: Queue) -> None:
    """Delete all that is this queue's, at once, as a flush does."""
    await queue._redis.delete(*[key async for key in queue._redis.scan_iter(f"{queue._prefix}:*")])


async def submit(api: Queue, count: int) -> None:
    """Uploads s0, s1, ..."""
    for n in range(count):
        await api.submit_upload(f"s{n}", MODEL)


async def drain(worker: Queue) -> list[UploadJob | Poisoned]:
    """Take and finish uploads until none comes, as (job or its verdict)."""
    taken: list[UploadJob | Poisoned] = []
    while jobs := await worker.take(8, 0):
        for job in jobs:
            assert not isinstance(job, QueryJob)
            taken.append(job)
            await worker.done(job)
    return taken


async def take_query(worker: Queue) -> QueryJob:
    end = time.monotonic() + 10
    while not (jobs := await worker.take(1, SOON_MS, uploads=False)):
        assert time.monotonic() < end, "no query came"
    (job,) = jobs
    assert isinstance(job, QueryJob)
    return job


async def is_answered(asking: "asyncio.Task[np.ndarray]", worker: Queue, job: QueryJob) -> None:
    """Whoever asks gets what the worker replies."""
    answer = (np.arange(3 * 512) * (1 + 2j)).astype(np.complex64).reshape(3, 512)
    await worker.reply(job, answer)
    np.testing.assert_array_equal(await asking, answer)


async def give_up(*asking: "asyncio.Task[np.ndarray]") -> None:
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


async def query_waits(api: Queue) -> None:
    async def waits() -> bool:
        return (await api.depths())["queries"] > 0

    await eventually(waits)


async def query_goes(api: Queue) -> None:
    async def has_gone() -> bool:
        return (await api.depths())["queries"] == 0

    await eventually(has_gone)


async def deny_disk(redis: Redis, folder: Path) -> None:
    """Let a Valkey in a folder of its own find that it cannot write, until its setting `save` is taken back."""
    (folder / "dump.rdb").mkdir()  # no snapshot can be put where a folder is
    await redis.config_set("save", "3600 1")
    await redis.bgsave()

    async def found_out() -> bool:
        return (await redis.info("persistence"))["rdb_last_bgsave_status"] != "ok"

    await eventually(found_out)
