"""Uploads into the catalog: checked, kept, recorded, queued; and the sweep that lets nothing be forgotten."""

import asyncio
import logging
import re
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fastapi import UploadFile
from numpy.typing import NDArray

from indexer import (
    Catalog,
    CatalogUnavailable,
    Charge,
    ClipFacts,
    Job,
    Quota,
    QuotaExceeded,
    Rejected,
    StemMetadata,
    Upload,
)
from model.audio import AudioError, Clip
from service.api.keys import Caller
from service.settings import Settings
from service.text import LONGEST, shown
from service.work.blobs import Blobs, BlobStoreUnavailable, sha256_of
from service.work.jobs import QueueError
from service.work.queue import Queue
from service.work.streams import QueueFull
from service.work.uploads import UPLOAD_NICE, Decoder
from service.work.worker import Describe

log = logging.getLogger("phalar.ingest")
COPY_BYTES = 1 << 20
# Of how many waiting stems, and how long ones, the waveform goes to the worker with the job: 64 MB for stems of 20 s.
HANDED_OVER, HANDED_OVER_S = 50, 60.0
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")


@asynccontextmanager
async def on_disk(upload: UploadFile) -> AsyncIterator[Path]:
    """A file with the upload's bytes, for as long as the context lasts. Raises BlobStoreUnavailable: no room for it."""
    with tempfile.NamedTemporaryFile(prefix="phalar-upload-") as file:
        try:
            while piece := await upload.read(COPY_BYTES):
                await asyncio.to_thread(file.write, piece)
            file.flush()
        except OSError as error:
            raise BlobStoreUnavailable(str(error)) from error
        yield Path(file.name)


async def decode_upload(decoder: Decoder, upload: UploadFile, *, nice: int = 0) -> Clip:
    """Decode an upload, a small one without touching a disk. Raises BlobStoreUnavailable, AudioError."""
    if upload.size is not None and upload.size <= COPY_BYTES:
        return await decoder.decode(await upload.read(), nice=nice)
    async with on_disk(upload) as path:
        return await decoder.decode(path, nice=nice)


@dataclass
class Ingest:
    """Puts stems in and takes them out."""

    settings: Settings
    catalog: Catalog
    blobs: Blobs
    queue: Queue
    decoder: Decoder
    describe: Describe  # how a refused file is shown to whoever asks for the job

    def __post_init__(self) -> None:
        self._checks = asyncio.Semaphore(self.settings.decoders)

    async def accept(self, files: Sequence[tuple[UploadFile, StemMetadata]], caller: Caller) -> Job:
        """Check and keep some files, and have them embedded. From the moment this returns, none of them can be lost.

        Each file is decoded here once, so that what cannot be used is refused at once and by name.

        Raises:
            QueueFull: as many stems wait as may; try again later.
            QuotaExceeded: the caller, or everybody together, would hold more than they may; nothing was kept.
            AudioError: there is one file, and it cannot be used.
        """
        waiting = (await self.catalog.counts())["queued"]
        limit = self.settings.max_queued_uploads
        if waiting + len(files) > limit:
            raise QueueFull("uploads", depth=waiting, limit=limit, retry_after_s=10.0)
        digests = [await asyncio.to_thread(sha256_of, file.file) for file, _ in files]
        sizes = {sha256: file.size or 0 for sha256, (file, _) in zip(digests, files, strict=True)}
        charge = self._charge(caller, sizes)
        await self.catalog.refuse_if_over(charge)
        clips = await asyncio.gather(*(self._check(file) for file, _ in files))
        if len(files) == 1 and isinstance(clips[0], AudioError):
            raise clips[0]
        # No other process may change these bytes or their stems: a delete would take the bytes that this upload found.
        async with self.catalog.alone(*digests):
            records: list[Upload | Rejected] = []
            stored: list[str] = []
            for (file, said), clip, sha256 in zip(files, clips, digests, strict=True):
                name = _shown_name(file)
                if isinstance(clip, AudioError):
                    records.append(Rejected(name, self.describe(clip)))
                    continue
                await asyncio.to_thread(file.file.seek, 0)
                if await self.blobs.put(sha256, file.file):
                    stored.append(sha256)
                facts = ClipFacts(clip.format, clip.duration_s, clip.sample_rate, clip.channels, clip.warnings)
                records.append(Upload(sha256, name, said, facts))
            try:
                job, queued = await self.catalog.add(records, charge)
            except QuotaExceeded:  # another upload took the room while this one was decoded
                await self._forget(stored)
                raise
        alias = await self.catalog.alias()
        if alias is not None:  # before the first index no model is known; the sweep queues them once it is
            few = waiting + len(files) <= HANDED_OVER
            waveforms = {
                item.stem_id: clip.waveform
                for item, clip in zip(job.items, clips, strict=True)
                if few and item.stem_id and isinstance(clip, Clip) and clip.duration_s <= HANDED_OVER_S
            }
            await self._enqueue(queued, alias.fingerprint, waveforms)
        return job

    async def delete(self, stem_id: str) -> None:
        """Take a stem out with its audio. Raises StemNotFound."""
        stem = await self.catalog.stem(stem_id)
        async with self.catalog.alone(stem.sha256):
            try:
                await self.catalog.delete(stem_id)
            except CatalogUnavailable as error:
                if not error.full:
                    raise
                # On a full disk even a deletion finds no room, until the audio that is to go has made it.
                await self.blobs.delete(stem.sha256)
                await self.catalog.delete(stem_id)
            await self._forget([stem.sha256])

    async def sweep(self) -> None:
        """Queue again every stem that waits in the catalog and is not in the queue: Redis was flushed, or was away when
        the upload was acknowledged."""
        waiting = await self.catalog.queued(older_than_s=self.settings.sweep_s)
        alias = await self.catalog.alias()
        if waiting and alias is not None:
            known = await self.queue.outstanding_uploads()
            forgotten = [stem_id for stem_id in waiting if stem_id not in known]
            if forgotten:
                log.info("queueing %d stems again that the queue did not know", len(forgotten))
            await self._enqueue(forgotten, alias.fingerprint)

    def _charge(self, caller: Caller, sizes: dict[str, int]) -> Charge:
        chosen = self.settings
        return Charge(
            owner=caller.owner or "anybody",
            sizes=sizes,
            own=Quota(chosen.quota_key_stems, chosen.quota_key_bytes),
            overall=Quota(chosen.quota_stems, chosen.quota_bytes),
        )

    async def _forget(self, digests: Sequence[str]) -> None:
        """Drop the bytes that no stem has; their locks are held."""
        for sha256 in digests:
            if not await self.catalog.holds(sha256):
                await self.blobs.delete(sha256)

    async def _check(self, file: UploadFile) -> Clip | AudioError:
        try:
            async with self._checks:
                return await decode_upload(self.decoder, file, nice=UPLOAD_NICE)
        except AudioError as error:
            return error

    async def _enqueue(
        self, stem_ids: Sequence[str], fingerprint: str, waveforms: Mapping[str, NDArray[np.float32]] | None = None
    ) -> None:
        try:
            for stem_id in stem_ids:
                await self.queue.submit_upload(stem_id, fingerprint, (waveforms or {}).get(stem_id))
        except QueueError as error:
            log.warning("the sweep will queue what this upload could not: %s", error)


def _shown_name(file: UploadFile) -> str:
    """The last part of the name that the client sent; it is shown, and never used as a path."""
    name = file.filename or ""
    if _WINDOWS_PATH.match(name):
        name = name.replace("\\", "/")
    return shown(name.rsplit("/", 1)[-1])[:LONGEST] or "unnamed"
