"""What a fork costs by the libraries that the forking process has mapped.

python -m benchmarks.forks [--page docs/decisions/decoding-in-forked-children.md]
"""

import json
import subprocess
import sys

from benchmarks.page import page_parser, publish
from model.evaluation.results import markdown_table

SECTION = "forks"
LIBRARIES = {"NumPy": "numpy", "and libsndfile, soxr": "soundfile,soxr", "and FFmpeg": "soundfile,soxr,av"}
PROGRAM = """
import gc, importlib, json, os, statistics, sys, time
import numpy
for name in sys.argv[1].split(","):
    importlib.import_module(name)
gc.freeze()
clock, busy = [], []
for _ in range(100):
    began = time.perf_counter()
    process = os.fork()
    if process == 0:
        os._exit(0)
    used = os.wait4(process, 0)[2]
    clock.append(1000 * (time.perf_counter() - began))
    busy.append(1000 * (used.ru_utime + used.ru_stime))
mappings = len(open("/proc/self/maps").readlines())
print(json.dumps([mappings, statistics.median(clock), statistics.median(busy)]))
"""


def main() -> None:
    parser = page_parser(__doc__)
    arguments = parser.parse_args()
    rows = []
    for what, names in LIBRARIES.items():
        answer = subprocess.run([sys.executable, "-c", PROGRAM, names], capture_output=True, text=True, check=True)
        mappings, clock, busy = json.loads(answer.stdout)
        rows.append([what, f"{mappings}", f"{clock:.1f}", f"{busy:.1f}"])
    header = ["imported", "mappings", "a child that does nothing, ms", "the child's processor time, ms"]
    table = markdown_table(header, rows)
    publish(table, arguments.page, SECTION)


if __name__ == "__main__":
    main()
