"""How much faster the CQT is than nnAudio's layer, and how far from it: `python -m benchmarks.cqt --threads 2`."""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from model.cqt import CQTSettings, FastCQT, plain_cqt, scale_decibels

SETTINGS = CQTSettings(sample_rate=16_000, hop=160, lowest_hz=16.35, bins=96, bins_per_octave=12)
RANGE_DB = 80.0


def interleaved_ms(*calls: Callable[[], Tensor], repeats: int) -> list[float]:
    """The best time of each call, in turns, so that what else the machine does hits all of them."""
    best = [float("inf")] * len(calls)
    for _ in range(repeats + 1):  # one to warm up: it only ever loses
        for place, call in enumerate(calls):
            started = time.perf_counter()
            call()
            best[place] = min(best[place], 1000 * (time.perf_counter() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    plain, fast = plain_cqt(SETTINGS), FastCQT(SETTINGS)
    generator = torch.Generator().manual_seed(0)
    print(f"{arguments.threads} threads, best of {arguments.repeats}, white noise at full scale")
    print("| seconds | batch | nnAudio, ms | ours, ms | ratio | relative error | scaled dB, largest difference |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with torch.inference_mode():
        for seconds, batch in ((2, 8), (5, 1), (5, 8), (5, 16), (10, 8), (30, 1)):
            clips = 2 * torch.rand(batch, seconds * 16_000, generator=generator) - 1

            def nnaudio(clips: Tensor = clips) -> Tensor:
                magnitudes: Tensor = plain(clips)
                return magnitudes

            def ours(clips: Tensor = clips) -> Tensor:
                magnitudes: Tensor = fast(clips)
                return magnitudes

            old, new = interleaved_ms(nnaudio, ours, repeats=arguments.repeats)
            expected, magnitudes = nnaudio(), ours()
            relative = float((magnitudes - expected).norm() / expected.norm())
            scaled = scale_decibels(magnitudes, RANGE_DB) - scale_decibels(expected, RANGE_DB)
            print(
                f"| {seconds} | {batch} | {old:.1f} | {new:.2f} | {old / new:.1f} "
                f"| {relative:.1e} | {float(scaled.abs().max()):.1e} |"
            )


if __name__ == "__main__":
    main()
