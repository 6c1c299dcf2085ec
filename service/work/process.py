"""A worker's process."""

import asyncio
import signal

from indexer import Catalog
from service.settings import Settings
from service.work.blobs import Blobs
from service.work.decoding import DecodeLimits
from service.work.queue import consumer_name, open_queue
from service.work.uploads import Decoder
from service.work.worker import Describe, Worker


async def run_worker(settings: Settings, describe: Describe, slot: int | None = None) -> None:
    """A worker process from start to SIGTERM or SIGINT.

    `describe`: see Describe. `slot`: the worker's number under its supervisor; one that is started again in the same
    slot goes on with what its predecessor left.
    """
    catalog = await Catalog.open(settings.resolved_database_url)
    queue = open_queue(settings, consumer_name(slot, settings.data_folder))
    try:
        async with Decoder(DecodeLimits.of(settings)) as decoder:
            worker = Worker(settings, catalog, Blobs(settings.resolved_blob_url), queue, decoder, describe, slot or 0)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, worker.stop)
            await worker.run()
    finally:
        await queue.aclose()
        await catalog.close()
