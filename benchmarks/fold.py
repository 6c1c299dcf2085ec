"""How fast embeddings are folded into keys: the whole form, half of its eigenvalues, an eighth.

python -m benchmarks.fold [--page docs/performance.md]
"""

import time

import numpy as np

from benchmarks.page import page_parser, publish
from benchmarks.windows import Complex64
from indexer import HermitianFold
from model.checkpoints import load_phalar
from model.evaluation.results import markdown_table
from service.work.models import DEFAULT_CHECKPOINT

SECTION = "fold"
KEYS, REPEATS = 10_000, 5


def rate(fold: HermitianFold, embedding: Complex64) -> float:
    """Keys a second, the median of some turns."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        fold.keys(embedding)
        times.append(time.perf_counter() - began)
    return len(embedding) / float(np.median(times))


def main() -> None:
    parser = page_parser(__doc__)
    arguments = parser.parse_args()
    whole = HermitianFold(load_phalar(DEFAULT_CHECKPOINT).hermitian)
    parts = np.random.default_rng(0).standard_normal((KEYS, whole.embedding_dim, 2), dtype=np.float32)
    many = parts.view(np.complex64)[..., 0]
    rows = []
    for rank in (whole.rank, whole.rank // 2, whole.rank // 8):
        fold = whole.at_rank(rank)
        rows.append([str(rank), f"{rate(fold, many):,.0f}", f"{4 * fold.dim:,}", f"{fold.bound:.2g}"])
    table = markdown_table(["rank", "keys folded/s", "bytes a key", "a score is off by at most"], rows)
    publish(table, arguments.page, SECTION)


if __name__ == "__main__":
    main()
