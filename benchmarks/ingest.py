"""How fast the service ingests, beside the bare encoder; a query meanwhile; and the worker's memory.

    python -m benchmarks.ingest [--stems 2000] [--queries 10] [--page docs/performance.md]

A real service with the default model. The rate counts from the first upload to the last ready stem, so it holds
receiving, decoding, checking and storing; the encoder is timed before and after, with the service idle.
"""

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import soundfile

from benchmarks.bare import BareEncoder, compose, mixes, variations
from benchmarks.installation import Installation
from benchmarks.page import page_parser, publish
from benchmarks.processes import resident
from benchmarks.queries import SECONDS, SETTINGS, ask, worker_windows
from model.audio import SAMPLE_RATE, load_clip
from model.evaluation.results import markdown_table
from service.commands.client import Client, NewStem
from service.settings import Settings

ALIGNS = ("beats", "grid", "search")
RATE, MEANWHILE, MEMORY = "ingest", "query-during-ingest", "worker-memory"
WARM_UP = 16  # stems that are ingested before anything is measured
LONG_S = 1200.0  # the longest stem that the defaults accept
SAMPLE_S = 0.1


class Memory(threading.Thread):
    """Watches how much memory a process holds, MiB, until it is stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._stopping = pid, threading.Event()
        self.seen: list[float] = []

    def run(self) -> None:
        while not self._stopping.wait(SAMPLE_S):
            self.seen.append(resident(self._pid) / 2**20)

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def ingest(url: str, stems: Sequence[Path]) -> None:
    """Upload, and wait until all are ready."""
    with Client(url) as client:
        for outcome in client.ingest(NewStem(path, {}) for path in stems):
            assert outcome.problem is None, outcome.problem


def measure_rate(
    installation: Installation, client: httpx.Client, bare: BareEncoder, stems: Sequence[Path]
) -> tuple[str, list[str]]:
    """Windows a second of the encoder and of the service, and the worker's memory on the way."""
    before, windows = bare.rate(), worker_windows(client)
    memory = Memory(installation.pids()["worker"])
    memory.start()
    began = time.perf_counter()
    ingest(installation.url, stems)
    seconds = time.perf_counter() - began
    memory.stop()
    windows = worker_windows(client) - windows
    encoder = (before + bare.rate()) / 2
    row = [f"{len(stems):,}", f"{windows:,.0f}", f"{encoder:.1f}", f"{windows / seconds:.1f}"]
    row.append(f"{windows / seconds / encoder:.0%}")
    header = ["stems", "windows", "encoder, windows/s", "service, windows/s", "service / encoder"]
    return markdown_table(header, [row]), _memory_row(f"{windows:,.0f} windows", memory.seen)


def _memory_row(what: str, seen: Sequence[float]) -> list[str]:
    tenth = max(1, len(seen) // 10)
    first, last = np.median(seen[:tenth]), np.median(seen[-tenth:])
    return [what, f"{first:.0f}", f"{last:.0f}", f"{max(seen):.0f}", f"{last / first:.2f}"]


def measure_long_stem(installation: Installation, stem: Path, folder: Path) -> list[str]:
    """The worker's memory over one stem of twenty minutes."""
    waveform = np.resize(load_clip(stem).waveform, round((LONG_S - 1) * SAMPLE_RATE))
    path = folder / "long.flac"
    soundfile.write(path, 0.3 * waveform, SAMPLE_RATE, subtype="PCM_16")
    memory = Memory(installation.pids()["worker"])
    memory.start()
    ingest(installation.url, [path])
    memory.stop()
    return _memory_row("one stem of 20 minutes", memory.seen)


def measure_queries_meanwhile(
    installation: Installation, client: httpx.Client, cuts: Sequence[bytes], stems: Sequence[Path]
) -> str:
    """A lone client's queries on an idle service, then for as long as the stems are ingested.

    Copies are not grouped: each stem here has dozens, and none would be a hit.
    """

    def asked(cut: bytes, align: str) -> float:
        return ask(client, cut, align, group_duplicates="false")[0]

    idle = {align: [asked(cut, align) for cut in cuts] for align in ALIGNS}
    busy: dict[str, list[float]] = {align: [] for align in ALIGNS}
    uploads = threading.Thread(target=ingest, args=(installation.url, stems))
    uploads.start()
    number = 0
    while uploads.is_alive():
        align = ALIGNS[number % len(ALIGNS)]
        busy[align].append(asked(cuts[number // len(ALIGNS) % len(cuts)], align))
        number += 1
    rows = []
    for align in ALIGNS:
        p50, (during, worst) = np.median(idle[align]), np.percentile(busy[align], [50, 99])
        row = [align, str(len(busy[align])), f"{p50:.0f}", f"{during:.0f}", f"{worst:.0f}", f"{worst / p50:.1f}"]
        rows.append(row)
    return markdown_table(
        ["align", "queries", "idle p50, ms", "meanwhile p50, ms", "meanwhile p99, ms", "p99 / idle p50"], rows
    )


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--stems", type=int, default=2000, help="of 20 s; half of them again while queries are asked")
    parser.add_argument("--queries", type=int, default=10, help="of each kind on the idle service")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, as the service does
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tracks = compose(folder / "demo")
        bare = BareEncoder(Settings(), load_clip(tracks[0][0]).waveform)
        stems = variations(tracks, WARM_UP + arguments.stems + arguments.stems // 2, folder / "stems")
        warm, first, second = np.split(np.array(stems), [WARM_UP, WARM_UP + arguments.stems])
        with Installation(folder, SETTINGS, client_timeout_s=600) as installation, installation.client() as client:
            ingest(installation.url, list(warm))
            cuts = mixes(tracks, arguments.queries, SECONDS)
            for align in ALIGNS:
                ask(client, cuts[0], align)  # the first one loads what is loaded once
            rate, memory = measure_rate(installation, client, bare, list(first))
            meanwhile = measure_queries_meanwhile(installation, client, cuts, list(second))
            rows = [memory, measure_long_stem(installation, tracks[0][0], folder)]
    header = ["the worker's memory, MiB", "first tenth", "last tenth", "most", "last / first"]
    tables = {RATE: rate, MEANWHILE: meanwhile, MEMORY: markdown_table(header, rows)}
    for section, table in tables.items():
        publish(table, arguments.page, section)


if __name__ == "__main__":
    main()
