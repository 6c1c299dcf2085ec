"""`phalar retrieve`: ask a running service which stems fit a mix."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from service.commands.console import LOCAL, Favourite, Key, Q, RatingMin, Tags, Url, cell, err, out, service, words


class Kind(StrEnum):
    """What a stem is."""

    loop = "loop"
    one_shot = "one-shot"
    piece = "piece"


def retrieve(
    mix: Annotated[
        Path | None, typer.Argument(exists=True, dir_okay=False, readable=True, help="The partial mix.")
    ] = None,
    stem_id: Annotated[
        list[str] | None, typer.Option(help="Or: stems of the catalog that make up the mix.", callback=words)
    ] = None,
    mix_id: Annotated[
        str | None, typer.Option(help="Or: the mix of an answer before, by its `mix_id`.", callback=words)
    ] = None,
    place: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID[:START_S[:SPEED[:TRANSPOSE[:GAIN_DB]]]]",
            help="A stem of the catalog that is mixed in before the search, as a hit says. May be given several times.",
        ),
    ] = None,
    complete: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Instruments: the best stem of each.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=100, help="Hits wanted; 10. With --complete, alternatives.")
    ] = None,
    align: Annotated[
        Literal["beats", "search", "grid"] | None,
        typer.Option(
            help="beats (the default): stems may be played at the mix's tempo and in keys nearby; search: as recorded, "
            "the mix starting anywhere; grid: as recorded, on the windows' grid."
        ),
    ] = None,
    tempo: Annotated[float | None, typer.Option(help="Of the mix, beats a minute; else it is heard.")] = None,
    mix_key: Annotated[
        str | None, typer.Option(help="Of the mix, such as 'F# minor'; else it is heard.", callback=words)
    ] = None,
    max_stretch: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.5, help="How far stems' tempi may lie from the mix's, as a share of the faster one; 0.12."
        ),
    ] = None,
    max_transpose: Annotated[
        int | None, typer.Option(min=0, max=6, help="Semitones that stems may be moved, up or down; 2.")
    ] = None,
    instrument: Annotated[list[str] | None, typer.Option(help="Any of these.", callback=words)] = None,
    tag: Tags = None,
    track: Annotated[list[str] | None, typer.Option(help="Any of these.", callback=words)] = None,
    collection: Annotated[list[str] | None, typer.Option(help="Any of these.", callback=words)] = None,
    musical_key: Annotated[
        list[str] | None, typer.Option(help="Any of these, such as 'F# minor'.", callback=words)
    ] = None,
    key_match: Annotated[
        Literal["exact", "compatible"] | None,
        typer.Option(help="compatible: relative keys and those a fifth away too."),
    ] = None,
    kind: Annotated[list[Kind] | None, typer.Option(help="Any of these.")] = None,
    tempo_min: Annotated[float | None, typer.Option(help="Beats a minute.")] = None,
    tempo_max: Annotated[float | None, typer.Option(help="Beats a minute.")] = None,
    group_duplicates: Annotated[
        bool | None,
        typer.Option("--group-duplicates/--all-duplicates", help="One hit of stems that are the same audio, or all."),
    ] = None,
    tempo_octaves: Annotated[
        bool | None, typer.Option("--tempo-octaves", help="Half and double of these tempi too.")
    ] = None,
    q: Q = None,
    favourite: Favourite = None,
    rating_min: RatingMin = None,
    saved: Annotated[
        str | None, typer.Option(help="A saved search; what else is given stands before it.", callback=words)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the service's answer as it is.")] = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Find the stems that fit a mix, best first, each with the second where it fits and how it is to be played.

    Example: phalar retrieve half-a-song.wav --instrument bass
    """
    if (mix is not None) + bool(stem_id) + (mix_id is not None) != 1:
        raise typer.BadParameter("give either a file, or --stem-id, or --mix-id")
    form: dict[str, Any] = {
        "stem_id": stem_id,
        "mix_id": mix_id,
        "placed": json.dumps([_placed(text) for text in place]) if place else None,
        "complete": complete,
        "limit": limit,
        "align": align,
        "tempo_bpm": tempo,
        "mix_key": mix_key,
        "max_stretch": max_stretch,
        "max_transpose": max_transpose,
        "instrument": instrument,
        "tag": tag,
        "track": track,
        "collection": collection,
        "key": musical_key,
        "tempo_min": tempo_min,
        "tempo_max": tempo_max,
        "key_match": key_match,
        "kind": kind,
        "tempo_octaves": tempo_octaves,
        "group_duplicates": group_duplicates,
        "q": q,
        "favourite": favourite,
        "rating_min": rating_min,
        "saved": saved,
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
        out.print(_heard(answer["mix"]))
        out.print(_table(answer))
        for slot in (answer.get("band") or {"slots": ()})["slots"]:
            others = [f"{cell(hit['stem']['title'])} ({hit['score']:.3f})" for hit in slot["alternatives"]]
            said = cell(slot["note"]) if slot["note"] else f"or {', '.join(others) or 'none'}"
            out.print(f"{cell(slot['instrument'])}: {said}")
        if answer.get("mix_id"):
            out.print(f"the same mix again: --mix-id {answer['mix_id']}")


def _placed(text: str) -> dict[str, Any]:
    """What `--place` says, as the service takes it."""
    stem_id, *said = text.split(":")
    names = ("start_s", "speed", "transpose", "gain_db")
    try:
        how: dict[str, Any] = {name: float(number) for name, number in zip(names, said, strict=False) if number}
        if len(said) > len(names) or not how.get("transpose", 0.0).is_integer():
            raise ValueError
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not ID:START_S:SPEED:TRANSPOSE:GAIN_DB", param_hint="--place") from None
    return {"stem_id": stem_id, **how}


def _heard(mix: dict[str, Any]) -> str:
    """Tempo and key of a mix, each with its source."""
    said = []
    for name, unit, none in (("tempo_bpm", " BPM", "no steady tempo"), ("key", "", "no key")):
        value = mix[name]
        sure = "" if mix["sure"].get(name, True) else ", not sure"
        shown = f"{value:.4g}" if isinstance(value, float) else value
        said.append(none if value is None else f"{cell(shown)}{unit} ({cell(mix['sources'][name])}{sure})")
    return f"mix: {', '.join(said)}"


def _way(hit: dict[str, Any]) -> str:
    """How a stem is to be played: "+4.0 % +2 st"."""
    percent = round(100 * (hit["speed"] - 1), 1)
    parts = [f"{percent:+.1f} %" if percent else "", f"{hit['transpose']:+d} st" if hit["transpose"] else ""]
    return " ".join(filter(None, parts)) or "as recorded"


def _table(answer: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("", "score", "title", "instrument", "track", "place", "play", "id"):
        table.add_column(
            name,
            justify="right" if name in ("", "score") else "left",
            no_wrap=name not in ("title", "instrument", "track"),
        )
    for hit in answer["hits"]:
        stem, start_s = hit["stem"], hit["start_s"]
        if stem.get("kind") == "loop":
            start_s %= stem["duration_s"]  # it goes round from the mix's start on
        if start_s < 0:
            start_s /= hit["speed"]  # it enters so long after, in the mix's seconds
        minutes, seconds = divmod(round(abs(start_s), 2), 60)
        place = f"from {minutes:.0f}:{seconds:05.2f}" if start_s >= 0 else f"enters at {minutes:.0f}:{seconds:05.2f}"
        copies = len(hit["copies"])
        title = stem["title"] + (f" +{copies} {'copy' if copies == 1 else 'copies'}" if copies else "")
        cells = (title, stem["instrument"], stem["track"], place, _way(hit), stem["id"])
        table.add_row(str(hit["rank"]), f"{hit['score']:.3f}", *map(cell, cells))
    return table
