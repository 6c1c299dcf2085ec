"""How commands talk to a person, and how they end."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console

from model.errors import Told

if TYPE_CHECKING:
    from rich.progress import Progress  # dear: only who shows a bar imports it

FAILED = 1

# In a pipe a table is as wide as its words; a terminal says how wide it is, or COLUMNS.
out = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)
err = Console(stderr=True)


def fail(sentence: str, code: int = FAILED) -> NoReturn:
    """End with a sentence on stderr."""
    err.print(f"phalar: {sentence}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


@contextmanager
def refusals() -> Iterator[None]:
    """Errors that carry facts end the command in their sentence, and so does a package that is not installed."""
    try:
        yield
    except (Told, ImportError) as error:
        fail(str(error))


def bar(*, transient: bool = False, silent: bool = False) -> "Progress":
    """A bar on stderr for each thing that is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, transient=transient, disable=silent)


@contextmanager
def counted(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of one thing, gone when it is done: call it with how many are done and how many there are."""
    with bar(transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, most: progress.update(task, completed=done, total=most)
