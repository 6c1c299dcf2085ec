"""Jobs: how far is what I asked for?"""

from fastapi import APIRouter, Depends

from service.api.access import Guard, GuardedRoute, TheBackend
from service.api.routes.problems import problems
from service.api.schemas import JobOut

router = APIRouter(tags=["jobs"], route_class=GuardedRoute)


@router.get("/jobs/{job_id}", dependencies=[Depends(Guard("read"))], responses=problems(404))
async def get_job(services: TheBackend, job_id: str) -> JobOut:
    """One job and the state of each of its items."""
    return JobOut.of(await services.catalog.job(job_id))
