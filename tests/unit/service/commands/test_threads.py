"""NumPy's products stay on one thread where a service says so."""

import subprocess
import sys

PROGRAM = """
import faiss, numpy, torch
from threadpoolctl import ThreadpoolController
from service.commands.threads import NUMPYS_BLAS, keep_numpy_on_one_thread
before = {one["filepath"]: one["num_threads"] for one in ThreadpoolController().info()}
assert keep_numpy_on_one_thread() == 1
for one in ThreadpoolController().info():
    assert one["num_threads"] == (1 if one["prefix"] == NUMPYS_BLAS else before[one["filepath"]]), one
"""


def test_numpy_stays_on_one_thread_and_nothing_else_does() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
