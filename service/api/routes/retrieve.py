"""Retrieval: a partial mix in, the stems that fit it out."""

from typing import Annotated

from fastapi import APIRouter, Depends, Form

from service.api.access import GuardedRoute, TheBackend, require
from service.api.routes.problems import problems
from service.api.schemas import RetrieveIn, RetrieveOut

router = APIRouter(tags=["retrieval"], route_class=GuardedRoute)


@router.post("/retrieve", dependencies=[Depends(require("read"))], responses=problems(404, 409, 413, 415, 422, 503))
async def retrieve(
    services: TheBackend, wanted: Annotated[RetrieveIn, Form(media_type="multipart/form-data")]
) -> RetrieveOut:
    """Find the stems that fit a partial mix in harmony and in time, best first, each with its place."""
    return await services.retrieval.answer(wanted)
