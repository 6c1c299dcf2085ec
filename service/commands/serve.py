"""`phalar serve`: everything on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from service.commands.console import FAILED, fail, log_to_stderr, read_settings
from service.commands.threads import waiting_threads_sleep


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; beyond loopback, keys are required.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the catalog, audio, index and queue.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes.")] = None,
    demo: Annotated[bool, typer.Option(help="Fill an empty catalog with music of our own composer.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what the processes log.")] = False,
) -> None:
    """Run everything on this machine: the API and its page, workers, and a private queue. Ctrl-C ends it all.

    Every setting is also an environment variable; see docs/settings.md.
    """
    waiting_threads_sleep()
    from service.local.serve import serve as run
    from service.local.supervisor import ProcessError
    from service.settings import InsecureBind

    log_to_stderr()
    settings = read_settings(host=host, port=port, data=data, workers=workers)
    try:
        run(settings, demo=demo, verbose=verbose)
    except (ProcessError, InsecureBind) as error:
        fail(str(error), FAILED)
