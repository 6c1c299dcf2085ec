"""The HTTP interface: one module a resource, one short function an endpoint: parse, call, answer."""

from fastapi import APIRouter

from service.api.routes import admin, health, jobs, page, retrieve, stems

router = APIRouter()
for module in (stems, retrieve, jobs, admin, health, page):
    router.include_router(module.router)

__all__ = ["router"]
