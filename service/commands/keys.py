"""`phalar keys`: make, list and end API keys, straight in the database; whoever can run this owns the installation."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

import typer

from service.commands.console import FAILED, cell, err, fail, out, read_settings
from service.text import BadText, said

T = TypeVar("T")
Work = Callable[[Any, Any], Awaitable[T]]

keys_app = typer.Typer(help="Make, list and end API keys.", no_args_is_help=True)

LONGEST_NAME = 200  # characters; the column has no more
_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


@keys_app.command()
def create(
    name: Annotated[str, typer.Option(help="Who or what will use it.")],
    scope: Annotated[
        Literal["read", "ingest", "admin"],
        typer.Option(help="read; ingest: also add and delete; admin: also reindex."),
    ],
    expires: Annotated[str | None, typer.Option(help="From now: 12h, 90d, 4w; default: never.")] = None,
) -> None:
    """Make a key and print its token, this one time: only its digest is kept.

    Needs the database: run it where the service runs, with its settings.

    Example: phalar keys create --scope ingest --name daw --expires 90d
    """
    from service.api.keys import new_api_key

    expires_at = None if expires is None else time.time() + _seconds(expires)
    token, key = new_api_key(_said(name), scope, expires_at)
    _with_keys(lambda keys, _: keys.add(key))
    print(token)
    err.print(f"key {key.id}, {scope}, {_until(expires_at)}; the token is not shown again", highlight=False)
    _say_whether_keys_are_needed()


@keys_app.command("list")
def list_keys() -> None:
    """Every key that was ever made, with what its stems take."""
    from rich.table import Table

    async def read(keys: Any, catalog: Any) -> list[tuple[Any, Any]]:
        return [(key, await catalog.usage(key.id)) for key in await keys.all()]

    table = Table(box=None, header_style="bold")
    for title in ("id", "name", "scope", "created", "last used", "state", "stems", "MiB"):
        table.add_column(title, justify="right" if title in ("stems", "MiB") else "left", no_wrap=title == "id")
    now = time.time()
    for key, usage in _with_keys(read):
        state = "revoked" if key.revoked_at is not None else _until(key.expires_at, now)
        cells = (key.id, key.name, key.scope, _day(key.created_at), _day(key.last_used_at), state)
        table.add_row(*map(cell, cells), str(usage.stems), f"{usage.bytes / 2**20:.1f}")
    out.print(table)


@keys_app.command()
def revoke(key_id: Annotated[str, typer.Argument(help="From `phalar keys list`.")]) -> None:
    """End a key: from now on every request with it is refused, by every API process. Its stems stay."""
    from indexer import ApiKeyNotFound

    try:
        _with_keys(lambda keys, _: keys.revoke(key_id, time.time()))
    except ApiKeyNotFound as error:
        fail(str(error), FAILED)
    err.print(f"key {key_id} is revoked", highlight=False)


def _with_keys(work: Work[T]) -> T:
    """Do something with the database's keys, and its catalog."""
    from indexer import ApiKeys, Catalog, CatalogError

    settings = read_settings()
    settings.keep_private()

    async def run() -> T:
        settings.make_data_folder()
        catalog = await Catalog.open(settings.resolved_database_url)
        try:
            return await work(ApiKeys(catalog.database), catalog)
        finally:
            await catalog.close()

    try:
        return asyncio.run(run())
    except CatalogError as error:
        fail(str(error), FAILED)


def _say_whether_keys_are_needed() -> None:
    if not read_settings().keys_needed:
        err.print("[yellow]The service is open to anybody until it runs with PHALAR_REQUIRE_KEYS=true.[/]")


def _seconds(text: str) -> int:
    found = re.fullmatch(r"(\d{1,5})([hdw])", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a time such as 12h, 90d or 4w", param_hint="--expires")
    return int(found[1]) * _SECONDS[found[2]]


def _said(name: str) -> str:
    try:
        text = said(name)
    except BadText as error:
        raise typer.BadParameter(str(error), param_hint="--name") from None
    if len(text) > LONGEST_NAME:
        raise typer.BadParameter(f"1 to {LONGEST_NAME} characters", param_hint="--name")
    return text


def _day(seconds: float | None) -> str:
    return "never" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def _until(expires_at: float | None, now: float = 0.0) -> str:
    if expires_at is None:
        return "works"
    return f"expired {_day(expires_at)}" if expires_at <= now else f"until {_day(expires_at)}"
