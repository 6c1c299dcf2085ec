"""`phalar export`: a mix and the hits that are to go with it, as a ZIP that a DAW opens."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from service.commands.console import LOCAL, WRONG_USAGE, Key, Url, fail, in_a_folder, replacing, say, service, words


def export(
    mix: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="The partial mix.")],
    hits: Annotated[
        str, typer.Option(help="What `phalar retrieve --json` printed, or a list of placed stems; -: standard input.")
    ],
    rank: Annotated[list[int] | None, typer.Option(help="Only these hits; may be given several times.")] = None,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Where the ZIP goes; else beside you.", callback=in_a_folder)
    ] = None,
    tempo: Annotated[float | None, typer.Option(help="Of the mix, beats a minute; else that of the stems.")] = None,
    mix_key: Annotated[
        str | None, typer.Option(help="Of the mix, such as 'F# minor'; else that of the stems.", callback=words)
    ] = None,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Write fitted stems, a DAWproject and a Reaper project of a mix and its hits into a ZIP.

    Example: phalar retrieve half-a-song.wav --json | phalar export half-a-song.wav --hits - --rank 1
    """
    try:
        text = sys.stdin.buffer.read() if hits == "-" else Path(hits).read_bytes()  # of any Unicode encoding
        placed = _placed(json.loads(text), rank)
    except (ValueError, TypeError, KeyError, AttributeError):
        fail(f"{hits}: neither an answer of `phalar retrieve --json` nor a list of placed stems", WRONG_USAGE)
    if not placed:
        fail("no hit has such a rank" if rank else "there are no hits", WRONG_USAGE)
    form = {"placed": json.dumps(placed), "tempo_bpm": tempo, "mix_key": mix_key}
    target = out or Path(f"{mix.stem} session.zip")
    with service(url, key) as client:
        archive = client.export(mix, {name: value for name, value in form.items() if value is not None})
    with replacing(target) as making:
        making.write_bytes(archive)
    say(f"{target}: the mix and {len(placed)} {'stem' if len(placed) == 1 else 'stems'}")


def _placed(told: Any, ranks: list[int] | None) -> list[dict[str, Any]]:
    if isinstance(told, list):
        return [dict(one) for at, one in enumerate(told, start=1) if not ranks or at in ranks]
    return [
        {"stem_id": hit["stem"]["id"], **{name: hit[name] for name in ("start_s", "speed", "transpose")}}
        for hit in told["hits"]
        if not ranks or hit["rank"] in ranks
    ]
