"""A worker's device: what fits on it, what it says of itself, and how it is lost."""

import asyncio
from typing import Any

import numpy as np
import pytest
import torch

from model.phalar import Phalar
from service.api.errors import problem
from service.work import device as device_module
from service.work.decoding import DecodeLimits
from service.work.device import Device, DeviceLost
from service.work.queue import open_queue
from service.work.uploads import Decoder
from service.work.worker import Worker
from tests.service.work.house import House, Start, noise, wav
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


async def test_batch_is_halved_when_memory_does_not_suffice(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    embed, sizes = Phalar.embed, []

    def small_device(self: Phalar, windows: Any) -> torch.Tensor:
        sizes.append(len(windows))
        if len(windows) > 2:
            raise torch.OutOfMemoryError("the device is full")
        return embed(self, windows)

    monkeypatch.setattr(Phalar, "embed", small_device)
    device = Device(house.settings.model_copy(update={"batch_windows": 8}))
    windows = np.stack([noise(seed) for seed in range(5)])
    assert device.embed(house.fingerprint, windows).shape == (5, 512)
    assert device.batch_limit == 2
    assert sizes == [5, 2, 2, 1]


@pytest.mark.parametrize(
    "said",
    [
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: out of memory",
        "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_every_way_to_say_that_memory_is_short_is_understood(said: str) -> None:
    """In their libraries' own words: no card is at hand that could be short of memory."""
    assert device_module._out_of_memory(RuntimeError(said))
    assert not device_module._out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


async def test_a_device_that_answers_nothing_more_ends_the_worker_and_leaves_its_jobs_to_another(
    house: House, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's device without memory stands for a card after a sticky error: everything asked of it raises."""
    queue = open_queue(house.settings, "lost")
    async with Decoder(DecodeLimits.of(house.settings)) as decoder:
        worker = Worker(house.settings, house.catalog, house.blobs, queue, decoder, problem)
        running = asyncio.create_task(worker.run())
        await eventually(lambda: worker._device is not None)
        for model in worker._on_device._held.values():
            model.to("meta")
        ids = await house.submit(*(wav(noise(seed)) for seed in range(3)))
        with pytest.raises(DeviceLost, match="no longer answers"):
            await running
    await queue.aclose()
    assert await house.states(ids) == ["queued"] * 3, "none is marked failed"
    await start()
    await eventually(house.settled)
    assert await house.states(ids) == ["ready"] * 3


async def test_a_worker_says_what_it_embeds_on_and_how_fast(house: House, start: Start) -> None:
    await start()
    await house.submit(wav(noise(1)))
    await eventually(house.settled)

    async def reported() -> bool:
        (stats,) = (await house.queue.worker_stats()).values()
        return float(stats["embeddings_per_s"]) > 0

    await eventually(reported)
    (stats,) = (await house.queue.worker_stats()).values()
    assert str(stats["device"]).startswith("cpu")
    assert stats["driver"] == ""
    assert stats["batch_limit"] == house.settings.most_windows


async def test_stems_stay_queued_while_the_device_has_no_room_for_one_window(
    house: House, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("others have it all")

    async def let_go() -> bool:
        return (await house.queue.depths())["uploads"] == 0

    with monkeypatch.context() as others:
        others.setattr(Phalar, "embed", full)
        ids = await house.submit(wav(noise(1)), wav(noise(2)))
        await start()
        await eventually(let_go)
        assert await house.states(ids) == ["queued", "queued"]
    for stem_id in ids:  # as the sweep does
        await house.queue.submit_upload(stem_id, house.fingerprint)
    await eventually(house.settled)
    assert await house.states(ids) == ["ready", "ready"]
