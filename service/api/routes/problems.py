"""The errors that endpoints announce in OpenAPI."""

from typing import Any

from indexer import CatalogUnavailable
from service.api.bodies import BodyTooLarge, BodyTooSlow
from service.api.errors import TABLE, UNEXPECTED
from service.api.keys import KeyMissing, KeyRefused, KeyUnknown
from service.api.origins import CrossSite, UnknownHost
from service.api.rates import TooManyRequests
from service.api.schemas import PROBLEM_TYPE, ProblemOut

# What the door and the access layer may raise before any endpoint is asked.
ANYWHERE = (
    *(UnknownHost, CrossSite, BodyTooLarge, BodyTooSlow),
    *(KeyMissing, KeyUnknown, KeyRefused, TooManyRequests, CatalogUnavailable),
)
UNREADABLE = 400  # what is no HTTP, form or JSON: the server's and the framework's own answer


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for these statuses."""
    schema = {"$ref": "#/components/schemas/ProblemOut"}
    return {
        status: {"model": ProblemOut, "content": {PROBLEM_TYPE: {"schema": schema}}} for status in sorted({*statuses})
    }


def problems_anywhere() -> dict[int | str, dict[str, Any]]:
    """`responses` that every endpoint may answer, beside its own."""
    return problems(UNREADABLE, UNEXPECTED.status, *(TABLE[kind].status for kind in ANYWHERE))
