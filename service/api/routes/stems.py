"""Stems: put in, look at, change, take out."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Query, Request, Response, UploadFile

from service.api.access import Guard, GuardedRoute, TheBackend
from service.api.keeping import ChangedOut, ChangeIn
from service.api.keys import Caller
from service.api.metadata import metadata_of, most_bytes
from service.api.routes.problems import problems
from service.api.schemas import CatalogValues, JobOut, ListIn, Metadata, StemOut, StemPage
from service.api.waiting import while_client_waits

router = APIRouter(tags=["stems"], route_class=GuardedRoute)
MAX_FILES = 1000


@router.post(
    "/stems", status_code=202, responses=problems(415, 422), form_limits={"max_part_size": most_bytes(MAX_FILES)}
)
async def add_stems(
    services: TheBackend,
    caller: Annotated[Caller, Depends(Guard("ingest"))],
    request: Request,
    response: Response,
    files: Annotated[list[UploadFile], File(min_length=1, max_length=MAX_FILES)],
    metadata: Annotated[
        str | None, Form(description="JSON: one object for all files, or an array with one object a file, in order")
    ] = None,
) -> JobOut:
    """Put stems into the catalog. The answer is a job; each file in it becomes ready, or failed with a problem.

    A file that cannot be used never stops the others; if it is the only one, its problem is the answer. The same bytes
    twice are the same stem.
    """
    said = metadata_of(metadata, len(files))
    described = [(file, meta.as_record()) for file, meta in zip(files, said, strict=True)]
    checked = await while_client_waits(request, services.ingest.check(described, caller))
    job = await services.ingest.keep(checked)
    response.headers["Location"] = f"{services.settings.root_path}/jobs/{job.id}"
    return JobOut.of(job)


@router.get("/stems", dependencies=[Depends(Guard("read"))], responses=problems(422))
async def list_stems(services: TheBackend, wanted: Annotated[ListIn, Query()]) -> StemPage:
    """The catalog, a page at a time, oldest first."""
    page, following = await services.catalog.list_stems(
        wanted.as_filter(), state=wanted.state, sha256=wanted.sha256, limit=wanted.limit, cursor=wanted.cursor
    )
    return StemPage(stems=[StemOut.of(stem, services.settings.root_path) for stem in page], next_cursor=following)


@router.get("/catalog", dependencies=[Depends(Guard("read"))])
async def catalog_values(services: TheBackend) -> CatalogValues:
    """Which instruments, tags, tracks, collections, keys and kinds there are to filter by."""
    tempo_min, tempo_max = await services.catalog.tempo_range()
    return CatalogValues(**await services.catalog.values(), tempo_min=tempo_min, tempo_max=tempo_max)


@router.get("/stems/{stem_id}", dependencies=[Depends(Guard("read"))], responses=problems(404))
async def get_stem(services: TheBackend, stem_id: str) -> StemOut:
    """One stem."""
    return StemOut.of(await services.catalog.stem(stem_id), services.settings.root_path)


@router.patch("/stems", dependencies=[Depends(Guard("ingest"))], responses=problems(422))
async def change_stems(services: TheBackend, wanted: Annotated[ChangeIn, Query()], changed: Metadata) -> ChangedOut:
    """Change what is said about all stems that pass the filters, as of one; `dry_run=true` only counts them.

    Some are changed in each transaction, so others see the change in steps; broken off, it may be asked again.
    """
    return await services.ingest.change_many(wanted, said_in(changed))


@router.patch("/stems/{stem_id}", dependencies=[Depends(Guard("ingest"))], responses=problems(404, 422))
async def change_stem(services: TheBackend, stem_id: str, changed: Metadata) -> StemOut:
    """Change what is said about a stem; fields that are not sent stay. Filters see it at once.

    Another tempo sends the stem back to be embedded; so does null for a tempo, key or kind, which is heard then.
    """
    return StemOut.of(await services.ingest.change(stem_id, said_in(changed)), services.settings.root_path)


def said_in(changed: Metadata) -> dict[str, Any]:
    """What a body says; fields that were not sent stay as they are."""
    fields: dict[str, Any] = changed.model_dump(include=changed.model_fields_set)
    if fields.get("title", "") is None:
        del fields["title"]  # a stem always has one
    return fields


@router.delete("/stems/{stem_id}", status_code=204, dependencies=[Depends(Guard("ingest"))], responses=problems(404))
async def delete_stem(services: TheBackend, stem_id: str) -> None:
    """Take a stem out, with its audio. No later query returns it."""
    await services.ingest.delete(stem_id)
