"""The errors that endpoints announce, and the page that explains each problem type."""

from typing import Any

from fastapi import APIRouter

from service.errors import BODY_TOO_LARGE, MEDIA_TYPE, TABLE, UNEXPECTED, ProblemType
from service.schemas import ProblemOut

router = APIRouter()


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for these statuses, beside those that any endpoint may answer."""
    schema = {"$ref": "#/components/schemas/ProblemOut"}
    everywhere = (401, 403, 500, 503)
    return {
        status: {"model": ProblemOut, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in sorted({*statuses, *everywhere})
    }


def all_problem_types() -> list[ProblemType]:
    """Every row of the table, by status."""
    return sorted({*TABLE.values(), UNEXPECTED, BODY_TOO_LARGE}, key=lambda kind: (kind.status, kind.code))
