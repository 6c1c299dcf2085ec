"""Stems: put in, look at, listen to, change, take out."""

from collections.abc import AsyncIterator
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, File, Form, Query, Request, Response, UploadFile
from fastapi.responses import StreamingResponse

from service.api.access import GuardedRoute, TheBackend, require
from service.api.keys import Caller
from service.api.metadata import metadata_of
from service.api.ranges import byte_range, names_tag
from service.api.routes.problems import problems
from service.api.schemas import (
    CatalogValues,
    JobOut,
    ListIn,
    Metadata,
    StemOut,
    StemPage,
)
from service.api.waiting import while_client_waits

router = APIRouter(tags=["stems"], route_class=GuardedRoute)
MAX_FILES = 1000
MEDIA_TYPES = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "aiff": "audio/aiff",
    "m4a": "audio/mp4",
    "aac": "audio/aac",
    "caf": "audio/x-caf",
    "matroska": "audio/x-matroska",
    "webm": "audio/webm",
    "wavpack": "audio/x-wavpack",
    "wma": "audio/x-ms-wma",
    "ac3": "audio/ac3",
    "eac3": "audio/eac3",
    "au": "audio/basic",
    "amr": "audio/amr",
}


def _disposition(name: str) -> str:
    """The name that a file is saved by: for clients of RFC 8187, and in ASCII for those older."""
    plain = "".join(letter if " " <= letter <= "~" and letter not in '"\\%' else "_" for letter in name)
    return f"inline; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


@router.post("/stems", status_code=202, responses=problems(415, 422))
async def add_stems(
    services: TheBackend,
    caller: Annotated[Caller, Depends(require("ingest"))],
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


@router.get("/stems", dependencies=[Depends(require("read"))], responses=problems(422))
async def list_stems(services: TheBackend, wanted: Annotated[ListIn, Query()]) -> StemPage:
    """The catalog, a page at a time, oldest first."""
    page, following = await services.catalog.list_stems(
        wanted.as_filter(), state=wanted.state, sha256=wanted.sha256, limit=wanted.limit, cursor=wanted.cursor
    )
    return StemPage(stems=[StemOut.of(stem, services.settings.root_path) for stem in page], next_cursor=following)


@router.get("/catalog", dependencies=[Depends(require("read"))])
async def catalog_values(services: TheBackend) -> CatalogValues:
    """Which instruments, tags, tracks, collections, keys and kinds there are to filter by."""
    tempo_min, tempo_max = await services.catalog.tempo_range()
    return CatalogValues(**await services.catalog.values(), tempo_min=tempo_min, tempo_max=tempo_max)


@router.get("/stems/{stem_id}", dependencies=[Depends(require("read"))], responses=problems(404))
async def get_stem(services: TheBackend, stem_id: str) -> StemOut:
    """One stem."""
    return StemOut.of(await services.catalog.stem(stem_id), services.settings.root_path)


@router.patch("/stems/{stem_id}", dependencies=[Depends(require("ingest"))], responses=problems(404, 422))
async def change_stem(services: TheBackend, stem_id: str, changed: Metadata) -> StemOut:
    """Change what is said about a stem; fields that are not sent stay. Filters see it at once.

    Another tempo sends the stem back to be embedded; so does null for a tempo, key or kind, which is heard then.
    """
    fields: dict[str, Any] = changed.model_dump(include=changed.model_fields_set)
    if fields.get("title", "") is None:
        del fields["title"]  # a stem always has one
    return StemOut.of(await services.ingest.change(stem_id, fields), services.settings.root_path)


@router.delete("/stems/{stem_id}", status_code=204, dependencies=[Depends(require("ingest"))], responses=problems(404))
async def delete_stem(services: TheBackend, stem_id: str) -> None:
    """Take a stem out, with its audio. No later query returns it."""
    await services.ingest.delete(stem_id)


@router.get(
    "/stems/{stem_id}/audio",
    dependencies=[Depends(require("read"))],
    response_class=Response,
    responses={
        200: {"content": {"audio/*": {}}, "description": "The bytes as they were uploaded"},
        206: {"content": {"audio/*": {}}, "description": "The asked range of them"},
        304: {"description": "They are what `If-None-Match` names"},
        **problems(404, 416),
    },
)
async def stem_audio(services: TheBackend, stem_id: str, request: Request) -> Response:
    """The audio as it was uploaded; single byte ranges are answered."""
    stem = await services.catalog.stem(stem_id)
    size = await services.blobs.size(stem.sha256)
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": f'"{stem.sha256}"',
        "Cache-Control": "private, max-age=31536000, immutable",
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": _disposition(stem.file_name),
    }
    asked, tag = request.headers, headers["ETag"]
    if names_tag(asked.get("if-none-match"), tag, weak=True):
        return Response(status_code=304, headers=headers)
    headers["Content-Type"] = MEDIA_TYPES.get(stem.format.lower(), "application/octet-stream")
    if request.scope.get("head"):
        return Response(headers=headers | {"Content-Length": str(size)})
    current = "if-range" not in asked or names_tag(asked["if-range"], tag, weak=False)
    part = byte_range(asked.get("range"), size) if current else None
    start, end = part or (0, size)
    headers["Content-Length"] = str(end - start)
    if part:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"

    async def body() -> AsyncIterator[bytes]:
        async for piece in services.blobs.read(stem.sha256, start, end):
            yield bytes(piece)

    return StreamingResponse(body(), 206 if part else 200, headers)
