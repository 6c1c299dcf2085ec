"""What goes over the wire where many stems are changed, and where searches are saved."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas import Filters, RetrieveIn, SearchIn


class ChangeIn(Filters):
    """Which stems are to be changed together; a filter that is misspelt would mean more of them than are meant."""

    model_config = ConfigDict(extra="forbid")

    all: bool = Field(False, description="every stem; filters may not be given then, and must be without it")
    dry_run: bool = Field(False, description="count them and change none")


class ChangedOut(BaseModel):
    """What became of many stems."""

    stems: int = Field(description="how many were changed; of a dry run, how many would be")
    queued: int = Field(description="of these, how many wait to be embedded again; 0 of a dry run")
    dry_run: bool


class SavedSearch(SearchIn):
    """A search to be saved."""

    model_config = ConfigDict(extra="forbid")


class SearchOut(BaseModel):
    """A saved search."""

    name: str
    search: SavedSearch


class SearchesOut(BaseModel):
    """All of the caller's, by name."""

    searches: list[SearchOut]


def over(query: RetrieveIn, saved: Mapping[str, Any]) -> RetrieveIn:
    """A query with what a saved search says in the fields that were not sent; `complete` is sent for `instrument`."""
    sent = query.model_fields_set | ({"instrument"} if query.complete else set())
    return query.model_copy(update={name: saved[name] for name in saved.keys() - sent})
