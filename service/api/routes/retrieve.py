"""Retrieval: a partial mix in, the stems that fit it out."""

from typing import Annotated

from fastapi import APIRouter, Form, Request

from service.api.access import GuardedRoute, Reader, TheBackend
from service.api.keeping import over
from service.api.routes.problems import problems
from service.api.schemas import RetrieveIn, RetrieveOut
from service.api.waiting import while_client_waits

router = APIRouter(tags=["retrieval"], route_class=GuardedRoute)
MOST_FIELDS = 2**13  # each list of a query as long as it may be, and all else


@router.post("/retrieve", responses=problems(404, 409, 415, 422), form_limits={"max_fields": MOST_FIELDS})
async def retrieve(
    services: TheBackend,
    caller: Reader,
    request: Request,
    wanted: Annotated[RetrieveIn, Form(media_type="multipart/form-data")],
) -> RetrieveOut:
    """Find the stems that fit a partial mix in harmony and in time, best first, each with its place."""
    if wanted.saved is not None:
        wanted = over(wanted, await services.catalog.saved_search(caller.account, wanted.saved))
    return await while_client_waits(request, services.retrieval.answer(wanted, caller))
