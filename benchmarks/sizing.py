"""What a stem takes: bytes in SQL, audio store and index, and seconds of a worker; and what many stems would take.

    python -m benchmarks.sizing [--page deploy/sizing.md] [--tracks 12] [--seconds 20]

The demo catalog is ingested into an installation of its own and reindexed; then its files are measured. The search is
timed over random keys, since a flat search reads every key whatever it holds. Times are of the processor, not of the
clock, so that what else the machine does changes them little. Larger catalogs are extrapolated: everything grows with
the windows.
"""

import os
import platform
import re
import sqlite3
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import faiss
import httpx
import numpy as np

from benchmarks.installation import Installation
from benchmarks.page import page_parser, publish
from model.audio import SAMPLE_RATE, window_starts
from model.evaluation.results import markdown_table
from model.phalar import PhalarConfig
from service.commands.client import Client
from service.local.serve import ingest_demo
from service.settings import Settings

CATALOGS = (100_000, 1_000_000, 10_000_000)  # stems
STEM_S = 180.0  # a stem of a whole track
KINDS: dict[str, tuple[int | None, str]] = {  # rank and type of an index
    "float32": (None, "flat"),
    "sq8": (None, "sq8"),
    "sq8, rank 64": (64, "sq8"),
}
TIMED_KEYS = 100_000
MANY_QUERIES = 64  # a mix of one window, tried at every 40 ms of a stride of 2.5 s
SMALL_MACHINE, LARGE_MACHINE = 32e9, 256e9  # bytes of index that one machine holds beside everything else


@dataclass(frozen=True)
class Sizes:
    """What was measured on one catalog."""

    stems: int
    windows: int
    audio_s: float
    sql_bytes: int
    embedding_bytes: int  # of sql_bytes, in the embeddings' own columns
    blob_bytes: int
    key_bytes: dict[str, int]  # of each kind of index, without what a generation has once
    fold_bytes: int
    work_s: float  # of a worker and its decoders
    search_s: float  # MANY_QUERIES against TIMED_KEYS

    @property
    def sql_per_window(self) -> float:
        return self.embedding_bytes / self.windows

    @property
    def sql_per_stem(self) -> float:
        return (self.sql_bytes - self.embedding_bytes) / self.stems


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--tracks", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a track")
    parser.add_argument("--threads", type=int, default=1, help="of the worker's network")
    arguments = parser.parse_args()
    sizes = measure(arguments.tracks, arguments.seconds, arguments.threads)
    text = "\n".join([_head(arguments.threads, sizes), _measured(sizes), _extrapolated(sizes)])
    publish(text, arguments.page, "sizing")


def measure(tracks: int, seconds: float, threads: int) -> Sizes:
    """Fill an installation, and look at what it has become."""
    with tempfile.TemporaryDirectory() as folder:
        service = Installation(Path(folder), {"PHALAR_TORCH_THREADS": str(threads)}, client_timeout_s=120).start()
        try:
            with service.client() as http, Client(service.url) as client:
                worker = _worker(http)
                before = _processor_s(worker)
                if ingest_demo(service.url, None, Path(folder) / "demo", tracks, seconds, seed=0):
                    raise SystemExit("a stem failed")
                work_s = _processor_s(worker) - before
                data = Path(folder) / "data"
                key_bytes = {kind: _reindexed(client, data, *wanted) for kind, wanted in KINDS.items()}
        finally:
            service.stop()
        return _sizes(data, key_bytes, work_s)


def _worker(http: httpx.Client) -> int:
    """The process of the one worker, once it has reported."""
    while True:
        found = re.search(
            r'^phalar_worker\{figure="pid",worker="[^"]*"\} (\S+)$', http.get("/metrics").text, re.MULTILINE
        )
        if found:
            return int(float(found[1]))
        time.sleep(1)


def _processor_s(process: int) -> float:
    """What a process and its children have used, seconds."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8").split()
    ticks = 0
    for pid in [process, *children]:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))  # of itself and of its own dead children, in user and in kernel mode
    return ticks / os.sysconf("SC_CLK_TCK")


def _reindexed(client: Client, data: Path, rank: int | None, index_type: str) -> int:
    """Bytes of the keys of a new index."""
    job = client.follow(client.reindex(None, rank, index_type))
    folder = data / "index" / f"generation-{job['result']['generation']:06d}"
    return sum((folder / name).stat().st_size for name in ("keys.faiss", "key_errors.npz"))


def _sizes(data: Path, key_bytes: dict[str, int], work_s: float) -> Sizes:
    compact = data / "compact.sqlite"
    with sqlite3.connect(data / "catalog.sqlite") as sql:
        sql.execute("VACUUM INTO ?", (str(compact),))
        stems, audio_s = sql.execute("SELECT count(*), sum(duration_s) FROM stems WHERE state = 'ready'").fetchone()
        columns = "length(windows) + length(starts_s) + length(embedding)"
        held, windows = sql.execute(f"SELECT sum({columns}), sum(length(windows)) / 8 FROM embeddings").fetchone()
    return Sizes(
        stems=stems,
        windows=windows,
        audio_s=audio_s,
        sql_bytes=compact.stat().st_size,
        embedding_bytes=held,
        blob_bytes=sum(file.stat().st_size for file in (data / "audio").rglob("*") if file.is_file()),
        key_bytes=key_bytes,
        fold_bytes=(max((data / "index").glob("generation-*")) / "fold.npz").stat().st_size,
        work_s=work_s,
        search_s=_time_search(),
    )


def _time_search() -> float:
    """Median seconds of MANY_QUERIES against TIMED_KEYS random float32 keys of full rank, on this thread."""
    rng = np.random.default_rng(0)
    dimension = 2 * PhalarConfig().dimension
    index = faiss.IndexFlatIP(dimension)
    index.add(rng.standard_normal((TIMED_KEYS, dimension), dtype=np.float32))
    queries = rng.standard_normal((MANY_QUERIES, dimension), dtype=np.float32)
    faiss.omp_set_num_threads(1)
    times = []
    for _ in range(5):
        begun = time.thread_time()
        index.search(queries, 500)
        times.append(time.thread_time() - begun)
    return float(np.median(times))


def _head(threads: int, sizes: Sizes) -> str:
    return (
        f"Measured {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, a worker with {threads} "
        f"thread: {sizes.stems} stems, {sizes.audio_s / 60:.0f} minutes, {sizes.windows} windows.\n"
    )


def _measured(sizes: Sizes) -> str:
    hours = sizes.audio_s / 3600
    rows = [
        ["SQL (SQLite)", f"{sizes.sql_per_stem:,.0f}", f"{sizes.sql_per_window:,.0f}", _bytes(sizes.sql_bytes / hours)],
        ["audio (the demo's FLAC: one channel, 16 bits)", "", "", _bytes(sizes.blob_bytes / hours)],
        *(
            [f"index, {kind}", "", f"{count / sizes.windows:,.0f}", _bytes(count / hours)]
            for kind, count in sizes.key_bytes.items()
        ),
    ]
    table = markdown_table(["measured", "bytes a stem", "bytes a window", "an hour of audio"], rows)
    times = markdown_table(
        ["measured", "processor seconds"],
        [
            ["a worker and its decoders, an hour of audio", f"{sizes.work_s / hours:,.0f}"],
            [f"{MANY_QUERIES} queries at once against {TIMED_KEYS:,} float32 keys", f"{sizes.search_s:.2f}"],
        ],
    )
    return f"{table}\nThe fold is in every generation once: {_bytes(sizes.fold_bytes)}.\n\n{times}"


def _extrapolated(sizes: Sizes) -> str:
    defaults = Settings.model_fields
    window, stride = (round(defaults[name].default * SAMPLE_RATE) for name in ("window_s", "stride_s"))
    per_stem = len(window_starts(round(STEM_S * SAMPLE_RATE), window, stride))
    rows = []
    for stems in CATALOGS:
        windows = stems * per_stem
        indexes = [windows * count / sizes.windows for count in sizes.key_bytes.values()]
        rows.append(
            [
                f"{stems:,}",
                f"{windows / 1e6:,.1f} million",
                _bytes(stems * sizes.sql_per_stem + windows * sizes.sql_per_window),
                _bytes(stems * STEM_S * sizes.blob_bytes / sizes.audio_s),
                *map(_bytes, indexes),
                f"{windows * sizes.search_s / TIMED_KEYS:,.0f} s",
                f"{stems * STEM_S * sizes.work_s / sizes.audio_s / 86400:,.1f} days",
                _advice(*indexes),
            ]
        )
    header = ["stems", "windows", "SQL", "audio", *(f"index, {kind}" for kind in sizes.key_bytes)]
    header += ["one query, every key compared", "to embed, one core", "so"]
    return f"Extrapolated, for stems of {STEM_S:.0f} s ({per_stem} windows each):\n\n{markdown_table(header, rows)}"


def _advice(*indexes: float) -> str:
    if max(indexes) <= SMALL_MACHINE:
        return "FAISS on one machine"
    if min(indexes) <= LARGE_MACHINE / 4:
        return "FAISS on one large machine, compressed; or Qdrant"
    return "Qdrant on several machines"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.{0 if count >= 100 * size else 1}f} {unit}"
    return f"{count:.0f} bytes"


if __name__ == "__main__":
    main()
