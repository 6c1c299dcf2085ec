"""FAISS at the sizes of catalogs: what each kind of index takes, how fast it is, and what it finds.

    python -m benchmarks.index_at_size [--windows 10000,1000000] [--memory-gb 24] [--types flat,sq8] [--page FILE]

Real embeddings of the demo catalog, each repeated with a jitter of its own, go into an index as a reindex puts them in,
a few stems at a time. Each kind is loaded and searched in a process of its own, so that its memory is its own. What a
reindex chooses by itself within a quarter of the memory is said below the table, and has a row.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.page import page_parser, publish
from indexer.catalog.records import StemEmbeddings
from indexer.index.build import PROBES, SAMPLE_WINDOWS
from indexer.index.choice import CODE_BYTES, MEMORY_SHARE, Choice, IndexType, Limits, choose
from indexer.index.fold import HermitianFold
from indexer.index.index import Index
from indexer.index.writer import SnapshotWriter

Complex64 = NDArray[np.complex64]

WINDOWS_EACH = 8  # of a stem, as 20 s of audio have
STEMS_AT_ONCE = 500
# How far a window is moved from the one it repeats, of its length 1: from nearly the same audio to other audio.
JITTER = (0.05, 0.6)
SIZES = (10_000, 100_000)
DEEP = 500  # what grouping by stem asks for
SINGLE_QUERIES, BATCHES, BATCH = 100, 5, 64
COLUMNS = (
    *("windows", "index", "rank", "build s", "file MB", "bytes a window", "load s", "resident MB"),
    *("p50 ms", "p99 ms", "row of 64, ms"),
    *("recall@10", "@10 rescored", "@500"),
)


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--windows", default=",".join(map(str, SIZES)))
    parser.add_argument("--memory-gb", type=float, default=24.0, help="of the machine that the choice is made for")
    parser.add_argument("--exact-windows", type=int, default=2_000_000, help="windows beyond which ivf is tried")
    parser.add_argument("--types", default=",".join(CODE_BYTES))
    parser.add_argument("--scratch", type=Path, help="folder with room for the largest index; default: a temporary one")
    parser.add_argument("--search", type=Path, help=argparse.SUPPRESS)  # the child process: search the snapshot there
    parser.add_argument("--queries", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.search:
        print(json.dumps(timed(arguments.search, np.load(arguments.queries))))
        return
    from model.evaluation.results import markdown_table

    limits = Limits(int(arguments.memory_gb * 2**30 * MEMORY_SHARE), arguments.exact_windows)
    rows, chosen = [], []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        embedding, hermitian = demo_embeddings(Path(scratch) / "demo")
        fold = HermitianFold(hermitian)
        for windows in map(int, arguments.windows.split(",")):
            automatic = choose(windows, fold.rank, limits)
            choices = [Choice(kind, fold.rank, "asked for") for kind in arguments.types.split(",")]
            if not any((one.index_type, one.rank) == (automatic.index_type, automatic.rank) for one in choices):
                choices.append(automatic)
            rows += [measured(choice, fold, embedding, windows, Path(scratch)) for choice in choices]
            chosen.append(f"{windows:,} windows: {automatic.index_type}, rank {automatic.rank}; {automatic.reason}.")
    text = (
        f"Measured {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.environ.get('OMP_NUM_THREADS', 'all')} "
        f"OpenMP threads, faiss {faiss.__version__}, {len(embedding)} different windows, "
        f"keys of {fold.dim} coordinates, {PROBES} probes.\n\n{markdown_table(COLUMNS, rows)}\n\n"
        f"Chosen within {limits.memory_bytes / 2**30:.1f} GiB, a quarter of the memory:\n\n"
        + "\n".join(f"- {line}" for line in chosen)
    )
    publish(text, arguments.page, "index-at-size")


def demo_embeddings(folder: Path) -> tuple[Complex64, NDArray[np.complex128]]:
    """Every audible window of the demo catalog by the default model, complex64 (n, D), and the model's H."""
    from model.audio import SAMPLE_RATE, cut_windows, is_silent, load_clip, window_starts
    from model.checkpoints import load_phalar
    from service.local.demo import compose_demo
    from service.work.models import DEFAULT_CHECKPOINT

    model = load_phalar(DEFAULT_CHECKPOINT)
    window, stride = 5 * SAMPLE_RATE, 5 * SAMPLE_RATE // 2
    embedded = []
    for track in compose_demo(folder):
        for stem in track:
            waveform = load_clip(stem.path).waveform
            windows = cut_windows(waveform, window_starts(len(waveform), window, stride), window)
            audible = np.array([not is_silent(one) for one in windows])
            if audible.any():
                embedded.append(model.embed(windows[audible]).numpy())
    return np.concatenate(embedded), np.asarray(model.hermitian)


def jittered(embedding: Complex64, n: int, rng: np.random.Generator) -> Complex64:
    """n windows near randomly drawn ones, of unit norm."""
    drawn = embedding[rng.integers(len(embedding), size=n)]
    noise = rng.standard_normal((n, drawn.shape[1], 2), dtype=np.float32).view(np.complex64)[..., 0]
    noise *= rng.uniform(*JITTER, (n, 1)).astype(np.float32) / np.linalg.norm(noise, axis=1, keepdims=True)
    moved = drawn + noise
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.complex64)


def stems(embedding: Complex64, windows: int) -> Iterator[dict[int, StemEmbeddings]]:
    """The catalog, some stems at a time and the same each time it is asked for."""
    rng = np.random.default_rng(1)
    numbers, starts_s = np.arange(WINDOWS_EACH), np.arange(WINDOWS_EACH) * 2.5
    last = windows // WINDOWS_EACH
    for first in range(0, last, STEMS_AT_ONCE):
        rows = range(first, min(first + STEMS_AT_ONCE, last))
        some = jittered(embedding, len(rows) * WINDOWS_EACH, rng).reshape(len(rows), WINDOWS_EACH, -1)
        yield {row: StemEmbeddings.in_clock_time(numbers, starts_s, own) for row, own in zip(rows, some, strict=True)}


def measured(choice: Choice, fold: HermitianFold, embedding: Complex64, windows: int, scratch: Path) -> list[str]:
    """One row of the table."""
    folder, asked = scratch / choice.index_type, scratch / "queries.npy"
    kept = fold.at_rank(choice.rank)
    learns: set[IndexType] = {"sq8", "ivf"}
    began = time.perf_counter()
    writer = SnapshotWriter(
        folder,
        fold=kept,
        fingerprint="f" * 64,
        generation=1,
        seq=0,
        window_s=5.0,
        stride_s=2.5,
        index_type=choice.index_type,
        reason=choice.reason,
        sample=jittered(embedding, min(windows, SAMPLE_WINDOWS), np.random.default_rng(2))
        if choice.index_type in learns
        else None,
        probes=jittered(embedding, PROBES, np.random.default_rng(3)),
    )
    for some in stems(embedding, windows):
        writer.add(some)
    manifest = writer.seal().manifest
    del writer
    build_s = time.perf_counter() - began
    np.save(asked, kept.queries(jittered(embedding, SINGLE_QUERIES + BATCHES * BATCH, np.random.default_rng(4))))
    child = [sys.executable, "-m", "benchmarks.index_at_size", "--search", str(folder), "--queries", str(asked)]
    found = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
    size = sum(file.size for file in manifest.files.values())
    shutil.rmtree(folder)
    assert manifest.recall is not None
    lists = f", {manifest.probed} of {manifest.lists} lists" if manifest.lists else ""
    return [
        f"{windows:,}",
        f"{manifest.index_type}{lists}",
        str(manifest.rank),
        f"{build_s:.1f}",
        f"{size / 1e6:.0f}",
        f"{size / windows:,.0f}",
        f"{found['load_s']:.1f}",
        f"{found['resident'] / 1e6:.0f}",
        f"{found['p50_ms']:.1f}",
        f"{found['p99_ms']:.1f}",
        f"{found['batch_ms']:.1f}",
        f"{manifest.recall.value:.3f}",
        f"{manifest.recall.rescored:.3f}",
        f"{manifest.recall.deep:.3f}",
    ]


def timed(folder: Path, queries: NDArray[np.float32]) -> dict[str, float]:
    """Load a snapshot in this process, and search it."""
    before = resident()
    began = time.perf_counter()
    index = Index.load(folder)
    load_s = time.perf_counter() - began
    index.search(queries[:1], DEEP)
    singles = [clocked(index, queries[at : at + 1]) for at in range(SINGLE_QUERIES)]
    batches = [clocked(index, queries[at : at + BATCH]) for at in range(SINGLE_QUERIES, len(queries), BATCH)]
    return {
        "load_s": load_s,
        "resident": resident() - before,
        "p50_ms": float(np.percentile(singles, 50)),
        "p99_ms": float(np.percentile(singles, 99)),
        "batch_ms": float(np.median(batches)) / BATCH,
    }


def clocked(index: Index, queries: NDArray[np.float32]) -> float:
    began = time.perf_counter()
    index.search(queries, DEEP)
    return (time.perf_counter() - began) * 1000


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
