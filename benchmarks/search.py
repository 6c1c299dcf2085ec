"""Searching keys of real embeddings, for each type of index: time, recall, size; and how fast keys are folded.

    python -m benchmarks.search [--large] [--page docs/performance.md]

The demo's windows, embedded by the default model, are repeated with noise until there are enough. A query is twenty of
them, as one mix asks. What `flat` returns is exact, so the others are held against it.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.bare import compose
from indexer import HermitianFold, Index, Snapshot, StemEmbeddings
from indexer.snapshot import IndexType
from model import SAMPLE_RATE, Phalar, cut_windows, is_silent, load_clip, window_starts
from model.evaluation.results import markdown_table, write_section
from service.models import configured_model
from service.settings import Settings

SECTION, FOLDING = "search", "fold"
SIZES, LARGE = (10_000, 100_000), 1_000_000
STEM_WINDOWS = 10
NOISE = 0.3  # its norm beside an embedding's
QUERIES, ROWS = 10, 20
SEARCHED, DEEP = 50, 500  # windows asked for each row: as the service does for ten hits, and for many stems
STEMS_AT_ONCE = 1000

Complex64 = NDArray[np.complex64]


def demo_embeddings(model: Phalar, folder: Path) -> Complex64:
    """Every audible window of the demo catalog: complex64 (n, D)."""
    settings = Settings()
    window, stride = (round(seconds * SAMPLE_RATE) for seconds in (settings.window_s, settings.stride_s))
    found = []
    for path in (path for track in compose(folder) for path in track):
        waveform = load_clip(path).waveform
        windows = cut_windows(waveform, window_starts(len(waveform), window, stride), window)
        audible = np.array([not is_silent(one) for one in windows])
        if audible.any():
            found.append(model.embed(windows[audible]).cpu().numpy())
    return np.concatenate(found)


def jittered(embedding: Complex64, count: int, rng: np.random.Generator) -> Complex64:
    """So many of them with noise, of unit norm: complex64 (count, D)."""
    drawn = embedding[rng.integers(len(embedding), size=count)]
    noise = rng.standard_normal((*drawn.shape, 2), np.float32) @ np.array([1, 1j], np.complex64)
    drawn = drawn + NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.complex64)


def stems_of(embedding: Complex64, windows: int, stride_s: float) -> Iterator[Mapping[int, StemEmbeddings]]:
    """Stems of ten windows each, by row, a thousand at a time; the same ones whenever they are asked for."""
    rng = np.random.default_rng(1)
    starts = np.arange(STEM_WINDOWS)
    for first in range(0, windows // STEM_WINDOWS, STEMS_AT_ONCE):
        count = min(STEMS_AT_ONCE, windows // STEM_WINDOWS - first)
        rows = jittered(embedding, count * STEM_WINDOWS, rng).reshape(count, STEM_WINDOWS, -1)
        yield {first + at + 1: StemEmbeddings(starts, starts * stride_s, rows[at]) for at in range(count)}


def measure(folder: Path, fold: HermitianFold, embedding: Complex64, windows: int) -> list[list[str]]:
    """A row of the table for each type of index."""
    settings, rng = Settings(), np.random.default_rng(2)
    queries = [fold.queries(jittered(embedding, ROWS, rng)) for _ in range(QUERIES)]
    rows: list[list[str]] = []
    exact: list[NDArray[np.int64]] = []
    flat_ms = 0.0
    for index_type in get_args(IndexType):
        place = folder / f"{windows}-{index_type}"
        began = time.perf_counter()
        Snapshot.write(
            place,
            stems_of(embedding, windows, settings.stride_s),
            fold=fold,
            fingerprint="benchmark",
            generation=1,
            seq=1,
            window_s=settings.window_s,
            stride_s=settings.stride_s,
            index_type=index_type,
        )
        built = time.perf_counter() - began
        size = sum(file.stat().st_size for file in place.iterdir() if file.suffix != ".npz")
        index = Index.load(place)
        found = [index.search(query, DEEP)[1] for query in queries]
        times = []
        for query in queries:
            began = time.perf_counter()
            index.search(query, SEARCHED)
            times.append((time.perf_counter() - began) * 1000)
        exact, ms = exact or found, float(np.median(times))
        flat_ms = flat_ms or ms
        recalls = (recall(found, exact, at) for at in (10, DEEP))
        row = [f"{windows:,} {index_type}", f"{ms:.1f}", f"{ms / flat_ms:.2f}", *(f"{value:.3f}" for value in recalls)]
        rows.append([*row, f"{size / windows:,.0f}", f"{windows / built:,.0f}"])
    return rows


def recall(found: list[NDArray[np.int64]], exact: list[NDArray[np.int64]], at: int) -> float:
    """The share of the exact best `at` that was found among as many."""
    pairs = [(one[:at], other[:at]) for f, e in zip(found, exact, strict=True) for one, other in zip(f, e, strict=True)]
    return float(np.mean([len(np.intersect1d(one, other)) / at for one, other in pairs]))


def measure_fold(fold: HermitianFold, embedding: Complex64) -> str:
    """Keys and queries a second; the whole form against half of its eigenvalues."""
    many = np.resize(embedding, (SIZES[0], embedding.shape[1]))
    rows = []
    for rank in (fold.rank, fold.rank // 2, fold.rank // 8):
        kept = HermitianFold(fold.hermitian, rank=rank)
        began = time.perf_counter()
        kept.keys(many)
        rate = len(many) / (time.perf_counter() - began)
        rows.append([str(rank), f"{rate:,.0f}", f"{4 * kept.dim:,}", f"{kept.bound:.2g}"])
    return markdown_table(["rank", "keys folded/s", "bytes a key", "a score is off by at most"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="a million windows, too: 10 GB of memory and of disk")
    parser.add_argument("--page", type=Path, help="write the tables into this page")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, as the service does
    model = configured_model(Settings(), "cpu")
    fold = HermitianFold(model.hermitian)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        embedding = demo_embeddings(model, Path(name) / "demo")
        for windows in (*SIZES, *([LARGE] if arguments.large else [])):
            rows += measure(Path(name), fold, embedding, windows)
    header = ["windows, type", f"{ROWS} rows, ms", "of flat", "recall@10", f"recall@{DEEP}"]
    table = markdown_table([*header, "bytes a window", "windows sealed/s"], rows)
    for section, text in ((SECTION, table), (FOLDING, measure_fold(fold, embedding))):
        print(f"{section}\n\n{text}")
        if arguments.page:
            write_section(arguments.page, section, text)


if __name__ == "__main__":
    main()
