"""`phalar retrieve`: ask a running service which stems fit a mix."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from service.commands.console import LOCAL, Key, Tags, Url, cell, err, out, service, words


class Kind(StrEnum):
    """What a stem is."""

    loop = "loop"
    one_shot = "one-shot"
    piece = "piece"


class KeyMatch(StrEnum):
    """Which keys answer to one that was asked for."""

    exact = "exact"
    compatible = "compatible"


class Align(StrEnum):
    """Where a mix starts in relation to the catalog's windows."""

    search = "search"
    grid = "grid"


def retrieve(
    mix: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, readable=True, help="The partial mix.")
    ] = None,
    stem_id: Annotated[
        list[str] | None, typer.Option(help="Or: stems of the catalog that make up the mix.", callback=words)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Hits wanted.")] = 10,
    align: Annotated[
        Align, typer.Option(help="search: it starts anywhere; grid: on the windows' grid.")
    ] = Align.search,
    instrument: Annotated[list[str] | None, typer.Option(help="Any of these.", callback=words)] = None,
    tag: Tags = None,
    track: Annotated[list[str] | None, typer.Option(help="Any of these.", callback=words)] = None,
    collection: Annotated[list[str] | None, typer.Option(help="Any of these.", callback=words)] = None,
    musical_key: Annotated[
        list[str] | None, typer.Option(help="Any of these, such as 'F# minor'.", callback=words)
    ] = None,
    key_match: Annotated[
        KeyMatch, typer.Option(help="compatible: relative keys and those a fifth away too.")
    ] = KeyMatch.exact,
    kind: Annotated[list[Kind] | None, typer.Option(help="Any of these.")] = None,
    tempo_min: Annotated[float | None, typer.Option(help="Beats a minute.")] = None,
    tempo_max: Annotated[float | None, typer.Option(help="Beats a minute.")] = None,
    group_duplicates: Annotated[
        bool,
        typer.Option("--group-duplicates/--all-duplicates", help="One hit of stems that are the same audio, or all."),
    ] = True,
    tempo_octaves: Annotated[bool, typer.Option("--tempo-octaves", help="Half and double of these tempi too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the service's answer as it is.")] = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Find the stems that fit a mix, best first, each with the second where it fits.

    Example: phalar retrieve half-a-song.wav --instrument bass
    """
    if (mix is None) == (not stem_id):
        raise typer.BadParameter("give either a file or --stem-id")
    form: dict[str, Any] = {
        "stem_id": stem_id,
        "limit": limit,
        "align": align.value,
        "instrument": instrument,
        "tag": tag,
        "track": track,
        "collection": collection,
        "key": musical_key,
        "tempo_min": tempo_min,
        "tempo_max": tempo_max,
        "key_match": key_match.value,
        "kind": [one.value for one in kind or ()],
        "tempo_octaves": tempo_octaves,
        "group_duplicates": group_duplicates,
    }
    with service(url, key) as client:
        answer = client.retrieve(mix, {name: value for name, value in form.items() if value not in (None, [])})
    for warning in answer["mix"]["warnings"]:
        err.print(f"[yellow]{cell(warning)}[/]")
    if answer["model"]["note"]:
        err.print(f"[yellow]{cell(answer['model']['note'])}[/]")
    if as_json:
        print(json.dumps(answer, indent=2))
    else:
        out.print(_table(answer))


def _table(answer: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("", "score", "title", "instrument", "track", "place", "id"):
        table.add_column(name, justify="right" if name in ("", "score") else "left", no_wrap=name == "id")
    for hit in answer["hits"]:
        stem, start_s = hit["stem"], hit["start_s"]
        minutes, seconds = divmod(abs(start_s), 60)
        place = f"from {minutes:.0f}:{seconds:05.2f}" if start_s >= 0 else f"enters at {minutes:.0f}:{seconds:05.2f}"
        copies = len(hit["copies"])
        title = stem["title"] + (f" +{copies} {'copy' if copies == 1 else 'copies'}" if copies else "")
        cells = (title, stem["instrument"], stem["track"], place, stem["id"])
        table.add_row(str(hit["rank"]), f"{hit['score']:.3f}", *map(cell, cells))
    return table
