"""Is it up, is it ready, how is it doing."""

from fastapi import APIRouter, Depends, Response

from service.api.access import Guard, GuardedRoute, TheBackend, limit_by_address
from service.api.operating import ReadyOut

router = APIRouter(tags=["health"], route_class=GuardedRoute)


@router.get("/livez")
async def livez() -> dict[str, str]:
    """The process answers. Touches nothing else."""
    return {"status": "alive"}


@router.get(
    "/readyz",
    dependencies=[Depends(limit_by_address)],
    responses={503: {"model": ReadyOut, "description": "Not yet: starting, or rebuilding"}},
)
async def readyz(services: TheBackend, response: Response) -> ReadyOut:
    """Queries are answered: 200; not yet: 503. Says by which model, from which index, and what waits."""
    report = await services.readiness()
    if report.status != "ready":
        response.status_code = 503
        response.headers["Retry-After"] = "2"
    return report


@router.get("/metrics", dependencies=[Depends(Guard("read"))], response_class=Response)
async def metrics(services: TheBackend) -> Response:
    """Prometheus text format: requests, stages of retrieval, queue, workers, catalog, index."""
    return Response(await services.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")
