"""How many threads NumPy's products take: see docs/decisions/threads-that-wait-do-not-spin.md."""

from threadpoolctl import ThreadpoolController

NUMPYS_BLAS = "libscipy_openblas"
"""What NumPy's wheels call their library; FAISS and torch have others, which are left as they are."""


def keep_numpy_on_one_thread() -> int:
    """For processes that have other threads to run: API and worker. Returns how many libraries it found."""
    found = ThreadpoolController().select(prefix=NUMPYS_BLAS)
    found.limit(limits=1)
    return len(found)
