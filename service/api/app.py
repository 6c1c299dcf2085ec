"""create_app: the HTTP application. Nothing happens at import; everything opens in the lifespan."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline

from service.api.backend import Backend
from service.api.door import Door
from service.api.errors import add_error_handlers
from service.api.methods import Methods
from service.api.routes import admin, audio, explain, export, health, jobs, page, retrieve, searches, stems
from service.api.routes.problems import problems_anywhere
from service.settings import Settings


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
    for resource in (stems, audio, retrieve, searches, explain, export, jobs, admin, health, page):
        app.include_router(resource.router, responses=problems_anywhere())
    app.mount("/static", StaticFiles(directory=page.STATIC), name="static")
    add_error_handlers(app)
    app.add_middleware(Methods, routes=app.routes, root_path=settings.root_path)
    app.middleware_stack = Door(app.build_middleware_stack(), settings)
    return app
