"""`phalar ingest`: files and folders into the catalog of a running service."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from service.commands.client import NewStem
from service.commands.console import FAILED, LOCAL, Key, Tags, Url, bar, err, fail, service

AUDIO_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".m4a", ".mp4", ".aac"}


def ingest(
    paths: Annotated[list[Path], typer.Argument(exists=True, help="Audio files, and folders of them.")],
    url: Url = LOCAL,
    key: Key = None,
    instrument: Annotated[str | None, typer.Option(help="Said of every file.")] = None,
    track: Annotated[str | None, typer.Option(help="Default: the folder a file lies in, below the one given.")] = None,
    collection: Annotated[str | None, typer.Option(help="Said of every file.")] = None,
    tag: Tags = None,
    wait: Annotated[bool, typer.Option(help="Wait until every stem is ready.")] = True,
) -> None:
    """Put stems into the catalog.

    Files that are there already are skipped, so an ingest that was cut off is simply started again.

    Example: phalar ingest ~/stems --collection mine
    """
    said = {"instrument": instrument, "collection": collection, "tags": tag or []}
    files = [
        NewStem(path, {name: value for name, value in (said | {"track": track or folder}).items() if value})
        for path, folder in _audio_files(paths)
    ]
    if not files:
        fail("no audio files there", FAILED)
    ready = known = failed = 0
    with service(url, key) as client, bar() as progress:
        task = progress.add_task("stems", total=len(files))
        for outcome in client.ingest(files, wait=wait):
            progress.advance(task)
            known += outcome.known
            if outcome.problem is not None:
                failed += 1
                detail = outcome.problem.get("detail") or ""
                progress.console.print(
                    f"{outcome.path}: {outcome.problem.get('title')}: {detail}", markup=False, soft_wrap=True
                )
            else:
                ready += not outcome.known
    err.print(f"{ready} {'ready' if wait else 'accepted'}, {known} known already, {failed} failed")
    if failed:
        raise typer.Exit(FAILED)


def _audio_files(paths: list[Path]) -> Iterator[tuple[Path, str | None]]:
    """Every audio file at or below the paths, sorted, with the folder it lies in below a given one."""
    for path in paths:
        if path.is_file():
            yield path, None
            continue
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file() and not file.name.startswith("._"):
                yield file, file.parent.name if file.parent != path else None
