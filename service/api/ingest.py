"""Uploads into the catalog: checked, kept, recorded, queued; and the sweep that lets nothing be forgotten."""

import asyncio
import logging
import re
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import UploadFile

from indexer import (
    Catalog,
    CatalogUnavailable,
    Charge,
    ClipFacts,
    Job,
    Quota,
    QuotaExceeded,
    Rejected,
    SaidMusic,
    Stem,
    StemMetadata,
    Upload,
)
from model.audio import AudioError
from model.audio.said import Said, exact_tempo, joined, key_of_text, key_parts, said_by, said_of_name
from model.errors import Told
from service.api.counts import Counts
from service.api.keeping import ChangedOut, ChangeIn
from service.api.keys import Caller
from service.settings import Settings
from service.text import LONGEST, shown
from service.work.blobs import Blobs, BlobStoreUnavailable, sha256_of
from service.work.fitted import FittedFiles
from service.work.jobs import QueueError
from service.work.queue import Queue
from service.work.streams import QueueFull
from service.work.turns import Budget, Turns
from service.work.uploads import UPLOAD_NICE, Decoder
from service.work.worker import Describe

log = logging.getLogger("phalar.ingest")
COPY_BYTES = 1 << 20
DAY_S = 24 * 3600.0
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


@asynccontextmanager
async def for_decoder(upload: UploadFile) -> AsyncIterator[Path | bytes]:
    """An upload as a decoder takes it, a small one without touching a disk. Raises BlobStoreUnavailable."""
    if upload.size is not None and upload.size <= COPY_BYTES:
        yield await upload.read()
    else:
        async with on_disk(upload) as path:
            yield path


class NothingChosen(Told):
    """Many stems are to be changed, and neither a filter nor `all` says which; or both do."""

    public = "Say which stems: by filters, or by all=true where every one is meant, but not both."


Shown = tuple[ClipFacts, Said]
"""What decoding a file shows, and what its tags and chunks say of its music."""


@dataclass(frozen=True)
class Checked:
    """The files of a request, with their SHA-256, and what is known of those bytes that no stem had."""

    files: Sequence[tuple[UploadFile, StemMetadata]]
    digests: Sequence[str]
    charge: Charge
    who: str
    found: dict[str, Shown | AudioError]


@dataclass
class Ingest:
    """Puts stems in and takes them out."""

    settings: Settings
    catalog: Catalog
    blobs: Blobs
    queue: Queue
    decoder: Decoder
    budget: Budget
    counts: Counts
    fitted: FittedFiles
    describe: Describe  # how a refused file is shown to whoever asks for the job

    def __post_init__(self) -> None:
        self._turns = Turns(self.settings.decoders)

    async def check(self, files: Sequence[tuple[UploadFile, StemMetadata]], caller: Caller) -> Checked:
        """Decode each file once, so that what cannot be used is refused at once and by name. It may be cancelled.

        Equal bytes are decoded once, those of a stem never; waveforms are not kept here, however many files there are.

        Raises:
            QueueFull: as many stems wait as may; try again later.
            QuotaExceeded: the caller, or everybody together, would hold more than they may.
            AudioError: there is one file, and it cannot be used.
        """
        waiting = await self.catalog.waiting()
        limit = self.settings.max_queued_uploads
        if waiting + len(files) > limit:
            raise QueueFull("uploads", depth=waiting, limit=limit, retry_after_s=10.0)
        digests = await asyncio.to_thread(lambda: [sha256_of(file.file) for file, _ in files])
        sizes = {sha256: file.size or 0 for sha256, (file, _) in zip(digests, files, strict=True)}
        charge = self._charge(caller, sizes)
        known = await self.catalog.known(sizes)
        await self.catalog.refuse_if_over(charge, known)
        new = {sha256: file for sha256, (file, _) in zip(digests, files, strict=True) if sha256 not in known}
        few = waiting + len(files) <= HANDED_OVER
        try:
            async with asyncio.TaskGroup() as checking:  # what goes wrong with one ends the others
                checks = [
                    checking.create_task(self._check(sha256, file, caller.who, few, one_of_many=len(new) > 1))
                    for sha256, file in new.items()
                ]
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
        found = [check.result() for check in checks]
        if len(files) == 1 and found and isinstance(found[0], AudioError):
            raise found[0]
        return Checked(files, digests, charge, caller.who, dict(zip(new, found, strict=True)))

    async def keep(self, checked: Checked) -> Job:
        """Keep some files, and have them embedded. From the moment this returns, none of them can be lost.

        Raises:
            QuotaExceeded: another upload took the room; nothing was kept.
        """
        found = checked.found
        # No other process may change these bytes or their stems: a delete would take the bytes that this upload found.
        async with self.catalog.alone(*checked.digests):
            known = await self.catalog.known(checked.digests)
            records: list[Upload | Rejected] = []
            stored: list[str] = []
            for (file, said), sha256 in zip(checked.files, checked.digests, strict=True):
                if sha256 not in known and sha256 not in found:  # its stem was deleted meanwhile
                    found[sha256] = await self._check(
                        sha256, file, checked.who, False, one_of_many=len(checked.files) > 1
                    )
                shows, name = found.get(sha256), _shown_name(file)
                if isinstance(shows, AudioError):
                    records.append(Rejected(name, self.describe(shows)))
                    continue
                await asyncio.to_thread(file.file.seek, 0)
                if await self.blobs.put(sha256, file.file):
                    stored.append(sha256)
                if shows is None:
                    records.append(Upload(sha256, name, said, None))
                else:
                    facts, of_file = shows
                    records.append(Upload(sha256, name, said, facts, music_of(said, of_file, name, facts.duration_s)))
            try:
                job, queued = await self.catalog.add(records, checked.charge)
            except QuotaExceeded:  # another upload took the room while this one was decoded
                await self._forget(stored)
                raise
        self.counts.forget()
        alias = await self.catalog.alias()
        if alias is not None:  # before the first index no model is known; the sweep queues them once it is
            await self._enqueue(queued, alias.fingerprint)
        return job

    async def change(self, stem_id: str, changed: Mapping[str, Any]) -> Stem:
        """Change what is said of a stem; where its beats may lie elsewhere then, it is embedded again.

        Raises StemNotFound.
        """
        stem = await self.catalog.change_metadata(stem_id, *exactly(await self.catalog.stem(stem_id), changed))
        if stem.state == "queued":
            await self._again([stem_id])
        return stem

    async def change_many(self, wanted: ChangeIn, changed: Mapping[str, Any]) -> ChangedOut:
        """Change what is said of every stem that passes the filters, or count them. Raises NothingChosen."""
        chosen = wanted.as_filter()
        if chosen.is_empty != wanted.all:
            raise NothingChosen
        count, until = await self.catalog.count_stems(chosen)
        done, again, after = 0, 0, None if wanted.dry_run or not changed else 0
        while after is not None:
            some, queued, after = await self.catalog.change_some(
                chosen, lambda stem: exactly(stem, changed), after, until
            )
            await self._again(queued)
            done, again = done + some, again + len(queued)
        return ChangedOut(stems=count if wanted.dry_run else done, queued=again, dry_run=wanted.dry_run)

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
            self.counts.forget()
            await self._forget([stem.sha256])

    async def forget_jobs(self) -> None:
        """Forget the jobs that were finished long ago."""
        forgotten = await self.catalog.forget_jobs(self.settings.job_days * DAY_S)
        if forgotten:
            log.info("%d old jobs were forgotten", forgotten)

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
            owner=caller.account,
            sizes=sizes,
            own=Quota(chosen.quota_key_stems, chosen.quota_key_bytes),
            overall=Quota(chosen.quota_stems, chosen.quota_bytes),
        )

    async def _forget(self, digests: Sequence[str]) -> None:
        """Drop the bytes that no stem has; their locks are held."""
        for sha256 in digests:
            if not await self.catalog.holds(sha256):
                await self.blobs.delete(sha256)
                await self.fitted.forget(sha256)

    async def _check(
        self, sha256: str, file: UploadFile, who: str, hand_over: bool, *, one_of_many: bool = False
    ) -> Shown | AudioError:
        """What decoding a file shows; its waveform, if it is not long, goes ahead to the worker that will want it.

        A caller's many files step back behind searches; a single one does not, or others' many would keep it waiting.
        """
        keep_s = HANDED_OVER_S if hand_over else 0.0
        try:
            async with self._turns.turn(who):
                nice = UPLOAD_NICE if one_of_many or self._turns.of(who) > 1 else 0
                await asyncio.to_thread(file.file.seek, 0)
                async with for_decoder(file) as audio:
                    facts, said, waveform = await self.decoder.look(audio, keep_s=keep_s, nice=nice, budget=self.budget)
        except AudioError as error:
            return error.with_traceback(None)  # whose frames hold what was decoded
        if waveform is not None:
            try:
                await self.queue.hand_over(sha256, waveform)
            except QueueError as error:
                log.warning("a worker will decode what could not be handed over: %s", error)
        return facts, said

    async def _again(self, stem_ids: Sequence[str]) -> None:
        """Have stems embedded that were ready before."""
        alias = await self.catalog.alias()
        if stem_ids and alias is not None:
            self.counts.forget()
            await self._enqueue(stem_ids, alias.fingerprint)

    async def _enqueue(self, stem_ids: Sequence[str], fingerprint: str) -> None:
        try:
            for stem_id in stem_ids:
                await self.queue.submit_upload(stem_id, fingerprint)
        except QueueError as error:
            log.warning("the sweep will queue what could not be queued now: %s", error)


def exactly(stem: Stem, changed: Mapping[str, Any]) -> tuple[Mapping[str, Any], float | None]:
    """What is changed of a stem, with the exact tempo where its length tells it, and then how many beats it has."""
    if changed.get("tempo_bpm") is None:
        return changed, None
    kind = changed.get("kind", None if stem.sources.get("kind") == "heard" else stem.kind)
    said = exact_tempo(stem.duration_s, said_by("said", Said(changed["tempo_bpm"], kind=kind)))
    return {**changed, "tempo_bpm": said.tempo_bpm}, said.beats


def music_of(metadata: StemMetadata, of_file: Said, name: str, duration_s: float) -> SaidMusic:
    """What is said of a clip's music: its metadata is believed before its file, and that before its name."""
    said = joined([_of_person(metadata), of_file, said_of_name(name)])
    exact = exact_tempo(duration_s, said)
    key = metadata.key or exact.key  # a person's is kept as it was written, whether it is a key or not
    sources = {fact: exact.sources[fact] for fact in ("tempo_bpm", "kind") if fact in exact.sources}
    if key is not None:
        sources["key"] = "said" if metadata.key else exact.sources["key"]
    beats = exact.beats if exact.tempo_bpm is not None else None
    return SaidMusic(exact.tempo_bpm, key, exact.kind, beats, sources, exact.warnings)


def _of_person(metadata: StemMetadata) -> Said:
    key, root = None, None
    with suppress(ValueError):  # what is no key contradicts none
        if parts := key_parts(metadata.key or ""):
            key, root = (key_of_text(metadata.key or ""), None) if parts[1] else (None, parts[0])
    return said_by("said", Said(metadata.tempo_bpm, key=key, root=root, kind=metadata.kind))


def _shown_name(file: UploadFile) -> str:
    """The last part of the name that the client sent; it is shown, and never used as a path."""
    name = file.filename or ""
    if _WINDOWS_PATH.match(name):
        name = name.replace("\\", "/")
    return shown(name.rsplit("/", 1)[-1])[:LONGEST] or "unnamed"
