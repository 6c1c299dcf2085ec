"""`phalar demo`: compose a small catalog."""

from pathlib import Path
from typing import Annotated

import typer

from service.commands.console import FAILED, Key, expected_errors, fail, log_to_stderr


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where the files go.")] = Path("data/demo"),
    tracks: Annotated[int, typer.Option(min=1)] = 12,
    seconds: Annotated[float, typer.Option(min=2.0)] = 20.0,
    seed: Annotated[int, typer.Option(help="Another seed, other music.")] = 0,
    url: Annotated[str | None, typer.Option(help="Ingest into the service there; default: only write files.")] = None,
    key: Key = None,
) -> None:
    """Compose a small catalog: tracks of drums, bass, pads, keys and lead that belong together."""
    log_to_stderr()
    if url is None:
        from service.local.demo import compose_demo

        for stems in compose_demo(folder, tracks, seconds, seed):
            print(stems[0].path.parent)
        return
    from service.local.serve import ingest_demo

    with expected_errors():
        failed = ingest_demo(url, key or None, folder, tracks, seconds, seed)
    if failed:
        fail(f"{failed} stems failed", FAILED)
