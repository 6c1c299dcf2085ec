"""`make bench`: every measurement of speed that needs nothing but this machine, one after another.

    python -m benchmarks [--page docs/performance.md] [--large]

Each runs in a process of its own, on a machine that should have nothing else to do.
"""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

from benchmarks.page import page_parser, processor, publish, today
from model.evaluation.results import markdown_table

SUBJECTS = ("cqt", "encoder", "ingest", "queries", "fitted", "threads", "fold", "index_at_size", "large", "words")
LARGE = "200000,1000000"
PACKAGES = ("torch", "numpy", "faiss-cpu", "faiss-gpu")


def machine() -> str:
    """What the figures were measured on: a table."""
    rows = [
        ["date", today()],
        ["processor", f"{processor()}, {len(os.sched_getaffinity(0))} cores"],
        ["memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"],
        ["system", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"],
        ["load when it began", f"{os.getloadavg()[0]:.1f}"],
    ]
    for package in PACKAGES:
        try:
            rows.append([package, version(package)])
        except PackageNotFoundError:
            continue
    return markdown_table(["machine", ""], rows)


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--large", action="store_true", help="search a million windows, too")
    arguments = parser.parse_args()
    page = ["--page", str(arguments.page)] if arguments.page else []
    table = machine()
    publish(table, arguments.page, "machine")
    for subject in SUBJECTS:
        print(f"\n{subject}\n", flush=True)
        sizes = ["--windows", LARGE] if arguments.large and subject == "index_at_size" else []
        subprocess.run([sys.executable, "-m", f"benchmarks.{subject}", *page, *sizes], check=True)


if __name__ == "__main__":
    main()
