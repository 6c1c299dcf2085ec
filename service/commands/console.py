"""What commands share: how they talk to a person, how they end, and how they reach the service."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from service.commands.client import Client, Refused, ServiceUnreachable

FAILED, UNREACHABLE, REFUSED = 1, 3, 4

out = Console()
err = Console(stderr=True)

Url = Annotated[str, typer.Option(envvar="PHALAR_URL", help="Where the service listens.")]
Key = Annotated[str | None, typer.Option(envvar="PHALAR_KEY", help="API key, where the service wants one.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="May be given several times.")]
LOCAL = "http://127.0.0.1:8000"


@contextmanager
def service(url: str, key: str | None) -> Iterator[Client]:
    with expected_errors(), Client(url, key) as client:
        yield client


@contextmanager
def expected_errors() -> Iterator[None]:
    try:
        yield
    except ServiceUnreachable as error:
        fail(str(error), UNREACHABLE)
    except Refused as error:
        fail(str(error), REFUSED)


def bar(*, transient: bool = False) -> Any:
    """A bar on stderr for each thing that is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=transient,
    )


def fail(sentence: str, code: int) -> Any:
    err.print(f"phalar: {sentence}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def log_to_stderr(name: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for noisy in ("alembic", "asyncio", "faiss", "httpcore", "httpx", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
