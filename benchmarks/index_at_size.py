"""FAISS at the sizes of catalogs: what each kind of index takes, how fast it is, and what it finds.

    python -m benchmarks.index_at_size [--kept WINDOWS] [--windows 200000,1000000] [--kinds flat,sq8|none] [--page FILE]

`--kept` is a folder of `benchmarks.windows`; without one, a few thousand windows of composed tracks are made first.
Where more are wanted than it holds, blocks of them are mixed, which is compared with real ones below the table. Each
kind is built and searched in a process of its own. What a reindex chooses within a quarter of the memory is built as a
reindex does it, opened as after a restart, and searched with filters.
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
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.page import page_parser, publish, today
from benchmarks.processes import resident
from benchmarks.windows import WINDOWS_EACH, Complex64, Float32, Int64, WindowFiles, embeddings
from indexer.catalog.records import StemEmbeddings
from indexer.index.build import PROBES, SAMPLE_WINDOWS, TURNED_FROM, turned
from indexer.index.choice import LEARNING, MEMORY_SHARE, Limits, choose
from indexer.index.fold import HermitianFold
from indexer.index.index import Index
from indexer.index.manifest import Manifest
from indexer.index.recall import RECALL_AT, RESCORED
from indexer.index.snapshot import KEYS, Snapshot
from indexer.index.writer import SnapshotWriter
from model.checkpoints import load_phalar
from model.evaluation.results import markdown_table
from service.work.models import DEFAULT_CHECKPOINT

STEMS_AT_ONCE = 500
SIZES = (200_000,)
FEW = 4_000  # windows that are made where none are kept
# A cheap block is a real one, some of a second and less of a third, as far from its neighbours as real ones are.
SECOND, THIRD = 0.55, -0.2
ROWS = 50  # of a whole search
SINGLES, SEARCHES = 20, 4
# Kinds as FAISS's factory names them, and whether their keys are turned to the catalog or keep the largest eigenvalues.
KINDS = {
    "flat, all directions": ("Flat", None),
    "fp16, all directions": ("SQfp16", None),
    "sq8, all directions": ("SQ8", None),
    "flat, eigenvectors": ("Flat", False),
    "flat": ("Flat", True),
    "fp16": ("SQfp16", True),
    "sq8": ("SQ8", True),
    "ivf sq8": ("IVF{lists},SQ8", True),
    "ivf pq": ("IVF{lists},PQ{half}", True),
    "hnsw sq8": ("HNSW32,SQ8", True),
    "rabitq": ("RaBitQ", True),
    "rabitq 4 bits": ("RaBitQ4", True),
}
SMALL_ONLY = {"flat, all directions", "fp16, all directions", "sq8, all directions", "hnsw sq8"}  # up to LARGE windows
LARGE = 300_000
COLUMNS = ("windows", "index", "rank", "build CPU s", "bytes a window", "of flat", "load s", "resident MB")
COLUMNS += ("a row, CPU ms", f"{ROWS} rows, CPU ms", "recall@10", "@10 rescored", "true stem", "by exact search")
CHOSEN = ("windows", "chosen", "build CPU s", "file MB", "opened in s", "a row, CPU ms", f"{ROWS} rows, CPU ms")
CHOSEN += ("50 % allowed", "1 % allowed", "a stem added, ms", "removed, ms", "recall@10", "@10 rescored", "@500")


class Catalog:
    """As many windows as wanted, stem after stem, the same each time: kept ones, then mixed ones, in a file."""

    def __init__(self, kept: WindowFiles, windows: int, scratch: Path) -> None:
        self.kept, self.windows = kept, windows // WINDOWS_EACH * WINDOWS_EACH
        path, width = scratch / "catalog.f16", 2 * kept.kept.dimension
        rows = np.memmap(path, np.float16, "w+", shape=(self.windows, width))
        real = min(len(kept), self.windows) // WINDOWS_EACH * WINDOWS_EACH
        step = STEMS_AT_ONCE * WINDOWS_EACH
        for start in range(0, self.windows, step):
            wanted = min(step, self.windows - start)
            if start + wanted <= real:
                embedding = kept[start : start + wanted]
            else:
                embedding = mixed(kept, wanted, np.random.default_rng(start))
                embedding[: max(0, real - start)] = kept[start : max(start, real)]
            rows[start : start + wanted] = embedding.view(np.float32)
        rows.flush()
        self._rows = np.memmap(path, np.float16, "r", shape=(self.windows, width))

    def parts(self) -> Iterator[tuple[int, Complex64]]:
        """The first row of each part, and its embeddings, complex64 (n, D)."""
        step = STEMS_AT_ONCE * WINDOWS_EACH
        for start in range(0, self.windows, step):
            yield start, embeddings(self._rows[start : start + step])

    def sample(self, most: int, seed: int) -> Complex64:
        """Windows drawn from all of it."""
        drawn = np.random.default_rng(seed).choice(self.windows, min(most, self.windows), replace=False)
        return embeddings(self._rows[np.sort(drawn)])


def mixed(kept: WindowFiles | Complex64, windows: int, rng: np.random.Generator) -> Complex64:
    """Cheap blocks: complex64 (windows, D)."""
    blocks = windows // WINDOWS_EACH
    drawn = rng.integers(len(kept) // WINDOWS_EACH, size=(3, blocks, 1)) * WINDOWS_EACH
    order = rng.permuted(np.tile(np.arange(WINDOWS_EACH), (3, blocks, 1)), axis=2)
    order[0] = np.arange(WINDOWS_EACH)
    first, second, third = ((at + places).ravel() for at, places in zip(drawn, order, strict=True))
    rows = kept[first] + np.float32(SECOND) * kept[second] + np.float32(THIRD) * kept[third]
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.complex64)


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--kept", type=Path, help="a folder of benchmarks.windows")
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT, help="of the model that embedded them")
    parser.add_argument("--windows", default=",".join(map(str, SIZES)))
    parser.add_argument("--memory-gb", type=float, default=24.0, help="of the machine that the choice is made for")
    parser.add_argument("--kinds", default=",".join(KINDS).replace(", ", "; "), help="some of: " + " | ".join(KINDS))
    parser.add_argument("--section", help="of the page, for all; default: one for the kinds, one for what is chosen")
    parser.add_argument("--scratch", type=Path, help="folder with room for the largest index; default: a temporary one")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(timed(arguments.child)))
        return
    limits = Limits(int(arguments.memory_gb * 2**30 * MEMORY_SHARE))
    rows, chosen = [], []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        scratch = Path(name)
        kept = WindowFiles(arguments.kept or made(scratch / "kept", arguments.checkpoint))
        model = load_phalar(arguments.checkpoint)
        if model.fingerprint != kept.kept.fingerprint:
            raise SystemExit(f"{arguments.kept} holds windows of another model")
        fold = HermitianFold(np.asarray(model.hermitian))
        for windows in map(int, arguments.windows.split(",")):
            catalog = Catalog(kept, windows, scratch)
            sample = catalog.sample(SAMPLE_WINDOWS, 2)
            using = turned(fold, sample) if windows >= TURNED_FROM else fold
            kinds = [kind.replace("; ", ", ") for kind in arguments.kinds.split(",") if kind != "none"]
            kinds = [kind for kind in kinds if windows <= LARGE or kind not in SMALL_ONLY]
            if kinds:
                rows += measured(catalog, fold, using, sample, kinds, scratch)
            chosen.append(as_a_reindex(catalog, using, sample, limits, scratch))
            print(chosen[-1], flush=True)
        compared = comparison(kept, fold)
    said = (
        f"Measured {today()}, {platform.machine()}, {os.environ.get('OMP_NUM_THREADS', 'all')} "
        f"OpenMP threads, faiss {faiss.__version__}, {len(kept):,} kept windows and mixed ones, {PROBES} probes, "
        f"{len(kept.queries)} mixes without a stem; load {os.getloadavg()[0]:.0f}.\n\n"
    )
    side_by_side = f"{markdown_table(COLUMNS, rows)}\n" if rows else ""
    as_chosen = (
        f"Chosen within {limits.memory_bytes / 2**30:.1f} GiB, a quarter of the memory, and built as a reindex does it:"
        f"\n\n{markdown_table(CHOSEN, [row for row, _ in chosen])}\n\n"
        + "\n".join(f"- {line}." for _, line in chosen)
        + f"\n\nAs many mixed windows as real ones of other tracks:\n\n{compared}"
    )
    if arguments.section:
        publish(f"{said}{side_by_side}\n{as_chosen}", arguments.page, arguments.section)
        return
    if rows:
        publish(said + side_by_side, arguments.page, "index-at-size")
    publish(said + as_chosen, arguments.page, "index-chosen")


def made(folder: Path, checkpoint: Path) -> Path:
    """A few windows of composed tracks."""
    command = [sys.executable, "-m", "benchmarks.windows", str(folder)]
    subprocess.run([*command, "--windows", str(FEW), "--checkpoint", str(checkpoint)], check=True)
    return folder


# ---------------------------------------------------------------- kinds of index, side by side


def measured(
    catalog: Catalog, fold: HermitianFold, using: HermitianFold, sample: Complex64, kinds: list[str], scratch: Path
) -> list[list[str]]:
    """A row of the table for each kind."""
    folds = {None: fold, True: using, False: fold.at_rank(using.rank)}
    asked = np.flatnonzero(catalog.kept.answers < catalog.windows)
    probes = np.concatenate([catalog.sample(PROBES, 3), catalog.kept.queries[asked]])
    truth = exact(catalog, fold, probes)
    rows = []
    for basis in dict.fromkeys(KINDS[kind][1] for kind in kinds):
        own = folds[basis]
        folder = scratch / "keys"
        folder.mkdir()
        keys = np.lib.format.open_memmap(folder / "keys.npy", "w+", np.float32, (catalog.windows, own.dim))
        for start, embedding in catalog.parts():
            keys[start : start + len(embedding)] = own.keys(embedding)
        del keys
        for name, array in (
            ("sample", own.keys(sample)),
            ("queries", own.queries(probes)),
            ("truth", truth),
            ("answers", catalog.kept.answers[asked]),
        ):
            np.save(folder / f"{name}.npy", array)
        for kind in kinds:
            if KINDS[kind][1] is basis:
                (folder / "kind").write_text(kind)
                found = child(folder)
                rows.append([f"{catalog.windows:,}", kind, f"{own.rank}", *row_of(found, fold.dim)])
                print(rows[-1], flush=True)
        shutil.rmtree(folder)
    return rows


def exact(catalog: Catalog, fold: HermitianFold, probes: Complex64) -> Int64:
    """The rows of each probe's ten best windows, by the full form, in any order: int64 (probes, 10)."""
    best = np.full((len(probes), RECALL_AT), -np.inf, np.float32)
    rows = np.full((len(probes), RECALL_AT), -1, np.int64)
    real, imaginary = np.split(fold.form_rows(probes).astype(np.float32), 2, axis=1)
    asked = np.stack([real, imaginary], axis=2).reshape(len(probes), -1)  # as an embedding's parts lie in memory
    for start, embedding in catalog.parts():
        scores = np.concatenate([best, asked @ embedding.view(np.float32).T], axis=1)
        known = np.broadcast_to(np.arange(start, start + len(embedding)), (len(probes), len(embedding)))
        known = np.concatenate([rows, known], axis=1)
        order = np.argpartition(-scores, RECALL_AT - 1, axis=1)[:, :RECALL_AT]
        best, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(known, order, axis=1)
    return rows


def child(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.index_at_size", "--child", str(folder)]
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer


def row_of(found: dict[str, Any], flat_dim: int) -> list[str]:
    return [
        f"{found['build_s']:.1f}",
        f"{found['bytes']:.0f}",
        f"1/{4 * flat_dim / found['bytes']:.1f}",
        f"{found['load_s']:.2f}",
        f"{found['resident'] / 1e6:.0f}",
        f"{found['row_ms']:.1f}",
        f"{found['search_ms']:.0f}",
        *(f"{found[name]:.3f}" for name in ("recall", "rescored", "true", "true_exact")),
    ]


def timed(folder: Path) -> dict[str, float]:
    """Build the kind that the folder names, read it as after a restart, search it."""
    kind = (folder / "kind").read_text()
    keys, sample = np.load(folder / "keys.npy", mmap_mode="r"), np.load(folder / "sample.npy")
    queries, truth, answers = (np.load(folder / f"{name}.npy") for name in ("queries", "truth", "answers"))
    lists = min(1024, len(sample) // 39)
    began = time.process_time()
    name = KINDS[kind][0].format(lists=lists, half=keys.shape[1] // 2)
    index = faiss.index_factory(keys.shape[1], name, faiss.METRIC_INNER_PRODUCT)
    index.train(sample)
    for start in range(0, len(keys), 20_000):
        index.add(np.ascontiguousarray(keys[start : start + 20_000]))
    build_s = time.process_time() - began
    faiss.write_index(index, str(folder / "index"))
    del index
    before, began = resident(os.getpid()), time.perf_counter()
    index = faiss.read_index(str(folder / "index"))
    load_s, held = time.perf_counter() - began, resident(os.getpid()) - before
    if name.startswith("IVF"):
        faiss.extract_index_ivf(index).nprobe = lists // 16
    if name.startswith("HNSW"):
        faiss.downcast_index(index).hnsw.efSearch = 2 * RESCORED
    found = index.search(queries, RESCORED)[1]
    probed, asked = len(queries) - len(answers), answers // WINDOWS_EACH
    return {
        "build_s": build_s,
        "load_s": load_s,
        "resident": held,
        "bytes": (folder / "index").stat().st_size / len(keys),
        "row_ms": float(np.median([spent(index, queries[[at]]) for at in range(SINGLES)])),
        "search_ms": float(np.median([spent(index, queries[:ROWS]) for _ in range(SEARCHES)])),
        "recall": shared(truth[:probed], found[:probed, :RECALL_AT]),
        "rescored": shared(truth[:probed], found[:probed]),
        "true": float((found[probed:] // WINDOWS_EACH == asked[:, None]).any(axis=1).mean()),
        "true_exact": float((truth[probed:] // WINDOWS_EACH == asked[:, None]).any(axis=1).mean()),
    }


def spent(index: Any, queries: Float32, *more: Any) -> float:
    """ms of processors."""
    began = time.process_time()
    index.search(queries, RESCORED, *more)
    return (time.process_time() - began) * 1000


def shared(truth: Int64, found: Int64) -> float:
    return float(np.mean([len(np.intersect1d(*pair)) / RECALL_AT for pair in zip(truth, found, strict=True)]))


# ---------------------------------------------------------------- as a reindex builds it


def one_stem(embedding: Complex64) -> dict[int, StemEmbeddings]:
    """Windows as if they were one stem's."""
    windows = np.arange(len(embedding))
    return {0: StemEmbeddings.in_clock_time(windows, 2.5 * windows, embedding)}


def as_a_reindex(
    catalog: Catalog, using: HermitianFold, sample: Complex64, limits: Limits, scratch: Path
) -> tuple[list[str], str]:
    """What would be chosen: its row, and why."""
    folder = scratch / "chosen"
    began = time.process_time()
    choice = choose(catalog.windows, using.rank, limits)
    fold = using.at_rank(choice.rank)
    facts = {"fingerprint": "f" * 64, "generation": 1, "seq": 0, "window_s": 5.0, "stride_s": 2.5}
    manifest = Manifest.unsealed(fold, **facts, index_type=choice.index_type, reason=choice.reason)
    learnt = one_stem(sample) if choice.index_type in LEARNING else None
    writer = SnapshotWriter(folder, fold, manifest, sample=learnt, probes=catalog.sample(PROBES, 3))
    for some in stems(catalog):
        writer.add(some)
    manifest = writer.seal().manifest
    build_s = time.process_time() - began
    for path in folder.iterdir():  # as after a restart: nothing of it is in memory
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    wall = time.perf_counter()
    index = Index.of(Snapshot.load(folder, check_mapped=False))
    opened_s = time.perf_counter() - wall
    queries = index.fold.queries(catalog.sample(ROWS, 4))
    index.search(queries, RESCORED)
    last = catalog.windows // WINDOWS_EACH
    allowed = [np.arange(0, last, every) for every in (2, 100)]
    new = {last: next(iter(stems(catalog)))[0]}
    changing = []
    for change in (lambda: index.with_changes(new, [], 1), lambda: index.with_changes({}, [0], 1)):
        wall = time.process_time()
        change()
        changing.append((time.process_time() - wall) * 1000)
    assert manifest.recall is not None
    row = [
        f"{catalog.windows:,}",
        f"{manifest.index_type}, rank {manifest.rank}"
        + (f", {manifest.probed} of {manifest.lists} lists" * bool(manifest.lists)),
        f"{build_s:.0f}",
        f"{manifest.files[KEYS].size / 1e6:.0f}",
        f"{opened_s:.1f}",
        f"{np.median([spent(index, queries[[at]]) for at in range(SINGLES)]):.1f}",
        f"{spent(index, queries):.0f}",
        *(f"{spent(index, queries[:1], rows):.1f}" for rows in allowed),
        *(f"{ms:.1f}" for ms in changing),
        *(f"{value:.3f}" for value in (manifest.recall.value, manifest.recall.rescored, manifest.recall.deep)),
    ]
    shutil.rmtree(folder)
    return row, f"{catalog.windows:,} windows: {choice.reason}"


def stems(catalog: Catalog) -> Iterator[dict[int, StemEmbeddings]]:
    """The catalog as stems by row, some at a time."""
    numbers, starts_s = np.arange(WINDOWS_EACH), np.arange(WINDOWS_EACH) * 2.5
    for start, embedding in catalog.parts():
        own = embedding.reshape(-1, WINDOWS_EACH, embedding.shape[1])
        rows = range(start // WINDOWS_EACH, start // WINDOWS_EACH + len(own))
        yield {row: StemEmbeddings.in_clock_time(numbers, starts_s, one) for row, one in zip(rows, own, strict=True)}


# ---------------------------------------------------------------- mixed windows beside real ones


def comparison(kept: WindowFiles, fold: HermitianFold) -> str:
    """A table of what makes a search easy or hard: real windows of either half, and those mixed from the first half."""
    half = len(kept) // (2 * WINDOWS_EACH) * WINDOWS_EACH
    one, other = (kept[at : at + min(half, 20_000)] for at in (0, half))
    sets = {"real, one half": one, "real, other half": other}
    sets["mixed of the one"] = mixed(one, len(one), np.random.default_rng(0))
    names = ("", "windows", "best score", "10th", "50th", "all", "key norm", "directions for 99 %")
    rows = [[name, f"{len(one):,}", *traits(windows, fold)] for name, windows in sets.items()]
    return markdown_table((*names, "sq8 @10", "rabitq @10"), rows)


def traits(embedding: Complex64, fold: HermitianFold) -> list[str]:
    """Scores of windows of other stems, norms of keys, and what two kinds of code find at rank 64."""
    probes = np.arange(0, len(embedding), max(1, len(embedding) // 300))
    keys, queries = fold.keys(embedding), fold.queries(embedding[probes])
    scores = queries @ keys.T
    own = np.arange(len(embedding)) // WINDOWS_EACH
    scores[own[probes][:, None] == own] = -np.inf
    ordered = -np.sort(-scores, axis=1)
    spread = ordered[np.isfinite(ordered)]
    norms = np.linalg.norm(keys, axis=1)
    lengths = np.cumsum(np.linalg.eigvalsh(keys.T @ keys)[::-1])
    few = fold.turned_to(embedding).at_rank(64)
    truth = np.argsort(-queries @ keys.T, axis=1)[:, :RECALL_AT]
    found = []
    for name in ("SQ8", "RaBitQ"):
        index = faiss.index_factory(few.dim, name, faiss.METRIC_INNER_PRODUCT)
        index.train(few.keys(embedding))
        index.add(few.keys(embedding))
        found.append(shared(truth, index.search(few.queries(embedding[probes]), RECALL_AT)[1]))
    return [
        *(f"{ordered[:, at].mean():.2f} ± {ordered[:, at].std():.2f}" for at in (0, 9, 49)),
        *(f"{values.mean():.2f} ± {values.std():.2f}" for values in (spread, norms)),
        f"{np.searchsorted(lengths, 0.99 * lengths[-1]) + 1}",
        *(f"{share:.3f}" for share in found),
    ]


if __name__ == "__main__":
    main()
