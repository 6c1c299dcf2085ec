"""Retrieval: a partial mix in, the stems that fit it out."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, File, Form, UploadFile

from indexer import StemFilter
from service.access import TheBackend, require
from service.errors import NoMix
from service.retrieval import Query
from service.routes.problems import problems
from service.schemas import RetrieveOut, ShortText

router = APIRouter(tags=["retrieval"])


def wanted_hits(
    instrument: Annotated[list[ShortText] | None, Form()] = None,
    tag: Annotated[list[ShortText] | None, Form(description="all of them must be there")] = None,
    track: Annotated[list[ShortText] | None, Form()] = None,
    collection: Annotated[list[ShortText] | None, Form()] = None,
    key: Annotated[list[ShortText] | None, Form()] = None,
    tempo_min: Annotated[float | None, Form(gt=0, allow_inf_nan=False)] = None,
    tempo_max: Annotated[float | None, Form(gt=0, allow_inf_nan=False)] = None,
    exclude: Annotated[list[ShortText] | None, Form(description="ids of stems not wanted", max_length=1000)] = None,
    exclude_track: Annotated[list[ShortText] | None, Form(max_length=1000)] = None,
) -> StemFilter:
    """The filters, from a form."""
    return StemFilter(
        instruments=tuple(instrument or ()),
        tags=tuple(tag or ()),
        tracks=tuple(track or ()),
        collections=tuple(collection or ()),
        keys=tuple(key or ()),
        tempo_min=tempo_min,
        tempo_max=tempo_max,
        exclude=tuple(exclude or ()),
        exclude_tracks=tuple(exclude_track or ()),
    )


@router.post("/retrieve", dependencies=[Depends(require("read"))], responses=problems(404, 409, 413, 415, 422, 503))
async def retrieve(
    services: TheBackend,
    wanted: Annotated[StemFilter, Depends(wanted_hits)],
    file: Annotated[UploadFile | None, File(description="the mix, in any common audio format")] = None,
    stem_id: Annotated[
        list[ShortText] | None,
        Form(description="or: the stems of the catalog that make up the mix; they are not returned", max_length=32),
    ] = None,
    limit: Annotated[int, Form(ge=1, le=100)] = 10,
    align: Annotated[
        Literal["search", "grid"],
        Form(description="search: the mix starts anywhere; grid: it starts where the catalog's windows start"),
    ] = "search",
) -> RetrieveOut:
    """Find the stems that fit a partial mix in harmony and in time, best first, each with its place."""
    if (file is None) == (not stem_id):
        raise NoMix("Send either `file`, or `stem_id` once or more.")
    return await services.retrieval.answer(
        Query(file=file, stem_ids=tuple(stem_id or ()), limit=limit, align=align, wanted=wanted)
    )
