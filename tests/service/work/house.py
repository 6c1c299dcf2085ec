"""A data folder with all that a worker needs, and what tests put into it."""

import hashlib
import io
from collections.abc import Awaitable, Callable

import numpy as np
from numpy.typing import NDArray

from indexer import Catalog, ClipFacts, StemMetadata, Upload
from model.audio import SAMPLE_RATE, Windows
from service.settings import Settings
from service.work.blobs import Blobs
from service.work.queue import Queue
from service.work.worker import Worker
from tests.installation import encode
from tests.waiting import SOON_S

STEM_S = 1.2
POISON = 0.875  # a peak that a test's worker dies of; exact in 16 bits
Start = Callable[[], Awaitable[Worker]]


def noise(seed: int, seconds: float = STEM_S, peak: float = 0.5) -> NDArray[np.float32]:
    waveform = np.random.default_rng(seed).uniform(-1, 1, int(seconds * SAMPLE_RATE)).astype(np.float32)
    return (waveform * np.float32(peak / np.abs(waveform).max())).astype(np.float32)


def wav(waveform: NDArray[np.float32]) -> bytes:
    return encode(waveform, "WAV", subtype="FLOAT")


class House:
    """A data folder with all that a worker needs, and its clients."""

    def __init__(self, settings: Settings, catalog: Catalog, blobs: Blobs, queue: Queue, fingerprint: str) -> None:
        self.settings, self.catalog, self.blobs, self.queue = settings, catalog, blobs, queue
        self.fingerprint = fingerprint

    async def upload(self, data: bytes, track: str | None = None) -> str:
        """What POST /stems does after its checks."""
        sha256 = hashlib.sha256(data).hexdigest()
        await self.blobs.put(sha256, io.BytesIO(data))
        facts = ClipFacts("wav", STEM_S, SAMPLE_RATE, 1)
        _, (stem_id,) = await self.catalog.add([Upload(sha256, "stem.wav", StemMetadata(track=track), facts)])
        return stem_id

    async def submit(self, *stems: bytes, track: str | None = None) -> list[str]:
        ids = [await self.upload(data, track) for data in stems]
        for stem_id in ids:
            await self.queue.submit_upload(stem_id, self.fingerprint)
        return ids

    async def embed(
        self, waveform: NDArray[np.float32], laid: Windows | None = None, model: str | None = None
    ) -> NDArray[np.complex64]:
        """What POST /retrieve asks of a worker: of some windows, or of one, as long as the waveform."""
        laid = Windows.in_clock_time(np.zeros(1, np.int64), len(waveform)) if laid is None else laid
        return await self.queue.embed(model or self.fingerprint, waveform, laid, SOON_S)

    async def settled(self) -> bool:
        return (await self.catalog.counts())["queued"] == 0 and (await self.queue.depths())["uploads"] == 0

    async def states(self, ids: list[str]) -> list[str]:
        return [(await self.catalog.stem(stem_id)).state for stem_id in ids]
