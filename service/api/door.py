"""The one door: every request passes it before any route, and every answer on its way out."""

import base64
import hashlib
import re
import time
from functools import partial

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.bodies import Body
from service.api.connections import client_address
from service.api.errors import problem_response
from service.api.origins import CrossSite, Origins, UnknownHost
from service.api.pace import REQUEST_S, Metered, Pace
from service.settings import Settings

METHODS = ("GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS")
GUARDS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
NO_FRAMES = "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
OF_DATA = f"default-src 'none'; media-src 'self'; {NO_FRAMES}"
OF_THE_PAGE = f"default-src 'self'; media-src 'self' blob:; img-src 'self' data:; connect-src 'self'; {NO_FRAMES}"
DOCS = ("/docs", "/docs/oauth2-redirect")  # the framework's, with a script in the page
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


class Door:
    """Refuses what no route should see, counts and times each request, and guards the browsers that read the answers.

    It stands around the whole application: an answer to an error that nobody foresaw passes it too.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._origins = Origins(settings)
        self._largest = settings.max_body_bytes
        self._pace = Pace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        who = client_address(scope["client"][0] if scope.get("client") else None)
        self._pace.charge(who, REQUEST_S)
        await self._pace.turn(who)
        await Metered(self._answer(scope, receive, send, who), partial(self._pace.charge, who))

    async def _answer(self, scope: Scope, receive: Receive, send: Send, who: str) -> None:
        headers = Headers(scope=scope)
        body = Body(receive, headers, self._largest, partial(self._pace.turn, who))
        out = _Answer(scope, send, body)
        try:
            self._origins.check(scope["method"], headers)
        except (UnknownHost, CrossSite) as error:
            return await problem_response(error)(scope, receive, out.send)
        if body.refusal is None:
            await self._app(scope, body, out)
        if body.refusal is not None and not out.started:
            await problem_response(body.refusal)(scope, receive, out.send)


class _Answer:
    """An ASGI `send`: once a body was refused, nothing that the application says of it goes out."""

    def __init__(self, scope: Scope, send: Send, body: Body) -> None:
        self.started = False
        self._scope = scope
        self._send = send
        self._body = body
        self._path = scope["path"].removeprefix(scope.get("root_path", ""))
        self._held: Message | None = None  # the start of an answer whose policy depends on its body
        self._began = time.perf_counter()

    async def __call__(self, message: Message) -> None:
        if self.started or self._body.refusal is None:
            await self.send(message)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._count(message["status"])
            self._add_headers(MutableHeaders(scope=message))
            if self._path in DOCS:
                self._held = message
                return
        if self._held is not None:
            MutableHeaders(scope=self._held)["Content-Security-Policy"] = _policy_of(message.get("body", b""))
            await self._send(self._held)
            self._held = None
        if self._scope["method"] == "HEAD" and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await self._send(message)

    def _count(self, status: int) -> None:
        metrics = self._scope["app"].state.backend.metrics
        route = getattr(self._scope.get("route"), "path", "unmatched")
        method = self._scope["method"] if self._scope["method"] in METHODS else "other"
        metrics.requests.labels(method, route, str(status)).inc()
        metrics.request_seconds.labels(route).observe(time.perf_counter() - self._began)

    def _add_headers(self, headers: MutableHeaders) -> None:
        headers.update(GUARDS)
        allowance = self._scope.get("state", {}).get("allowance")
        if allowance is not None:
            headers.update(allowance.headers)
        if self._path == "/" or self._path.startswith("/static/"):
            headers["Content-Security-Policy"] = OF_THE_PAGE
            headers["Cache-Control"] = "no-cache"  # ask again each time, so that no module outlives an upgrade
        headers.setdefault("Content-Security-Policy", OF_DATA)


def _policy_of(page: bytes) -> str:
    """Of a page with scripts in it: those run, by their hashes, and none besides."""
    digests = (base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _SCRIPT.findall(page))
    scripts = " ".join(f"'sha256-{digest}'" for digest in digests)
    styles = "style-src 'self' 'unsafe-inline'"
    return f"default-src 'self'; script-src 'self' {scripts}; {styles}; img-src 'self' data:; {NO_FRAMES}"
