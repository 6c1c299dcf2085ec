"""A request's body within its limits: of size, and of the time that its sender takes."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import ClassVar

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from model.errors import Told

PAUSE_S = 20.0  # how long a sender may be silent, and its credit at the beginning
SLOWEST_BYTES_S = 1024  # over all, no sender may be slower
SMALL_BYTES = 64 * 2**10  # of a body that is no form with files: it is read into memory and parsed in the event loop
HEADS = 8  # of parts of a form, that are parsed at a time
DISCONNECT: Message = {"type": "http.disconnect"}


class BodyTooLarge(Told):
    """The body is larger than it may be."""

    public = "This request may hold at most {maximum_bytes} bytes."
    headers: ClassVar = {"Connection": "close"}

    maximum_bytes: int


class BodyTooSlow(Exception):
    """The body did not come, or at a trickle."""

    public = "The rest of the request did not come in time."
    headers: ClassVar = {"Connection": "close"}


class Body:
    """An ASGI `receive` that takes the place of the server's.

    When a limit is passed, `refusal` says which, and the application reads that the client has gone.
    """

    def __init__(self, receive: Receive, headers: Headers, largest: int, turn: Callable[[], Awaitable[None]]) -> None:
        """`turn`: waited for before each piece is handed out."""
        self._receive = receive
        self._turn = turn
        self._pieces: deque[Message] = deque()
        form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        self._limit = largest if form else min(largest, SMALL_BYTES)
        self._received = 0
        self._waited_s = 0.0
        self._complete = False
        declared = headers.get("content-length", "")
        too_large = declared.isdecimal() and int(declared) > self._limit
        self.refusal: BodyTooLarge | BodyTooSlow | None = BodyTooLarge(self._limit) if too_large else None

    async def __call__(self) -> Message:
        if self.refusal is not None:
            return DISCONNECT
        if not self._pieces and self._complete:
            return await self._receive()
        if self._pieces:
            await asyncio.sleep(0)  # whatever else waits for the loop comes between two pieces
        else:
            self._pieces.extend(_in_pieces(await self._next()))
        await self._turn()
        return self._pieces.popleft()

    async def _next(self) -> Message:
        begun = time.monotonic()
        left_s = PAUSE_S + self._received / SLOWEST_BYTES_S - self._waited_s
        try:
            async with asyncio.timeout(min(PAUSE_S, left_s)):
                message = await self._receive()
        except TimeoutError:
            self.refusal = BodyTooSlow()
            return DISCONNECT
        self._waited_s += time.monotonic() - begun
        self._received += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._received > self._limit:
            self.refusal = BodyTooLarge(self._limit)
            return DISCONNECT
        return message


def _in_pieces(message: Message) -> list[Message]:
    """Cut where one would keep the loop for long: the parser of forms takes 0.1 ms for each head of a part."""
    body = message.get("body", b"")
    count = 1 + body.count(b"\r\n\r\n") // HEADS
    if count == 1:
        return [message]
    each = -(-len(body) // count)
    pieces: list[Message] = [
        {**message, "body": body[at : at + each], "more_body": True} for at in range(0, len(body), each)
    ]
    pieces[-1]["more_body"] = message.get("more_body", False)
    return pieces
