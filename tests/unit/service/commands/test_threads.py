"""What processes of the service load, and that NumPy's products stay on one thread where they say so."""

import subprocess
import sys

PROGRAM = """
import sys, faiss, torch, service.api.app, service.work.worker, model.phalar
model.phalar.untrained_phalar()
assert "scipy" not in sys.modules, "a second of every start"
from threadpoolctl import ThreadpoolController
from service.commands.threads import NUMPYS_BLAS, keep_numpy_on_one_thread
before = {one["filepath"]: one["num_threads"] for one in ThreadpoolController().info()}
assert keep_numpy_on_one_thread() == 1
for one in ThreadpoolController().info():
    assert one["num_threads"] == (1 if one["prefix"] == NUMPYS_BLAS else before[one["filepath"]]), one
"""

SUPERVISOR = """
import sys, service.commands.__main__, service.local.serve
assert not {"alembic", "faiss", "sqlalchemy", "torch"} & set(sys.modules)
"""


def test_the_supervisor_waits_for_no_library_that_only_its_children_need() -> None:
    done = subprocess.run([sys.executable, "-c", SUPERVISOR], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_process_waits_for_scipy_and_numpy_alone_stays_on_one_thread() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
