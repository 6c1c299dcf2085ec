"""`phalar analyse`: what files are, musically, said or heard, in this process."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from service.commands.console import FAILED, bar, cell, out, say
from service.commands.threads import waiting_threads_sleep

COLUMNS = ("file", "tempo", "key", "kind", "first beat", "from")


def analyse(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Audio files.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line instead of a table.")] = False,
) -> None:
    """Tell tempo, beats, key and kind of files: what their tags, chunks and names say, else what is heard.

    Example: phalar analyse loops/*.wav
    """
    waiting_threads_sleep()
    from rich.table import Table

    from model.audio import AudioError, load_clip
    from model.audio.analysis import analyse as analysis_of
    from model.audio.said import said_of_file

    table, failed = Table(*COLUMNS), False
    with bar() as progress:
        for path in progress.track(files, description="files"):
            try:
                told = analysis_of(load_clip(path).waveform, said_of_file(path)).as_dict()
            except (AudioError, OSError) as error:
                say(f"{path}: {error}")
                failed = True
                continue
            if as_json:
                print(json.dumps({"file": str(path)} | told))
            else:
                table.add_row(cell(path.name), *_cells(told))
                for warning in told["warnings"]:
                    say(f"{path.name}: {warning}")
    if table.row_count:
        out.print(table)
    if failed:
        raise typer.Exit(FAILED)


def _cells(told: dict[str, Any]) -> list[str]:
    def unsure(fact: str) -> str:
        return "" if told["sure"].get(fact, True) else "?"

    tempo = "" if told["tempo_bpm"] is None else f"{told['tempo_bpm']:.2f}{unsure('tempo_bpm')}"
    key = (told["key"] or "") + unsure("key")
    beat = "" if told["first_beat_s"] is None else f"{told['first_beat_s']:.3f} s"
    sources = ", ".join(f"{fact.removesuffix('_bpm')}: {source}" for fact, source in sorted(told["sources"].items()))
    return [tempo, key, told["kind"], beat, sources]
