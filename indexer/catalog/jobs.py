"""Jobs: an ingest with an item a file, or a reindex."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Row, and_, bindparam, delete, exists, insert, not_, or_, select, update

from indexer.catalog.database import OnDatabase, retried
from indexer.catalog.records import Job, JobItem, JobNotFound, Problem
from indexer.catalog.tables import job_items, jobs, stems


class Jobs(OnDatabase):
    """Work that outlives its request."""

    @retried
    async def job(self, job_id: str) -> Job:
        """One job with its items. Raises JobNotFound."""
        found = await self._database.rows(_JOB, id=job_id)
        if not found:
            raise JobNotFound(job_id)
        items = tuple(map(_item, await self._database.rows(_ITEMS, id=job_id)))
        job = Job(**found[0]._mapping, items=items)
        if job.kind == "ingest":
            waiting = any(item.state == "queued" for item in items)
            job = replace(job, state="running" if waiting else "done")
        return job

    @retried
    async def forget_jobs(self, older_than_s: float) -> int:
        """Forget the jobs of so long ago that are finished; returns how many."""
        before = time.time() - older_than_s
        waiting = exists().where(
            job_items.c.job_id == jobs.c.id, stems.c.row == job_items.c.stem_row, stems.c.state == "queued"
        )
        finished = or_(jobs.c.state != "running", and_(jobs.c.kind == "ingest", not_(waiting)))
        async with self._database.write() as sql:
            gone = await sql.execute(delete(jobs).where(jobs.c.created_at < before, finished))
        return int(gone.rowcount)

    async def _keep_count(self, job_id: str, refused: int, now: float) -> None:
        async with self._database.write() as sql:
            values = {"id": job_id, "kind": "ingest", "state": "done", "created_at": now, "finished_at": now}
            await sql.execute(insert(jobs).values(**values, request={}, result={"refused": refused}))

    @retried
    async def start_reindex(self, request: Mapping[str, Any]) -> tuple[Job, bool]:
        """A reindex job; if one is running already, that one. Returns the job and whether it is new."""
        async with self._database.write() as sql:
            running = (await sql.execute(_REINDEX)).scalar()
            job_id = running or secrets.token_hex(8)
            if running is None:
                await sql.execute(
                    insert(jobs).values(
                        id=job_id, kind="reindex", state="running", created_at=time.time(), request=dict(request)
                    )
                )
        return await self.job(job_id), running is None

    @retried
    async def unfinished_reindex(self) -> Job | None:
        """The reindex job that a restart found unfinished."""
        found = await self._database.rows(_REINDEX)
        return await self.job(found[0].id) if found else None

    @retried
    async def report_progress(self, job_id: str, progress: Mapping[str, Any]) -> None:
        async with self._database.write() as sql:
            await sql.execute(update(jobs).where(jobs.c.id == job_id).values(progress=dict(progress)))

    @retried
    async def finish_job(
        self, job_id: str, *, result: Mapping[str, Any] | None = None, problem: Problem | None = None
    ) -> None:
        """End a job: done with a result, or failed with a problem."""
        async with self._database.write() as sql:
            await sql.execute(
                update(jobs)
                .where(jobs.c.id == job_id)
                .values(
                    state="failed" if problem else "done",
                    finished_at=time.time(),
                    result=dict(result) if result else None,
                    problem=dict(problem) if problem else None,
                )
            )


_REINDEX = select(jobs.c.id).where(jobs.c.kind == "reindex", jobs.c.state == "running")
_JOB = select(jobs).where(jobs.c.id == bindparam("id"))
_ITEMS = (
    select(job_items, stems.c.id.label("stem_id"), stems.c.state, stems.c.problem.label("stem_problem"))
    .join(stems, stems.c.row == job_items.c.stem_row, isouter=True)
    .where(job_items.c.job_id == bindparam("id"))
    .order_by(job_items.c.position)
)


def _item(record: Row[Any]) -> JobItem:
    gone: Problem = {"type": "stem-deleted", "title": "The stem was deleted", "status": 410}
    if record.stem_row is None:
        return JobItem(record.file_name, None, "failed", False, record.problem)
    problem = gone if record.state == "deleted" else record.stem_problem
    return JobItem(record.file_name, record.stem_id, record.state, bool(record.created), problem)
