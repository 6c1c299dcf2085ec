"""How much faster the CQT is than nnAudio's layer, and how far from it: `python -m benchmarks.cqt --threads 2`."""

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.page import page_parser, processor, publish, today
from model.cqt import CQTSettings, FastCQT, plain_cqt, scale_decibels
from model.evaluation.results import markdown_table

SETTINGS = CQTSettings(sample_rate=16_000, hop=160, lowest_hz=16.35, bins=96, bins_per_octave=12)
RANGE_DB = 80.0
COLUMNS = ["seconds", "batch", "nnAudio, ms", "ours, ms", "ratio", "relative error", "scaled dB, largest difference"]


def interleaved_ms(*calls: Callable[[], object], repeats: int) -> NDArray[np.float64]:
    """What each call took, in turns, so that what else the machine does hits all of them: ms, (repeats, calls).

    With one thread it is the process's own time on a processor, which others' work does not lengthen; with more, which
    may wait for each other, it is time on the wall.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken = np.empty((repeats + 1, len(calls)))  # one turn more, to warm up
    for turn in taken:
        for place, call in enumerate(calls):
            started = clock()
            call()
            turn[place] = 1000 * (clock() - started)
    return taken[1:]


def median_ratio(taken: NDArray[np.float64]) -> float:
    """How much longer the first call took than the second: the median over turns."""
    return float(np.median(taken[:, 0] / taken[:, 1]))


def headline(what: str) -> str:
    """Day, processor, torch and threads, and what was measured: the line over a table."""
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"Measured {today()}, {processor()} ({capability}), torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads; {what}.\n\n"
    )


def compare(seconds: int, batch: int, repeats: int) -> list[str]:
    """One row of the table: white noise at full scale."""
    plain, fast = plain_cqt(SETTINGS), FastCQT(SETTINGS)
    clips = 2 * torch.rand(batch, seconds * 16_000, generator=torch.Generator().manual_seed(0)) - 1
    taken = interleaved_ms(lambda: plain(clips), lambda: fast(clips), repeats=repeats)
    expected, magnitudes = plain(clips), fast(clips)
    relative = float((magnitudes - expected).norm() / expected.norm())
    apart: Tensor = scale_decibels(magnitudes, RANGE_DB) - scale_decibels(expected, RANGE_DB)
    old, new = np.median(taken, axis=0)
    row = [str(seconds), str(batch), f"{old:.1f}", f"{new:.2f}", f"{median_ratio(taken):.1f}"]
    return [*row, f"{relative:.1e}", f"{float(apart.abs().max()):.1e}"]


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with torch.inference_mode():
        sizes = ((2, 8), (5, 1), (5, 8), (5, 16), (10, 8), (30, 1))
        rows = [compare(seconds, batch, arguments.repeats) for seconds, batch in sizes]
    text = headline(f"white noise at full scale, medians of {arguments.repeats} turns") + markdown_table(COLUMNS, rows)
    publish(text, arguments.page, "cqt")


if __name__ == "__main__":
    main()
