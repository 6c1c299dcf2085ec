"""create_app: the HTTP application. Nothing happens at import; everything opens in the lifespan."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.datastructures import MutableHeaders
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.backend import Backend
from service.api.errors import TooLargeIsAProblem, add_error_handlers
from service.api.methods import Methods
from service.api.routes import admin, health, jobs, page, retrieve, stems
from service.settings import Settings

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; media-src 'self' blob:; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)


def create_app(settings: Settings) -> FastAPI:
    """The service over one installation.

    Raises:
        InsecureBind: it would listen beyond this machine without a key.
    """
    settings.refuse_insecure_bind()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with Backend.open(settings) as backend:
            app.state.backend = backend
            yield

    app = FastAPIOffline(  # the page at /docs without a content delivery network
        redoc_url=None,
        favicon_url=f"{settings.root_path}/static/icon.svg",
        title="Phalar Retrieval",
        summary="Finds the stems of a catalog that fit a partial mix, in harmony and in time.",
        version=version("phalar-retrieval"),
        license_info={"name": "MIT", "identifier": "MIT"},
        lifespan=lifespan,
    )
    for resource in (stems, retrieve, jobs, admin, health, page):
        app.include_router(resource.router)
    app.mount("/static", StaticFiles(directory=page.STATIC), name="static")
    add_error_handlers(app)
    app.add_middleware(Methods, routes=app.routes, root_path=settings.root_path)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    app.add_middleware(TooLargeIsAProblem, limit=settings.max_body_bytes)
    app.add_middleware(_Observed)
    return app


class _Observed:
    """Counts and times each request by its route, and sends the headers that every answer carries."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = time.perf_counter()
        metrics = scope["app"].state.backend.metrics

        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "unmatched")
                metrics.requests.labels(scope["method"], route, str(message["status"])).inc()
                metrics.request_seconds.labels(route).observe(time.perf_counter() - began)
                _add_headers(MutableHeaders(scope=message), scope)
            await send(message)

        await self._app(scope, receive, send_observed)


def _add_headers(headers: MutableHeaders, scope: Scope) -> None:
    headers.setdefault("X-Content-Type-Options", "nosniff")
    allowance = scope.get("state", {}).get("allowance")
    if allowance is not None:
        headers.update(allowance.headers)
    if scope["path"] == "/" or scope["path"].startswith("/static/"):
        headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        headers["Cache-Control"] = "no-cache"  # ask again each time, so that no module outlives an upgrade
