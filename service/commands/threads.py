"""How threads wait, and how many NumPy's products take: see docs/decisions/threads-that-wait-do-not-spin.md."""

import os

from threadpoolctl import ThreadpoolController

NUMPYS_BLAS = "libscipy_openblas"
"""What NumPy's wheels call their library; FAISS and torch have others, which are left as they are."""


def keep_numpy_on_one_thread() -> int:
    """For processes that have other threads to run: API and worker. Returns how many libraries it found."""
    found = ThreadpoolController().select(prefix=NUMPYS_BLAS)
    found.limit(limits=1)
    return len(found)


def waiting_threads_sleep() -> None:
    """Call it before torch is loaded; processes that are started from here inherit it."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
