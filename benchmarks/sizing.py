"""What a stem takes: bytes in SQL, audio store and index, and seconds of a worker; and what many stems would take.

    python -m benchmarks.sizing [--page deploy/sizing.md] [--tracks 12] [--seconds 20]

The demo catalog is ingested into an installation of its own and reindexed; then its files are measured. The search is
timed over random keys, since a flat search reads every key whatever it holds. Larger catalogs are extrapolated: every
size grows with the windows, and the table says with which.
"""

import argparse
import os
import platform
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import faiss
import httpx
import numpy as np

from benchmarks.alignment import free_port, wait_until_ready
from model import SAMPLE_RATE, PhalarConfig, window_starts
from model.evaluation.results import markdown_table, write_section
from service.client import Client
from service.serve import ingest_demo
from service.settings import Settings

CATALOGS = (100_000, 1_000_000, 10_000_000)  # stems
STEM_S = 180.0  # a stem of a whole track
LOW_RANK = 64
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
    key_bytes: int  # of the index, without what a generation has once
    fold_bytes: int
    decode_s: float
    embed_s: float
    store_s: float
    search_s: float  # MANY_QUERIES against TIMED_KEYS, one thread

    @property
    def sql_per_window(self) -> float:
        return self.embedding_bytes / self.windows

    @property
    def sql_per_stem(self) -> float:
        return (self.sql_bytes - self.embedding_bytes) / self.stems

    @property
    def keys_per_window(self) -> float:
        return self.key_bytes / self.windows

    @property
    def work_s(self) -> float:
        return self.decode_s + self.embed_s + self.store_s

    @property
    def search_per_key(self) -> float:
        return self.search_s / TIMED_KEYS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracks", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a track")
    parser.add_argument("--threads", type=int, default=1, help="of the worker's network")
    parser.add_argument("--page", type=Path, help="write the tables into this page")
    arguments = parser.parse_args()
    sizes = measure(arguments.tracks, arguments.seconds, arguments.threads)
    text = "\n".join([_head(arguments.threads, sizes), _measured(sizes), _extrapolated(sizes)])
    print(text)
    if arguments.page:
        write_section(arguments.page, "sizing", text)


def measure(tracks: int, seconds: float, threads: int) -> Sizes:
    """Fill an installation, and look at what it has become."""
    with tempfile.TemporaryDirectory() as folder:
        data, port = Path(folder) / "data", free_port()
        environment = os.environ | {
            "PHALAR_DATA": str(data),
            "PHALAR_PORT": str(port),
            "PHALAR_TORCH_THREADS": str(threads),
        }
        service = subprocess.Popen([sys.executable, "-m", "service.cli", "serve"], env=environment)
        try:
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, timeout=120) as http:
                wait_until_ready(http)
                if ingest_demo(url, None, Path(folder) / "demo", tracks, seconds, seed=0):
                    raise SystemExit("a stem failed")
                with Client(url) as client:
                    client.follow(client.reindex(None, None))
                time.sleep(12)  # two beats: the worker has told all it did
                figures = _worker_figures(http.get("/metrics").text)
        finally:
            service.send_signal(signal.SIGINT)
            service.wait()
        return _sizes(data, figures)


def _sizes(data: Path, figures: dict[str, float]) -> Sizes:
    compact = data / "compact.sqlite"
    with sqlite3.connect(data / "catalog.sqlite") as sql:
        sql.execute("VACUUM INTO ?", (str(compact),))
        stems, audio_s = sql.execute("SELECT count(*), sum(duration_s) FROM stems WHERE state = 'ready'").fetchone()
        columns = "length(windows) + length(starts_s) + length(embedding)"
        held, windows = sql.execute(f"SELECT sum({columns}), sum(length(windows)) / 8 FROM embeddings").fetchone()
    newest = max((data / "index").glob("generation-*"))
    parts = {file.name: file.stat().st_size for file in newest.iterdir()}
    return Sizes(
        stems=stems,
        windows=windows,
        audio_s=audio_s,
        sql_bytes=compact.stat().st_size,
        embedding_bytes=held,
        blob_bytes=sum(file.stat().st_size for file in (data / "audio").rglob("*") if file.is_file()),
        key_bytes=parts["keys.faiss"] + parts["key_errors.npz"],
        fold_bytes=parts["fold.npz"],
        decode_s=figures["decode_seconds"],
        embed_s=figures["embed_seconds"],
        store_s=figures["store_seconds"],
        search_s=_time_search(),
    )


def _worker_figures(metrics: str) -> dict[str, float]:
    found = re.findall(r'^phalar_worker\{figure="(\w+)",worker="[^"]*"\} (\S+)$', metrics, re.MULTILINE)
    return {figure: float(value) for figure, value in found}


def _time_search() -> float:
    """Median seconds of MANY_QUERIES against TIMED_KEYS random keys of full rank, on one thread."""
    rng = np.random.default_rng(0)
    dimension = 2 * PhalarConfig().dimension
    index = faiss.IndexFlatIP(dimension)
    index.add(rng.standard_normal((TIMED_KEYS, dimension), dtype=np.float32))
    queries = rng.standard_normal((MANY_QUERIES, dimension), dtype=np.float32)
    faiss.omp_set_num_threads(1)
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        index.search(queries, 500)
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


def _head(threads: int, sizes: Sizes) -> str:
    return (
        f"Measured {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores with a load of "
        f"{os.getloadavg()[2]:.1f} beside it, {threads} thread: {sizes.stems} stems, {sizes.audio_s / 60:.0f} minutes, "
        f"{sizes.windows} windows. Seconds are of a busy machine: read them as an upper bound.\n"
    )


def _measured(sizes: Sizes) -> str:
    hours = sizes.audio_s / 3600
    rows = [
        ["SQL", f"{sizes.sql_per_stem:,.0f}", f"{sizes.sql_per_window:,.0f}", _bytes(sizes.sql_bytes / hours)],
        ["audio (the demo's FLAC: one channel, 16 bits)", "", "", _bytes(sizes.blob_bytes / hours)],
        ["index, float32, every eigenvalue", "", f"{sizes.keys_per_window:,.0f}", _bytes(sizes.key_bytes / hours)],
    ]
    table = markdown_table(["measured", "bytes a stem", "bytes a window", "an hour of audio"], rows)
    times = markdown_table(
        ["measured", "seconds"],
        [
            ["a worker decodes an hour of audio", f"{sizes.decode_s / hours:,.0f}"],
            ["a worker embeds an hour of audio", f"{sizes.embed_s / hours:,.0f}"],
            ["a worker stores an hour of audio", f"{sizes.store_s / hours:,.0f}"],
            [f"{MANY_QUERIES} queries at once against {TIMED_KEYS:,} keys", f"{sizes.search_s:.2f}"],
        ],
    )
    return f"{table}\nThe fold is in every generation once: {_bytes(sizes.fold_bytes)}.\n\n{times}"


def _extrapolated(sizes: Sizes) -> str:
    defaults = Settings.model_fields
    window, stride = (round(defaults[name].default * SAMPLE_RATE) for name in ("window_s", "stride_s"))
    per_stem = len(window_starts(round(STEM_S * SAMPLE_RATE), window, stride))
    per_low_rank_window = sizes.keys_per_window - 8 * (PhalarConfig().dimension - LOW_RANK)
    rows = []
    for stems in CATALOGS:
        windows = stems * per_stem
        audio = stems * STEM_S * sizes.blob_bytes / sizes.audio_s
        low = windows * per_low_rank_window
        rows.append(
            [
                f"{stems:,}",
                f"{windows / 1e6:,.1f} million",
                _bytes(stems * sizes.sql_per_stem + windows * sizes.sql_per_window),
                _bytes(audio),
                _bytes(windows * sizes.keys_per_window),
                _bytes(low),
                f"{windows * sizes.search_per_key:,.0f} s",
                f"{stems * STEM_S * sizes.work_s / sizes.audio_s / 86400:,.1f}",
                _advice(windows * sizes.keys_per_window, low),
            ]
        )
    header = [
        "stems", "windows", "SQL", "audio", "index in memory", f"at rank {LOW_RANK}", "flat search, one thread",
        "days of one worker", "so",
    ]  # fmt: skip
    return f"Extrapolated, for stems of {STEM_S:.0f} s ({per_stem} windows each):\n\n{markdown_table(header, rows)}"


def _advice(full: float, low: float) -> str:
    if full <= SMALL_MACHINE:
        return "one API, FAISS"
    if full <= LARGE_MACHINE:
        return "one large machine with FAISS, or Qdrant"
    if low <= SMALL_MACHINE * 2:
        return "Qdrant; or FAISS at a low rank"
    return "Qdrant on several machines"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.{0 if count >= 100 * size else 1}f} {unit}"
    return f"{count:.0f} bytes"


if __name__ == "__main__":
    main()
