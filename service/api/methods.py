"""What holds for every route: HEAD wherever GET is, OPTIONS, a complete `Allow`, and the prefix of a proxy."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")


class Methods:
    """Stands right before the routes.

    A proxy that serves us below `root_path` sends what lies behind it; links, redirects and /docs need the whole path.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute], root_path: str) -> None:
        self._app = app
        self._routes = routes
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        whole = dict(scope, root_path=self._root_path, path=self._root_path + scope["path"])
        inner = dict(whole)  # the router writes into it
        if scope["method"] == "HEAD":  # who makes a long body may look at it; the door keeps it back
            inner |= {"method": "GET", "head": True}

        async def answer(message: Message) -> None:
            if "route" in inner:  # found by the router, in its own copy
                scope["route"] = inner["route"]
            if message["type"] == "http.response.start" and message["status"] == 307:
                message = {**message, "headers": [*map(_without_host, message["headers"])]}
            if message["type"] == "http.response.start" and message["status"] == 405:
                others = [header for header in message["headers"] if header[0] != b"allow"]
                message = {**message, "headers": [*others, (b"allow", self._allowed(whole).encode())]}
            await send(message)

        if scope["method"] == "OPTIONS" and (allowed := self._allowed(whole)):
            await Response(status_code=204, headers={"Allow": allowed})(scope, receive, send)
        else:
            await self._app(inner, receive, answer)

    def _allowed(self, scope: Scope) -> str:
        """The methods of a path; empty where it is nothing."""
        found = {
            method for method in METHODS if any(_takes(route, {**scope, "method": method}) for route in self._routes)
        }
        also = {"OPTIONS"} | ({"HEAD"} if "GET" in found else set())
        return ", ".join(sorted(found | also)) if found else ""


def _without_host(header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Of an address its path alone: a proxy that finds its own idea of our address there puts its prefix before it."""
    name, value = header
    if name == b"location":
        value = b"/" + urlsplit(value)._replace(scheme=b"", netloc=b"").geturl().lstrip(b"/")
    return name, value


def _takes(route: BaseRoute, scope: Scope) -> bool:
    if isinstance(route, Mount) and scope["method"] != "GET":  # files; a mount takes any method and refuses it later
        return False
    return route.matches(scope)[0] is Match.FULL
