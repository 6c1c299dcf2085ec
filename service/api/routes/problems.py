"""The errors that endpoints announce in OpenAPI."""

from typing import Any

from service.api.schemas import PROBLEM_TYPE, ProblemOut


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for these statuses, beside those that any endpoint may answer."""
    schema = {"$ref": "#/components/schemas/ProblemOut"}
    everywhere = (401, 403, 429, 500, 503)
    return {
        status: {"model": ProblemOut, "content": {PROBLEM_TYPE: {"schema": schema}}}
        for status in sorted({*statuses, *everywhere})
    }
