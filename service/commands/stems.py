"""`phalar stems`: what a running service has."""

import json
from typing import Annotated, Any

import typer

from service.commands.console import LOCAL, Favourite, Key, Q, RatingMin, Tags, Url, cell, out, service, words


def stems(
    q: Q = None,
    favourite: Favourite = None,
    rating_min: RatingMin = None,
    instrument: Annotated[list[str] | None, typer.Option(help="Any of these.", callback=words)] = None,
    tag: Tags = None,
    track: Annotated[list[str] | None, typer.Option(help="Any of these.", callback=words)] = None,
    collection: Annotated[list[str] | None, typer.Option(help="Any of these.", callback=words)] = None,
    limit: Annotated[int, typer.Option(min=1, help="Stems wanted.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the service says of each.")] = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """List the stems of the catalog, oldest first.

    Example: phalar stems --q "night bus ba" --favourite
    """
    wanted: dict[str, Any] = {"q": q, "favourite": favourite, "rating_min": rating_min, "instrument": instrument}
    wanted |= {"tag": tag, "track": track, "collection": collection}
    with service(url, key) as client:
        found = list(client.stems(wanted, limit))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("title", "instrument", "track", "collection", "tempo", "key", "kept", "state", "id"):
        table.add_column(name, no_wrap=name == "id")
    for stem in found:
        tempo = "" if stem["tempo_bpm"] is None else f"{stem['tempo_bpm']:g}"
        kept = "♥" * stem["favourite"] + ("" if stem["rating"] is None else f" {stem['rating']}/5")
        texts = (stem["title"], stem["instrument"], stem["track"], stem["collection"], tempo, stem["key"])
        table.add_row(*map(cell, (*texts, kept.strip(), stem["state"], stem["id"])))
    out.print(table)
