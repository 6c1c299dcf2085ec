"""`phalar size`: what a catalog would take."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from service.commands.console import WRONG_USAGE, fail, out


def size(
    stems: Annotated[int, typer.Option(min=1, help="Stems of the catalog.")],
    minutes: Annotated[float, typer.Option(min=0.02, help="That each lasts.")] = 3.0,
    queries_per_second: Annotated[float, typer.Option(min=0, help="Searches with 8 s of mix.")] = 1.0,
    machine: Annotated[
        Path | None,
        typer.Option(help="Figures that `python -m benchmarks.sizing --write` wrote; default: those we measured."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan.")] = False,
) -> None:
    """Tell what a catalog takes: windows, disk, memory by index, workers, hours to ingest, cost of a reindex.

    Example: phalar size --stems 1000000 --minutes 3 --queries-per-second 5
    """
    from service.local.sizing import MEASURED, Machine, NotMeasured, plan, told

    try:
        figures = Machine.read(machine or MEASURED)
    except NotMeasured as error:
        fail(str(error), WRONG_USAGE)
    found = plan(figures, stems, minutes, queries_per_second)
    if as_json:
        print(json.dumps(asdict(found), indent=2))
        return
    from rich.table import Table

    facts = Table(box=None, show_header=False)
    for what, how in (
        ("machine", figures.name),
        ("windows", f"{found.windows:,}"),
        ("SQL", told(found.sql_bytes)),
        ("audio", f"{told(found.audio_bytes)} as FLAC of one channel and 16 bits"),
        (
            "to ingest",
            f"{found.ingest_core_h:,.1f} hours of a core; {found.ingest_h:,.1f} hours on {figures.cores} cores",
        ),
        ("to reindex", f"{found.reindex_h:,.1f} hours of a core; with another model as long as the ingest, too"),
        ("workers", f"{found.workers}, of one thread, for {queries_per_second:g} searches a second"),
    ):
        facts.add_row(what, how)
    out.print(facts)
    table = Table(box=None, header_style="bold")
    for name in ("index", "memory and disk", "fits", "core seconds a search", "cores for the searches"):
        table.add_column(name, justify="left" if name == "index" else "right")
    for kind in found.kinds:
        fits = "yes" if kind.fits else "no"
        table.add_row(kind.name, told(kind.bytes), fits, f"{kind.query_s:,.2f}", f"{kind.cores:,.1f}")
    out.print(table)
    out.print("It wants: " + "; ".join(found.advice) + ". See deploy/runbook.md, Growth.", soft_wrap=True)
