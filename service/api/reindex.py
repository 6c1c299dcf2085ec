"""The next index beside the live one: embed what its model lacks, build, measure, switch; and back again."""

import asyncio
import logging
import time
from dataclasses import dataclass

from indexer import (
    Alias,
    Catalog,
    CatalogUnavailable,
    Index,
    IndexType,
    IndexUnavailable,
    Job,
    LiveIndex,
    LiveMoved,
    Report,
)
from model.errors import Told
from service.api.operating import ReindexIn
from service.settings import Settings
from service.work.jobs import QueueError
from service.work.models import Models
from service.work.queue import Queue
from service.work.worker import Describe

log = logging.getLogger("phalar.reindex")
POLL_S = 0.5
# Deleted stems that a base still holds, from which it is worth building one without them.
MOST_TOMBSTONES = 10_000


class NoIndexTypes(Told):
    public = "Qdrant keeps this index; index types are those of FAISS."
    index_type: IndexType


class RecallTooLow(Told):
    public = "The new index finds {recall:.4f} of the exact best windows, {minimum:g} is required."
    recall: float
    minimum: float


@dataclass
class Reindexer:
    """Runs one reindex at a time, in one of the processes on this catalog, as a job that survives each of them."""

    settings: Settings
    catalog: Catalog
    queue: Queue
    models: Models
    live: LiveIndex
    describe: Describe  # how a failure is shown to whoever asks for the job
    _task: asyncio.Task[None] | None = None
    _ahead: str | None = None  # the unfinished job after which the configured model is followed
    _first: int | None = None  # generation of an empty installation, until it is built
    _sealed: tuple[int, int] = (0, 0)  # the generation that a new base was last begun beside, and how much had changed

    async def point_alias(self) -> None:
        """At start: give an empty installation its first generation, and follow a changed setting.

        A setting that names another model than before begins a reindex, after one that is unfinished; the old model
        answers until then.
        """
        wanted = self.models.configured_fingerprint
        alias = await self.catalog.alias()
        if alias is None:
            self._first = self._first or await self.catalog.new_generation(wanted)
            await self._build(self._first, wanted, None, None)
            await self.catalog.go_live(self._first, configured=wanted)
        elif alias.configured != wanted:
            log.info("the configured model has changed: every stem will be embedded again while the old one answers")
            asked = ReindexIn(checkpoint=self.models.file_name(wanted))
            job = await self.start(asked)
            self._ahead = job.id if job.request != asked.model_dump() else None
        else:
            self._ahead = None

    async def resume(self) -> None:
        """Go on with a reindex that was cut off; where another process is at it, wait in case it dies.

        After it a changed setting is followed.
        """
        if self._task is None or self._task.done():
            job = await self.catalog.unfinished_reindex()
            if job is not None:
                self._run_in_background(job)
            elif self._ahead is not None:
                await self.point_alias()

    async def start(self, wanted: ReindexIn) -> Job:
        """Begin a reindex, or return the one that runs. Raises UnknownCheckpoint, CheckpointError, NoIndexTypes."""
        if wanted.index_type is not None and self.settings.index_url is not None:
            raise NoIndexTypes(wanted.index_type)
        if wanted.checkpoint is not None:
            await asyncio.to_thread(self.models.named, wanted.checkpoint)
        job, new = await self.catalog.start_reindex(wanted.model_dump())
        if new:
            self._run_in_background(job)
        return job

    async def seal_if_due(self) -> None:
        """Build a new base once the fresh part is large and a quarter of the whole, or many stems are deleted.

        Where that failed it is tried again once twice as much has changed.
        """
        index = self.live.held
        if index is None:
            return
        generation, before = self._sealed
        changed = index.fresh_windows + len(index.tombstones)
        if index.generation == generation and changed < 2 * before:
            return
        grown = index.fresh_windows >= max(self.settings.seal_windows, index.windows / 4)
        if (grown or len(index.tombstones) >= MOST_TOMBSTONES) and await self.catalog.unfinished_reindex() is None:
            log.info(
                "a new base takes in %d fresh windows and leaves out %d stems",
                index.fresh_windows,
                len(index.tombstones),
            )
            self._sealed = (index.generation, changed)
            await self.start(_as_before(index))

    async def roll_back(self) -> Alias:
        """Let the previous generation answer again. Raises NothingToRollBackTo."""
        alias = await self.catalog.roll_back()
        await self.live.current()
        return alias

    async def close(self) -> None:
        """Stop; a job under way goes on at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _run_in_background(self, job: Job) -> None:
        self._task = asyncio.create_task(self._run(job))

    async def _run(self, job: Job) -> None:
        async with self.catalog.alone("reindex"):
            job = await self.catalog.job(job.id)  # whoever was at it has gone on with it meanwhile
            if job.state == "running":
                await self._run_alone(job)

    async def _run_alone(self, job: Job) -> None:
        try:
            result = await self._reindex(job)
        except CatalogUnavailable as error:
            log.warning("reindex %s goes on once the catalog can be reached: %s", job.id, error.reason)
        except Exception as error:
            log.exception("reindex %s failed", job.id)
            await self.catalog.finish_job(job.id, problem=self.describe(error))
            try:
                await self._tidy()
            except IndexUnavailable as unavailable:
                log.warning("what it has built stays until the next reindex: %s", unavailable)
        else:
            await self.catalog.finish_job(job.id, result=result)

    async def _reindex(self, job: Job) -> dict[str, object]:
        alias = await self.catalog.alias()
        assert alias is not None
        progress = job.progress or {}  # of a process that was killed meanwhile
        begun_beside, made = progress.get("instead_of", alias.generation), progress.get("generation")
        if alias.generation not in (begun_beside, made) or (made is not None and alias.previous == made):
            raise LiveMoved(alias.generation, begun_beside)  # rolled back, before the new one answered or after
        if alias.generation == made:  # that process was killed after the switch
            return await self._after_switch()
        name = job.request.get("checkpoint")
        fingerprint = alias.fingerprint
        if name is not None:
            fingerprint = (await asyncio.to_thread(self.models.named, name)).fingerprint
        await self._embed_lacking(job, fingerprint, alias.generation)
        if made is None or await self.catalog.fingerprint_of(made) != fingerprint:
            made = await self.catalog.new_generation(fingerprint)
        generation: int = made

        async def report(stems: int) -> None:
            told = {"stage": "building", "stems": stems, "generation": generation, "instead_of": alias.generation}
            await self.catalog.report_progress(job.id, told)

        await report(0)
        asked = job.request.get("rank"), job.request.get("index_type")
        index = await self._build(generation, fingerprint, *asked, report)
        recall = index.manifest.recall
        if recall is not None and recall.rescored < self.settings.minimum_recall:
            raise RecallTooLow(recall.rescored, self.settings.minimum_recall)
        await self.live.prepare(index)
        configured = self.models.configured_fingerprint
        if job.id == self._ahead and fingerprint != configured:
            configured = alias.configured
        while not await self.catalog.go_live(generation, configured, instead_of=alias.generation):
            await self._embed_lacking(job, fingerprint, alias.generation)
            await self.live.prepare(index)
        return await self._after_switch()

    async def _after_switch(self) -> dict[str, object]:
        """Let the new generation answer here, and forget what no rollback needs."""
        await self.live.open()
        await self._forget_models()
        await self._tidy()
        index = self.live.held
        assert index is not None
        manifest = index.manifest
        recall = manifest.recall
        return {
            "generation": manifest.generation,
            "fingerprint": manifest.fingerprint,
            "stems": manifest.stems,
            "windows": manifest.windows,
            "rank": manifest.rank,
            "bound": manifest.bound,
            "index_type": manifest.index_type,
            "reason": manifest.reason,
            "recall": recall and recall.value,
            "recall_rescored": recall and recall.rescored,
            "recall_deep": recall and recall.deep,
        }

    async def _embed_lacking(self, job: Job, fingerprint: str, instead_of: int) -> None:
        begun = time.monotonic()
        while left := await self.catalog.count_lacking(fingerprint):
            told = {"stage": "embedding", "stems_left": left, "instead_of": instead_of}
            await self.catalog.report_progress(job.id, told)
            try:
                known = await self.queue.outstanding_uploads()
                oldest = await self.catalog.lacking(fingerprint, self.settings.max_queued_uploads)
                unknown = [stem_id for stem_id in oldest if stem_id not in known]
                for stem_id in unknown[: max(0, self.settings.max_queued_uploads - len(known))]:
                    await self.queue.submit_upload(stem_id, fingerprint)
            except QueueError as error:
                log.warning("the reindex waits for the queue: %s", error)
            # To look takes a second with a million stems: it may keep the database busy half of the time at most.
            await asyncio.sleep(max(POLL_S, time.monotonic() - begun))
            begun = time.monotonic()

    async def _build(
        self,
        generation: int,
        fingerprint: str,
        rank: int | None,
        index_type: IndexType | None,
        report: Report | None = None,
    ) -> Index:
        fold = await asyncio.to_thread(self.models.fold, fingerprint, rank)
        return await self.live.build(generation, fingerprint, fold, index_type or self.settings.index_type, report)

    async def _forget_models(self) -> None:
        """Keep the embeddings that a rollback needs; after a failure those of its model stay for the next try."""
        alias = await self.catalog.alias()
        assert alias is not None
        await self.catalog.forget_models({alias.fingerprint, alias.previous_fingerprint or alias.fingerprint})

    async def _tidy(self) -> None:
        """Keep the generations that a rollback needs, and none that is older or did not go live."""
        alias = await self.catalog.alias()
        if alias is not None:
            await self.live.tidy({generation for generation in (alias.generation, alias.previous) if generation})


def _as_before(index: Index) -> ReindexIn:
    """What a person asked of the present index; the rest is chosen anew."""
    manifest = index.manifest
    rank = manifest.highest_rank if manifest.highest_rank < manifest.embedding_dim else None
    return ReindexIn.model_validate({"rank": rank, "index_type": manifest.asked_type})
