"""Administration: the next index, and back to the last one."""

from fastapi import APIRouter, Depends, Response

from service.api.access import Guard, GuardedRoute, TheBackend
from service.api.operating import ReindexIn, RollbackOut
from service.api.routes.problems import problems
from service.api.schemas import JobOut

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(Guard("admin"))], route_class=GuardedRoute)


@router.post("/reindex", status_code=202, responses=problems(422))
async def reindex(services: TheBackend, response: Response, wanted: ReindexIn | None = None) -> JobOut:
    """Build the next index beside the live one, measure it, and swap; queries go on meanwhile.

    With another checkpoint every stem is embedded again first. While one reindex runs, asking again returns its job.
    """
    job = await services.reindexer.start(wanted or ReindexIn())
    response.headers["Location"] = f"{services.settings.root_path}/jobs/{job.id}"
    return JobOut.of(job)


@router.post("/rollback", responses=problems(409))
async def rollback(services: TheBackend) -> RollbackOut:
    """Let the previous index answer again; calling it twice comes back."""
    alias = await services.reindexer.roll_back()
    assert alias.previous is not None
    return RollbackOut(generation=alias.generation, previous=alias.previous, fingerprint=alias.fingerprint)
