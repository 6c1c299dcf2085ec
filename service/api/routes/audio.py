"""The audio of a stem: as it was uploaded, or at another speed, in another key, from another place."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from service.api.access import Guard, GuardedRoute, TheBackend
from service.api.downloads import disposition, fitted_name
from service.api.orders import AudioIn
from service.api.ranges import answer_bytes
from service.api.routes.problems import problems

router = APIRouter(tags=["stems"], route_class=GuardedRoute)
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


@router.get(
    "/stems/{stem_id}/audio",
    dependencies=[Depends(Guard("read"))],
    response_class=Response,
    responses={
        200: {"content": {"audio/*": {}}, "description": "The bytes as they were uploaded, or fitted audio"},
        206: {"content": {"audio/*": {}}, "description": "The asked range of them"},
        304: {"description": "They are what `If-None-Match` names"},
        **problems(404, 416, 422, 507),
    },
)
async def stem_audio(
    services: TheBackend, stem_id: str, request: Request, wanted: Annotated[AudioIn, Query()]
) -> Response:
    """The audio as it was uploaded; with any of the parameters, fitted: played faster or slower and moved in pitch,
    each independent of the other, from its full-quality file. Single byte ranges are answered."""
    stem = await services.catalog.stem(stem_id)
    if not wanted.model_fields_set:
        size = await services.blobs.size(stem.sha256)
        kind = MEDIA_TYPES.get(stem.format.lower(), "application/octet-stream")
        tag = f'"{stem.sha256}"'
        return answer_bytes(
            request,
            size,
            tag,
            lambda start, end: services.blobs.read(stem.sha256, start, end),
            Content_Type=kind,
            Content_Disposition=disposition(stem.file_name, "inline"),
        )
    order = wanted.as_order()
    kept = await services.fitted.file(stem, order)
    return answer_bytes(
        request,
        kept.size,
        kept.tag,
        kept.read,
        Content_Type=MEDIA_TYPES[order.format],
        Content_Disposition=disposition(fitted_name(stem, order)),
    )
