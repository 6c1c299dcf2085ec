"""Why a stem fits a mix."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from service.api.access import GuardedRoute, Reader, TheBackend
from service.api.explaining import ExplainIn, ExplainOut, explained
from service.api.routes.problems import problems
from service.api.waiting import while_client_waits

router = APIRouter(tags=["retrieval"], route_class=GuardedRoute)


@router.get("/explain", responses=problems(404, 409, 415, 422))
async def explain(
    services: TheBackend, caller: Reader, request: Request, asked: Annotated[ExplainIn, Query()]
) -> ExplainOut:
    """Why a stem fits: its score in other keys, beside the beat, and without each octave and each beat of it.

    Of one window of the mix, where both are loudest in the minute that begins where the stem enters.
    """
    return await while_client_waits(request, explained(services.retrieval, asked, caller))
