"""What commands share: how they talk to a person, how they end, and how they reach the service."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from model.training.console import FAILED, bar, err, fail, out
from service.commands.client import Client, Refused, ServiceUnreachable

UNREACHABLE, REFUSED = 3, 4
__all__ = ["FAILED", "bar", "err", "fail", "out"]

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


def log_to_stderr(name: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for noisy in ("alembic", "asyncio", "faiss", "httpcore", "httpx", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
