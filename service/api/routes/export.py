"""Handing over: a mix and the stems placed in it, for a DAW."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import StreamingResponse

from service.api.access import GuardedRoute, Reader, TheBackend
from service.api.downloads import disposition
from service.api.orders import ExportIn
from service.api.routes.problems import problems
from service.api.waiting import while_client_waits

router = APIRouter(tags=["retrieval"], route_class=GuardedRoute)


@router.post(
    "/export",
    response_class=Response,
    responses={
        200: {"content": {"application/zip": {}}, "description": "WAV files, a DAWproject, a Reaper project, a text"},
        **problems(404, 415, 422, 507),
    },
)
async def export(
    services: TheBackend,
    caller: Reader,
    request: Request,
    wanted: Annotated[ExportIn, Form(media_type="multipart/form-data")],
) -> Response:
    """A ZIP with the mix and each placed stem, fitted, as WAV files of the mix's rate that all begin where the mix
    begins; with projects of them for Bitwig, Cubase, Studio One and Reaper, and a text of what they are."""
    kept, name = await while_client_waits(request, services.export.archive(wanted, caller.who))
    headers = {"Content-Length": str(kept.size), "Content-Disposition": disposition(name), "Cache-Control": "no-store"}
    return StreamingResponse(kept.read(0, kept.size), 200, headers, media_type="application/zip")
