"""What commands share: how they talk to a person, how they end, and how they reach the service."""

import errno
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich.markup import escape
from typer.core import TyperGroup

from model.training.console import FAILED as FAILED
from model.training.console import bar as bar
from model.training.console import err as err
from model.training.console import out as out
from service.commands.client import PATIENCE_S, BadAddress, BadKey, BadProxy, Client, Refused, ServiceUnreachable
from service.text import BadText, escaped, said, shown

if TYPE_CHECKING:
    from service.settings import Settings

NO_ROOM = {errno.ENOSPC, errno.EDQUOT}  # of which the system does not say for which file
WRONG_USAGE, UNREACHABLE, REFUSED, INTERRUPTED = 2, 3, 4, 130

Url = Annotated[str, typer.Option(envvar="PHALAR_URL", help="Where the service listens.")]
Key = Annotated[str | None, typer.Option(envvar="PHALAR_KEY", help="API key, where the service wants one.")]
LOCAL = "http://127.0.0.1:8000"


Words = TypeVar("Words", str | None, list[str] | None)
Written = TypeVar("Written", Path, Path | None)


def words(given: Words) -> Words:
    """The callback of an option that is said of stems, or asked of them."""
    try:
        return given and ([said(word) for word in given] if isinstance(given, list) else said(given))
    except BadText as error:
        raise typer.BadParameter(str(error)) from None


def in_a_folder(path: Written) -> Written:
    """The callback of an option that names a file to write: said before the work, not after it."""
    if path is None:
        return path
    from service.settings import writable

    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {str(path.parent)!r}")
    if not writable(path.absolute().parent):
        raise typer.BadParameter(f"nothing may be written into the folder {str(path.parent)!r}")
    return path


Tags = Annotated[list[str] | None, typer.Option("--tag", help="May be given several times.", callback=words)]

Q = Annotated[
    str | None,
    typer.Option("--q", help="Words of names, instruments, tracks, collections and tags; all of them.", callback=words),
]
Favourite = Annotated[bool | None, typer.Option("--favourite/--no-favourite", help="Favourites alone; all others.")]
RatingMin = Annotated[int | None, typer.Option(min=0, max=5, help="Rated so, or better.")]


class Commands(TyperGroup):
    """All commands, each of which ends with an exit code and says why in one line."""

    def main(self, *args: Any, **more: Any) -> Any:
        """Run one; what goes wrong is a line on stderr, and no traceback unless the fault is ours."""
        code = None
        try:
            code = super().main(*args, **{**more, "standalone_mode": False})
            sys.stdout.flush()
        except typer.TyperException as error:  # what typer found wrong with the arguments, or its page of help
            code = getattr(error, "exit_code", WRONG_USAGE)
            if message := getattr(error, "format_message", error.__str__)():
                complain(" ".join(message.split()))
        except BrokenPipeError:  # whoever read had enough
            code = FAILED
        except OSError as error:
            if error.filename is None and error.errno not in NO_ROOM:
                raise
            complain(": ".join(str(part) for part in (error.filename, error.strerror) if part is not None))
            code = FAILED
        if code == INTERRUPTED:
            complain("interrupted")
        try:
            sys.stdout.flush()
        except OSError:  # nobody takes it, and Python would say so once more when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(code)


def read_settings(**given: Any) -> "Settings":
    """What the options and the environment say; ends the command where they cannot be."""
    from pydantic import ValidationError

    from service.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        fail(wrong, WRONG_USAGE)


@contextmanager
def service(url: str, key: str | None, *, for_ever: bool = False) -> Iterator[Client]:
    """Its client; `for_ever`: once it has answered it is waited for however long it is away."""
    patience_s = math.inf if for_ever else PATIENCE_S
    with expected_errors(), Client(url, key, patience_s=patience_s) as client:
        yield client


@contextmanager
def expected_errors() -> Iterator[None]:
    try:
        yield
    except ServiceUnreachable as error:
        fail(str(error), UNREACHABLE)
    except (BadAddress, BadKey, BadProxy) as error:
        fail(str(error), WRONG_USAGE)
    except Refused as error:
        fail(str(error), WRONG_USAGE if error.problem.get("type") == "/problems/invalid-request" else REFUSED)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside a file, to write what takes its place; where that fails, the file stays and nothing is left."""
    making = target.with_name(f".{target.name}.part")
    try:
        yield making
        os.replace(making, target)
    finally:
        making.unlink(missing_ok=True)


def say(line: str) -> None:
    """A line on stderr, with nothing in it that a terminal would obey."""
    err.print(escaped(line), markup=False, highlight=False, soft_wrap=True)


def complain(sentence: str) -> None:
    """Say what is wrong."""
    lines = "\n".join(map(escaped, sentence.split("\n")))
    err.print(f"phalar: {lines}", style="red", markup=False, highlight=False, soft_wrap=True)


def fail(sentence: str, code: int) -> NoReturn:
    """Say what is wrong, and end the command."""
    complain(sentence)
    raise typer.Exit(code)


def cell(text: str | None) -> str:
    """Text that somebody else wrote, for rich to print."""
    return escape(shown(text or ""))


def begin_process() -> "Settings":
    """What a process of the service does first: it logs, keeps its threads few and its files private."""
    from service.commands.threads import keep_numpy_on_one_thread

    log_to_stderr()
    keep_numpy_on_one_thread()
    settings = read_settings()
    settings.keep_private()
    return settings


def log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for noisy in ("alembic", "asyncio", "faiss", "httpcore", "httpx", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
