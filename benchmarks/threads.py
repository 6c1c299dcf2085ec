"""What NumPy's threads cost a process that multiplies little and often: see the decision on threads.

python -m benchmarks.threads [--page docs/performance.md]
"""

import time

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.page import page_parser, publish
from indexer import HermitianFold
from model.checkpoints import load_phalar
from model.evaluation.results import markdown_table
from service.work.models import DEFAULT_CHECKPOINT

SECTION = "threads"
REPEATS, PAUSE_S = 40, 0.02
QUERIES = (1, 2, 8, 50)


def milliseconds(fold: HermitianFold, rows: int, rng: np.random.Generator) -> tuple[float, float]:
    """Of folding so many queries, median by the clock, and mean by the processor's time."""
    embedding = rng.standard_normal((rows, fold.embedding_dim, 2), np.float32).view(np.complex64)[..., 0]
    clock, busy = [], time.process_time()
    for _ in range(REPEATS):
        time.sleep(PAUSE_S)
        began = time.perf_counter()
        fold.queries(embedding)
        clock.append(1000 * (time.perf_counter() - began))
    return float(np.median(clock)), 1000 * (time.process_time() - busy) / REPEATS


def main() -> None:
    parser = page_parser(__doc__)
    arguments = parser.parse_args()
    fold = HermitianFold(load_phalar(DEFAULT_CHECKPOINT).hermitian)
    rng, rows = np.random.default_rng(0), []
    for queries in QUERIES:
        many, many_busy = milliseconds(fold, queries, rng)
        with threadpool_limits(1, "blas"):
            one, one_busy = milliseconds(fold, queries, rng)
        rows.append(
            [str(queries), f"{many:.2f}", f"{one:.2f}", f"{many / one:.1f}", f"{many_busy:.2f}", f"{one_busy:.2f}"]
        )
    header = ["queries folded", "all threads, ms", "one thread, ms", "ratio"]
    header += ["all threads, processor's ms", "one, processor's ms"]
    publish(markdown_table(header, rows), arguments.page, SECTION)


if __name__ == "__main__":
    main()
