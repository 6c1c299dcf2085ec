"""What the benchmarks' command lines share: their own docstring as help, a page that their tables go into, and what is
said over a table."""

import argparse
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from model.evaluation.results import write_section


def page_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with `--page`, and a benchmark's docstring as its help."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="write every table into its section of this page")
    return parser


def add_folders(parser: argparse.ArgumentParser) -> None:
    """`--stems` and `--split`, as often as there are folders of tracks; see `folders_of`."""
    parser.add_argument("--stems", type=Path, action="append", required=True, help="tracks; may be given several times")
    parser.add_argument("--split", action="append", required=True, help="of each folder's tracks: all, test, ...")


def folders_of(arguments: argparse.Namespace) -> Iterator[tuple[Path, str]]:
    """Each folder of tracks with its split."""
    return zip(arguments.stems, arguments.split, strict=True)


def publish(text: str, page: Path | None, section: str) -> None:
    """Print a benchmark's tables; write them into the page's section, where a page is named."""
    print(text, flush=True)
    if page:
        write_section(page, section, text)


def today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


def processor() -> str:
    """Its name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
