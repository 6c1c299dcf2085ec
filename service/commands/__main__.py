"""The `phalar` command.

A command parses and prints. What is dear to load, torch above all, it imports when it runs, so that `--help` and what
only asks a service answer at once.
"""

import io
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from model.device import DeviceUnavailable
from model.evaluation.commands import evaluate_app
from model.training.commands import train_app
from service.commands.analyse import analyse
from service.commands.api import api
from service.commands.checkpoint import checkpoint_app
from service.commands.console import FAILED, Commands, complain
from service.commands.demo import demo
from service.commands.doctor import doctor
from service.commands.embed import embed
from service.commands.evaluate import band, catalog
from service.commands.export import export
from service.commands.ingest import ingest
from service.commands.keys import keys_app
from service.commands.reindex import reindex, rollback
from service.commands.retrieve import retrieve
from service.commands.serve import serve
from service.commands.size import size
from service.commands.stems import stems
from service.commands.worker import worker

app = typer.Typer(
    name="phalar",
    cls=Commands,
    help="Find the stems of a catalog that fit a partial mix, in harmony and in time.",
    epilog="Exit codes: 0 fine; 1 something failed (a file, a job); 2 wrong usage; "
    "3 no service answers; 4 the service refused; 130 Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for command in (serve, worker, ingest, stems, retrieve, export, analyse, embed, reindex, rollback, doctor, size, demo):
    app.command()(command)
app.command(hidden=True)(api)
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(keys_app, name="keys")
evaluate_app.command()(catalog)
evaluate_app.command()(band)
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(train_app, name="train")


def main() -> None:
    """The entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that has no letter for it is no reason to end
    try:
        app()
    except DeviceUnavailable as error:
        complain(str(error))
        sys.exit(FAILED)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if show_version:
        print(version("phalar-retrieval"))
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


if __name__ == "__main__":
    main()
