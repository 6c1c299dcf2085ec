"""What processes take, as Linux tells it in /proc."""

import os
from contextlib import suppress
from pathlib import Path


def children(pid: int) -> list[int]:
    """Those of all its threads; none where it has ended."""
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found


def used_s(pid: int) -> float:
    """Processor seconds of a process and of all that it has started, living and ended."""
    ticks = 0
    with suppress(OSError):
        ticks = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK") + sum(map(used_s, children(pid)))


def resident(pid: int) -> int:
    """Bytes that a process holds in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
