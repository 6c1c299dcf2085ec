"""create_app: the HTTP application. Nothing happens at import; everything opens in the lifespan."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from service.backend import Backend
from service.errors import TooLargeIsAProblem, add_error_handlers
from service.routes import router
from service.routes.page import STATIC
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
        favicon_url="/static/icon.svg",
        title="Phalar Retrieval",
        summary="Finds the stems of a catalog that fit a partial mix, in harmony and in time.",
        version=version("phalar-retrieval"),
        license_info={"name": "MIT", "identifier": "MIT"},
        lifespan=lifespan,
    )
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    add_error_handlers(app)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    app.add_middleware(TooLargeIsAProblem, limit=settings.max_body_bytes)
    app.middleware("http")(_observe)
    return app


async def _observe(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Count and time each request by its route, and send the headers that every answer carries."""
    began = time.perf_counter()
    response = await call_next(request)
    metrics = request.app.state.backend.metrics
    route = getattr(request.scope.get("route"), "path", "unmatched")
    metrics.requests.labels(request.method, route, str(response.status_code)).inc()
    metrics.request_seconds.labels(route).observe(time.perf_counter() - began)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    allowance = getattr(request.state, "allowance", None)
    if allowance is not None:
        response.headers.update(allowance.headers)
    if request.url.path == "/" or request.url.path.startswith("/static/"):
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        response.headers["Cache-Control"] = "no-cache"  # ask again each time, so that no module outlives an upgrade
    return response
