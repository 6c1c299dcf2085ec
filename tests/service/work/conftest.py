"""Queues of one prefix, and a worker with all that it needs."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from indexer import Catalog
from model.checkpoints import save_phalar
from model.phalar import Phalar, untrained_phalar
from service.api.errors import problem
from service.settings import Settings
from service.work.blobs import Blobs
from service.work.decoding import DecodeLimits
from service.work.queue import Queue, open_queue
from service.work.streams import connect
from service.work.uploads import Decoder
from service.work.worker import Worker
from tests import servers
from tests.service.work.house import House, Start
from tests.service.work.queues import CLAIM_AFTER_S, Open


@pytest.fixture
async def opened(redis_url: str) -> AsyncIterator[Open]:
    """Opens queues of one fresh prefix; opening a consumer's name again is its worker's restart."""
    prefix = uuid.uuid4().hex
    async with AsyncExitStack() as stack:

        def open_one(
            consumer: str | None = None, url: str = redis_url, ca: Path | None = None, **changed: float
        ) -> Queue:
            limits = {"max_uploads": 100, "max_queries": 4, "max_deliveries": 2, "claim_after_s": CLAIM_AFTER_S}
            queue = Queue(connect(url, ca), prefix, consumer=consumer, **(limits | changed))  # type: ignore[arg-type]
            stack.push_async_callback(queue.aclose)
            return queue

        yield open_one


@pytest.fixture(scope="module")
def phalar() -> Phalar:
    return untrained_phalar()


@pytest.fixture
async def house(tmp_path: Path, redis_url: str, phalar: Phalar) -> AsyncIterator[House]:
    weights = tmp_path / "untrained.safetensors"
    save_phalar(untrained_phalar(), weights, trained=False)
    settings = Settings(
        checkpoint=weights,
        data=tmp_path,
        database_url=servers.own_stores().get("PHALAR_DATABASE_URL"),
        redis_url=redis_url,
        redis_prefix=f"{tmp_path.name}-{uuid.uuid4().hex}",
        torch_threads=1,
        claim_after_s=5.0,
        window_s=1.2,
    )
    catalog = await Catalog.open(settings.resolved_database_url)
    queue = open_queue(settings)
    fingerprint = phalar.fingerprint
    generation = await catalog.new_generation(fingerprint)
    assert await catalog.go_live(generation, configured=fingerprint)
    yield House(settings, catalog, Blobs(settings.resolved_blob_url), queue, fingerprint)
    await queue.aclose()
    await catalog.close()


@pytest.fixture
async def start(house: House) -> AsyncIterator[Start]:
    """Starts a worker in this process; it is stopped at the end."""
    async with AsyncExitStack() as stack:

        async def start_one() -> Worker:
            queue = open_queue(house.settings, "here")
            stack.push_async_callback(queue.aclose)
            decoder = await stack.enter_async_context(Decoder(DecodeLimits.of(house.settings)))
            worker = Worker(house.settings, house.catalog, house.blobs, queue, decoder, problem)
            running = asyncio.create_task(worker.run())

            async def end() -> None:
                worker.stop()
                await running

            stack.push_async_callback(end)
            return worker

        yield start_one
