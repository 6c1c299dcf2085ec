"""Which bytes of a stem's audio a request asks for, and whether it has them already."""

import re
from collections.abc import AsyncIterator, Callable

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from model.errors import Told


class RangeNotSatisfiable(Told):
    public = "The audio has {size} bytes."
    size: int

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Range": f"bytes */{self.size}"}


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The range of a Range header as [start, end); None where all is to be sent: there is none, it cannot be read, or
    there are several, which a server may answer so (RFC 9110, 14.2).

    Raises:
        RangeNotSatisfiable.
    """
    found = re.fullmatch(r"bytes=[ \t]*(\d{0,99})-(\d{0,99})", (header or "").strip(), re.ASCII | re.IGNORECASE)
    if found is None or not any(found.groups()):
        return None
    first, last = (int(part) if part else None for part in found.groups())
    if first is not None and last is not None and last < first:
        return None
    start = first if first is not None else max(0, size - (last or 0))
    end = min(size, last + 1) if first is not None and last is not None else size
    if start >= end:
        raise RangeNotSatisfiable(size)
    return start, end


def names_tag(header: str | None, tag: str, *, weak: bool) -> bool:
    """Whether an If-None-Match (`weak`: W/"..." means the same) or If-Range header names this entity tag."""
    if header is None:
        return False
    named = {part.strip() for part in header.split(",")}
    return tag in named or (weak and (f"W/{tag}" in named or named == {"*"}))


def answer_bytes(
    request: Request, size: int, tag: str, read: Callable[[int, int], AsyncIterator[bytes | memoryview]], **more: str
) -> Response:
    """What a request gets of `size` bytes that never change under their `tag`: all, a range, or that it has them.

    Args:
        read: the bytes from one place up to another, piece by piece.
        more: further headers of what has a body, `_` for `-`.

    Raises:
        RangeNotSatisfiable.
    """
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": tag,
        "Cache-Control": "private, max-age=31536000, immutable",
        "X-Content-Type-Options": "nosniff",
    }
    asked = request.headers
    if names_tag(asked.get("if-none-match"), tag, weak=True):
        return Response(status_code=304, headers=headers)
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    if request.scope.get("head"):
        return Response(headers=headers | {"Content-Length": str(size)})
    current = "if-range" not in asked or names_tag(asked["if-range"], tag, weak=False)
    part = byte_range(asked.get("range"), size) if current else None
    start, end = part or (0, size)
    headers["Content-Length"] = str(end - start)
    if part:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"

    async def body() -> AsyncIterator[bytes]:
        async for piece in read(start, end):
            yield bytes(piece)

    return StreamingResponse(body(), 206 if part else 200, headers)
