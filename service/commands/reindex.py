"""`phalar reindex` and `phalar rollback`: the next index of a running service, and the one before."""

import json
from typing import Annotated

import typer
from rich.markup import escape

from service.commands.console import FAILED, LOCAL, Key, Url, err, fail, service


def reindex(
    checkpoint: Annotated[str | None, typer.Option(help="A file in the service's checkpoints folder.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Eigenvalues the fold keeps; default: what fits.")] = None,
    index_type: Annotated[str | None, typer.Option(help="flat, fp16, sq8 or ivf; default: the best that fits.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait until the new index answers.")] = True,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Build the next index beside the live one, and swap. Queries go on meanwhile."""
    with service(url, key) as client:
        job = client.reindex(checkpoint, rank, index_type)
        if wait:
            with err.status("reindexing") as status:
                job = client.follow(job, lambda seen: status.update(f"reindexing: {escape(str(seen['progress']))}"))
    if job["state"] == "failed":
        fail(f"{job['problem'].get('title')}: {job['problem'].get('detail')}", FAILED)
    print(json.dumps(job["result"] if wait else job, indent=2))


def rollback(url: Url = LOCAL, key: Key = None) -> None:
    """Let the previous index answer again."""
    with service(url, key) as client:
        print(json.dumps(client.roll_back(), indent=2))
