"""Saved searches: filters and settings of a retrieval, by a name of the caller's own."""

from typing import Any

from fastapi import APIRouter

from service.api.access import GuardedRoute, Reader, TheBackend
from service.api.keeping import SavedSearch, SearchesOut, SearchOut
from service.api.routes.problems import problems
from service.api.schemas import ShortText

router = APIRouter(prefix="/searches", tags=["retrieval"], route_class=GuardedRoute)


@router.get("", response_model_exclude_unset=True)
async def list_searches(services: TheBackend, caller: Reader) -> SearchesOut:
    """Every search that this caller has saved; callers without a key share theirs."""
    saved = await services.catalog.saved_searches(caller.account)
    return SearchesOut(searches=[_shown(name, wanted) for name, wanted in saved.items()])


@router.get("/{name:path}", response_model_exclude_unset=True, responses=problems(404, 422))
async def get_search(services: TheBackend, caller: Reader, name: ShortText) -> SearchOut:
    """One of them."""
    return _shown(name, await services.catalog.saved_search(caller.account, name))


@router.put("/{name:path}", response_model_exclude_unset=True, responses=problems(404, 409, 422))
async def save_search(services: TheBackend, caller: Reader, name: ShortText, search: SavedSearch) -> SearchOut:
    """Save a search, in place of an earlier one of this name. `POST /retrieve` takes its name as `saved`."""
    wanted = search.model_dump(mode="json", exclude_unset=True)
    await services.catalog.save_search(caller.account, name, wanted)
    return _shown(name, wanted)


@router.delete("/{name:path}", status_code=204, responses=problems(404, 422))
async def delete_search(services: TheBackend, caller: Reader, name: ShortText) -> None:
    """Forget one."""
    await services.catalog.delete_search(caller.account, name)


def _shown(name: str, wanted: dict[str, Any]) -> SearchOut:
    return SearchOut(name=name, search=SavedSearch.model_construct(**wanted))
