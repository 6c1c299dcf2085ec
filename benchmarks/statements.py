"""What one statement costs a query: in a transaction through aiosqlite, and in one thread as `Database.rows` has it.

    python -m benchmarks.statements [--page docs/decisions/one-statement-one-errand.md]

The statement is the one that every query asks, where `live` points and the clock; once with nothing between two calls,
once with 20 ms of rest, after which caches and sleeping cores make everything dearer, as in a query of a lone client.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable

import numpy as np
from sqlalchemy import select

from benchmarks.page import page_parser, publish
from indexer import Catalog
from indexer.catalog.tables import clock
from model.evaluation.results import markdown_table

SECTION = "statements"
REPEATS, TURNS = 50, 5


async def milliseconds(ask: Callable[[], Awaitable[object]], pause_s: float) -> float:
    times = []
    for _ in range(REPEATS):
        await asyncio.sleep(pause_s)
        began = time.perf_counter()
        await ask()
        times.append(1000 * (time.perf_counter() - began))
    return float(np.median(times))


async def measure() -> str:
    with tempfile.TemporaryDirectory() as folder:
        catalog = await Catalog.open(f"sqlite+aiosqlite:///{folder}/catalog.sqlite")
        statement = select(clock.c.value)

        async def transaction() -> None:
            async with catalog.database.read() as sql:
                (await sql.execute(statement)).all()

        async def one_errand() -> None:
            await catalog.database.rows(statement)

        rows = []
        try:
            for pause_s in (0.0, 0.02):
                turns = [[await milliseconds(ask, pause_s) for ask in (transaction, one_errand)] for _ in range(TURNS)]
                through, alone = np.median(turns, axis=0)
                rows.append([f"{pause_s * 1000:.0f}", f"{through:.2f}", f"{alone:.2f}", f"{through / alone:.1f}"])
        finally:
            await catalog.close()
    return markdown_table(["rest, ms", "transaction, ms", "one thread, ms", "ratio"], rows)


def main() -> None:
    parser = page_parser(__doc__)
    arguments = parser.parse_args()
    table = asyncio.run(measure())
    publish(table, arguments.page, SECTION)


if __name__ == "__main__":
    main()
