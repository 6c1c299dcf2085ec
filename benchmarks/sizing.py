"""What a stem takes on this machine: bytes in SQL, audio store and index, and seconds of its cores; for `phalar size`.

    python -m benchmarks.sizing --write service/local/measured.json --page deploy/sizing.md
    python -m benchmarks.sizing --check --windows 100000 --page deploy/sizing.md

Short and long tracks of the demo's composer are ingested into an installation of its own, a worker on each core: what
differs between them is what a second of audio takes, and the rest what a stem takes. Then it is searched and reindexed,
small and filled with the same embeddings again. Seconds are of the service's processes, not of the clock, so that what
else the machine does changes them little; only `busy` needs a free machine. `--check` ingests other stems and says how
far `phalar size` is from what that takes.
"""

import asyncio
import os
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import get_args

import faiss
import numpy as np

from benchmarks.bare import compose, mixes, variations
from benchmarks.ingest import ingest
from benchmarks.installation import Installation
from benchmarks.large import put_stem
from benchmarks.page import page_parser, processor, publish, today
from benchmarks.processes import used_s
from benchmarks.queries import SECONDS, ask, worker_windows
from indexer import Catalog, IndexType
from indexer.index.choice import machine_memory
from model.evaluation.results import markdown_table
from service.commands.client import Client
from service.local.sizing import MEASURED, Line, Machine, plan, told
from service.settings import Settings

SHORT, LONG = (20.0, 8), (90.0, 4)  # seconds of each track, and how many
CHECKED_S = 45.0
QUERIES = 16
FILLED = 24_000  # windows of the large reindex: enough for the fold to turn to the catalog
DEEP, COMPARISONS = 500, 5
CATALOGS = (100_000, 1_000_000, 10_000_000)  # stems
STEM_MINUTES, QUERIES_PER_S = 3.0, 1.0
FAR = 0.2  # of the plan from what an ingest takes
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Ingested:
    """Some stems of one length, and what the service took for them."""

    stems: int
    audio_s: float
    windows: int
    core_s: float
    clock_s: float


class Service:
    """An installation with a worker on each core."""

    def __init__(self, folder: Path) -> None:
        settings = {"PHALAR_WORKERS": str(CORES), "PHALAR_TORCH_THREADS": "1", "PHALAR_CLAIM_AFTER_S": "6"}
        self.data = folder / "data"
        self.running = Installation(folder, settings, client_timeout_s=600)

    def core_s(self) -> float:
        """What its processes have used, with their children, seconds."""
        return used_s(self.running.pid)

    def warm(self, folder: Path) -> None:
        """The first stems load what is loaded once."""
        ingest(self.running.url, list(chain(*compose(folder / "warm", SHORT[0], 1, seed=99))))

    def ingested(self, stems: Sequence[Path]) -> Ingested:
        """Have these stems embedded."""
        before, begun = self.core_s(), time.monotonic()
        held = self._totals()
        ingest(self.running.url, stems)
        stems_s, windows = (now - then for now, then in zip(self._totals(), held, strict=True))
        return Ingested(len(stems), stems_s, round(windows), self.core_s() - before, time.monotonic() - begun)

    def _totals(self) -> tuple[float, float]:
        with sqlite3.connect(self.data / "catalog.sqlite") as sql:
            (seconds,) = sql.execute("SELECT total(duration_s) FROM stems WHERE state = 'ready'").fetchone()
            (windows,) = sql.execute("SELECT total(length(windows)) / 8 FROM embeddings").fetchone()
        return seconds, windows

    def reindexed(self, index_type: IndexType) -> tuple[float, int, Path]:
        """Core seconds of a reindex, the windows it holds, and where it lies."""
        before = self.core_s()
        with Client(self.running.url) as client:
            job = client.follow(client.reindex(None, None, index_type))
        assert job["problem"] is None, job
        folder = self.data / "index" / f"generation-{job['result']['generation']:06d}"
        return self.core_s() - before, job["result"]["windows"], folder


def measure() -> tuple[Machine, list[Ingested]]:
    """This machine's figures."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        short, long = compose(folder / "short", *SHORT), compose(folder / "long", *LONG)
        service = Service(folder)
        with service.running as running:
            service.warm(folder)
            ingested = [service.ingested(list(chain(*tracks))) for tracks in (short, long)]
            with running.client() as client:
                cuts = mixes(short, QUERIES, SECONDS)
                ask(client, cuts[0], "beats")
                before, embedded = service.core_s(), worker_windows(client)
                with ThreadPoolExecutor(CORES) as pool:
                    list(pool.map(lambda cut: ask(client, cut, "beats"), cuts))
                query_s = (service.core_s() - before) / QUERIES
                each = (worker_windows(client) - embedded) / QUERIES
                fingerprint = client.get("/readyz").json()["model"]["fingerprint"]
            service.reindexed("flat")  # the first one makes the fold
            small_s, small, _ = service.reindexed("flat")
        sql_bytes, audio_bytes = _disk(service.data)
        asyncio.run(_fill(Settings(data=service.data), fingerprint))
        with service.running:
            service.reindexed("flat")
            large_s, large, _ = service.reindexed("flat")
            kinds = {}
            for kind in get_args(IndexType):
                _, windows, at = service.reindexed(kind)
                size = sum((at / name).stat().st_size for name in ("keys.faiss", "key_errors.npz"))
                kinds[kind] = (size / windows, each * _compared_s(at / "keys.faiss") / windows)
    window_s = (large_s - small_s) / (large - small)
    machine = Machine(
        name=f"{processor()}, {CORES} cores, measured {today()}",
        cores=CORES,
        memory_bytes=machine_memory(),
        windows=_line(ingested, "windows"),
        ingest_s=_line(ingested, "core_s"),
        sql_bytes=sql_bytes,
        audio_bytes=audio_bytes,
        index_bytes={kind: size for kind, (size, _) in kinds.items()},
        busy=sum(some.core_s for some in ingested) / CORES / sum(some.clock_s for some in ingested),
        query_s=query_s,
        compare_s={kind: seconds for kind, (_, seconds) in kinds.items()},
        reindex_s=Line(max(0.0, small_s - small * window_s), window_s),
    )
    return machine, ingested


async def _fill(settings: Settings, fingerprint: str) -> None:
    """Put stems in that have the embeddings of those that are there."""
    catalog = await Catalog.open(settings.resolved_database_url)
    held = [stem async for some in catalog.all_embeddings(fingerprint) for stem in some.values()]
    put = number = 0
    while put < FILLED:
        one = held[number % len(held)]
        await put_stem(catalog, number, SHORT[0], fingerprint, one.windows, one.starts_s, one.embedding, one.beats)
        put, number = put + len(one.windows), number + 1
    await catalog.close()


def check(windows: int, machine: Machine) -> tuple[str, float]:
    """Ingest other stems, at least so many windows; a table, and how far the plan is from it, by the clock."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tracks = compose(folder / "tracks", CHECKED_S, 6, seed=50)
        each = machine.windows.of(1, CHECKED_S)
        stems = variations(tracks, round(windows / each), folder / "stems")
        service = Service(folder)
        with service.running:
            service.warm(folder)
            found = service.ingested(stems)
    planned = plan(machine, found.stems, found.audio_s / found.stems / 60, 0)
    hours, cores = found.clock_s / 3600, found.core_s / 3600
    rows = [
        ["windows", f"{planned.windows:,}", f"{found.windows:,}", f"{planned.windows / found.windows:.2f}"],
        ["hours", f"{planned.ingest_h:.3f}", f"{hours:.3f}", f"{planned.ingest_h / hours:.2f}"],
        ["hours of a core", f"{planned.ingest_core_h:.3f}", f"{cores:.3f}", f"{planned.ingest_core_h / cores:.2f}"],
    ]
    head = (
        f"Measured {today()}, load {os.getloadavg()[0]:.1f} on {CORES} cores at the end: "
        f"{found.stems} stems of {CHECKED_S:g} s, none of which the figures are from.\n\n"
    )
    table = markdown_table(["an ingest", "planned", "measured", "planned / measured"], rows)
    return head + table, abs(planned.ingest_h / hours - 1)


def _line(ingested: Sequence[Ingested], what: str) -> Line:
    """What a stem and what a second takes, of two lengths."""
    counts = np.array([[some.stems, some.audio_s] for some in ingested])
    stem, second = np.linalg.solve(counts, np.array([getattr(some, what) for some in ingested]))
    return Line(float(stem), float(second))


def _disk(data: Path) -> tuple[Line, float]:
    """Bytes of SQL of a stem and of a window, and bytes of a second of audio."""
    compact = data / "compact.sqlite"
    with sqlite3.connect(data / "catalog.sqlite") as sql:
        sql.execute("VACUUM INTO ?", (str(compact),))
        stems, audio_s = sql.execute("SELECT count(*), sum(duration_s) FROM stems").fetchone()
        columns = "length(windows) + length(starts_s) + length(embedding)"
        held, windows = sql.execute(f"SELECT sum({columns}), sum(length(windows)) / 8 FROM embeddings").fetchone()
    audio = sum(file.stat().st_size for file in (data / "audio").rglob("*") if file.is_file())
    return Line((compact.stat().st_size - held) / stems, held / windows), audio / audio_s


def _compared_s(keys: Path) -> float:
    """Core seconds to compare one query window with all keys of an index, many at a time, as a search does."""
    index = faiss.read_index(str(keys))
    queries = np.random.default_rng(0).standard_normal((64, index.d), dtype=np.float32)
    faiss.omp_set_num_threads(1)
    times = []
    for _ in range(COMPARISONS):
        begun = time.thread_time()
        index.search(queries, DEEP)
        times.append(time.thread_time() - begun)
    return float(np.median(times)) / len(queries)


def measured_table(machine: Machine, ingested: Sequence[Ingested]) -> str:
    hour = 3600
    windows = machine.windows.second * hour
    rows = [
        ["windows", f"{machine.windows.stem:.2f}", "", f"{windows:,.0f}"],
        ["SQL (SQLite)", told(machine.sql_bytes.stem), told(machine.sql_bytes.second), ""],
        ["audio (the demo's FLAC: one channel, 16 bits)", "", "", told(hour * machine.audio_bytes)],
        *([f"index, {kind}", "", told(size), told(windows * size)] for kind, size in machine.index_bytes.items()),
        ["to ingest, core s", f"{machine.ingest_s.stem:.3f}", "", f"{hour * machine.ingest_s.second:,.0f}"],
        ["to reindex, core s", "", f"{machine.reindex_s.second:.6f}", f"{windows * machine.reindex_s.second:.2f}"],
        *([f"compared by a search, {kind}, core s", "", f"{s:.2e}", ""] for kind, s in machine.compare_s.items()),
    ]
    head = (
        f"{machine.name}, {told(machine.memory_bytes)} of memory: {sum(some.stems for some in ingested)} stems, "
        f"{sum(some.audio_s for some in ingested) / 60:.0f} minutes, {sum(some.windows for some in ingested)} windows; "
        f"an ingest kept {machine.busy:.0%} of the cores at work, at load {os.getloadavg()[0]:.1f}. A search with "
        f"8 s takes {machine.query_s:.2f} core s beside comparing keys; a reindex {machine.reindex_s.stem:.1f} once.\n"
    )
    return f"{head}\n{markdown_table(['measured', 'a stem', 'a window', 'an hour of audio'], rows)}"


def planned_table(machine: Machine) -> str:
    rows = []
    for stems in CATALOGS:
        found = plan(machine, stems, STEM_MINUTES, QUERIES_PER_S)
        memory = [f"{told(kind.bytes)}{'' if kind.fits else ' (no)'}" for kind in found.kinds]
        rows.append(
            [f"{stems:,}", f"{found.windows / 1e6:,.1f} million", told(found.sql_bytes), told(found.audio_bytes)]
        )
        rows[-1] += [*memory, f"{found.ingest_h / 24:,.1f}", f"{found.reindex_h:,.1f}", "; ".join(found.advice)]
    header = ["stems", "windows", "SQL", "audio", *(f"index, {kind}" for kind in machine.index_bytes)]
    header += ["days to ingest", "core hours to reindex", "so"]
    return (
        f"For stems of {STEM_MINUTES:g} minutes and {QUERIES_PER_S:g} search a second; (no): more than a quarter of "
        f"the memory.\n\n{markdown_table(header, rows)}"
    )


def main() -> int:
    parser = page_parser(__doc__)
    parser.add_argument("--write", type=Path, help="the file that `phalar size` reads")
    parser.add_argument("--check", action="store_true", help="compare the plan with an ingest instead")
    parser.add_argument("--windows", type=int, default=6000, help="of the ingest that is compared with")
    parser.add_argument("--machine", type=Path, default=MEASURED, help="the figures that are checked")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which stops the service
    if arguments.check:
        text, off = check(arguments.windows, Machine.read(arguments.machine))
        publish(text, arguments.page, "sizing-checked")
        return int(off > FAR)
    machine, ingested = measure()
    if arguments.write:
        machine.write(arguments.write)
    publish(f"{measured_table(machine, ingested)}\n{planned_table(machine)}", arguments.page, "sizing")
    return 0


if __name__ == "__main__":
    sys.exit(main())
