"""The search for words among a million stems: a page of `GET /stems?q=`, and the rows that `/retrieve` may answer.

    python -m benchmarks.words [--rows 1000000] [--catalog FILE] [--page docs/performance.md]

The stems are rows made by SQL, put in through the triggers that keep the index; their names, tracks and collections are
made of a few words that many share and of numbers. Beside it the same page by LIKE, which reads every row.
"""

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.page import page_parser, publish, today
from indexer import Catalog, StemFilter
from model.evaluation.results import markdown_table

SECTION = "words"
TURNS = 7
INSTRUMENTS = ("bass", "drums", "keys", "guitar", "vocals", "strings", "brass", "percussion")
MOODS = ("warm", "dark", "dusty", "bright", "late", "slow", "deep", "wide", "dry", "soft")
ASKED = (
    ("bass", "of every eighth stem"),
    ("ba", "two letters"),
    ("p", "a letter"),
    ("drums dusty", "two words, each of many"),
    ("bass drums", "two of many that no stem has both"),
    ("song 4711", "a track"),
    ("dusty bass song 4711", "four words"),
    ("pack 17 percu", "of a collection"),
    ("zither", "no stem's"),
)
MAKE = """
INSERT INTO stems (id, sha256, file_name, title, instrument, instrument_caseless, track, track_caseless, collection,
    collection_caseless, format, duration_s, sample_rate, channels, warnings, state, windows, created_at, seq, words)
WITH RECURSIVE n(i) AS (SELECT :first UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :last),
    named AS (SELECT i, (SELECT word FROM instruments WHERE at = i % 8) AS instrument, 'song ' || (i / 20) AS track,
        (SELECT word FROM moods WHERE at = (i / 8) % 10) || ' take ' || (i % 97) AS title, 'pack ' || (i % 400) AS pack
        FROM n)
SELECT printf('%016x', i), printf('%064x', i), title || '.wav', title, instrument, instrument, track, track, pack, pack,
    'WAV', 8.0, 44100, 2, '[]', 'ready', 2, 1.7e9, 1, title || ' wav ' || instrument || ' ' || track || ' ' || pack
FROM named
"""


def make_stems(path: Path, rows: int) -> None:
    """Put so many stems in."""
    with sqlite3.connect(path) as sql:
        for name, words in (("instruments", INSTRUMENTS), ("moods", MOODS)):
            sql.execute(f"CREATE TEMP TABLE {name} (at INTEGER PRIMARY KEY, word TEXT)")
            sql.executemany(f"INSERT INTO {name} VALUES (?, ?)", enumerate(words))
        for first in range(0, rows, 50_000):
            sql.execute(MAKE, {"first": first, "last": min(first + 50_000, rows)})
            sql.commit()
    sql.close()


async def milliseconds(ask: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """The fastest of some turns, and the processor's time of the median one."""
    clock, processor = [], []
    for _ in range(TURNS):
        began, worked = time.perf_counter(), time.process_time()
        await ask()
        clock.append(1000 * (time.perf_counter() - began))
        processor.append(1000 * (time.process_time() - worked))
    return min(clock), float(np.median(processor))


def by_like(path: Path, text: str) -> float:
    """The processor's milliseconds of a page that is found without an index, once."""
    where = " AND ".join("words LIKE ?" for _ in text.split())
    with sqlite3.connect(path) as sql:
        worked = time.process_time()
        holds = [f"%{word}%" for word in text.split()]
        sql.execute(f"SELECT * FROM stems WHERE {where} ORDER BY row LIMIT 51", holds).fetchall()
        took = 1000 * (time.process_time() - worked)
    sql.close()
    return took


async def measure(path: Path, rows: int, *, there: bool) -> str:
    catalog = await Catalog.open(f"sqlite+aiosqlite:///{path}")
    try:
        if not there:
            await asyncio.to_thread(make_stems, path, rows)
        table = []
        for text, what in ASKED:
            wanted = StemFilter(text=text)

            async def page(cursor: str | None, wanted: StemFilter = wanted) -> object:
                return await catalog.list_stems(wanted, limit=50, cursor=cursor)

            fastest, first = await milliseconds(partial(page, None))
            _, last = await milliseconds(partial(page, f"s{rows * 9 // 10}"))
            worked = time.process_time()
            found = await catalog.rows_allowed(wanted)
            every = 1000 * (time.process_time() - worked)
            assert found is not None
            like = await asyncio.to_thread(by_like, path, text)
            times = f"{fastest:.1f}", f"{first:.1f}", f"{last:.1f}", f"{every:.0f}", f"{like:.0f}"
            table.append([f"`{text}`", what, f"{len(found):,}", *times])
        size = (await asyncio.to_thread(path.stat)).st_size / 2**20
    finally:
        await catalog.close()
    head = ["q", "", "stems", "page, ms", "page, CPU ms", "late page, CPU ms", "all rows, CPU ms", "by LIKE, CPU ms"]
    said = f"{rows:,} stems; {size:.0f} MiB on disk. ms: the fastest of {TURNS} turns; CPU ms: medians, "
    said += "all rows and LIKE once."
    return f"Measured {today()}: {said}\n\n{markdown_table(head, table)}"


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--catalog", type=Path, help="to be made and kept, or asked as it is")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.catalog or Path(folder) / "catalog.sqlite"
        publish(asyncio.run(measure(path, arguments.rows, there=path.exists())), arguments.page, SECTION)


if __name__ == "__main__":
    main()
