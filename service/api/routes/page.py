"""The page to try it, and what each problem type means."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse

from service.api.errors import all_problem_types, told

router = APIRouter(include_in_schema=False)
STATIC = Path(__file__).parents[2] / "static"


@router.get("/")
async def page() -> FileResponse:
    return FileResponse(STATIC / "index.html")


@router.get("/problems")
@router.get("/problems/{code}")
async def problem_types(code: str | None = None) -> list[dict[str, Any]]:
    """What the `type` of an error stands for."""
    return [told(kind) for kind in all_problem_types() if code in (None, kind.code)]
