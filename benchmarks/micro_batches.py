"""Windows a second by the size of a micro-batch, and how far from a CPU's: `python -m benchmarks.micro_batches`.

Windows of 5 s of noise, embedded as a worker does it, in float32 and bfloat16. Ends by itself after `--most-seconds`.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch

from model.audio import SAMPLE_RATE
from model.checkpoints import load_phalar
from model.device import facts_of, open_device
from service.work.models import DEFAULT_CHECKPOINT

SIZES = (8, 16, 32, 64, 128, 256, 512)
TOLERANCE = {"float32": 2e-4, "bfloat16": 0.1}  # of an embedding's largest difference; sums in another order; 8 bits
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--most-seconds", type=float, default=90.0)
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.most_seconds
    device = open_device(arguments.device)
    print(json.dumps({"device": str(facts_of(device)), "torch": torch.__version__}), flush=True)
    windows = 0.1 * np.random.default_rng(0).standard_normal((SIZES[-1], 5 * SAMPLE_RATE)).astype(np.float32)
    expected = load_phalar(DEFAULT_CHECKPOINT).embed(windows[: SIZES[0]]).numpy()
    model = load_phalar(DEFAULT_CHECKPOINT, str(device))
    for precision in TOLERANCE:
        for size in SIZES:
            if time.monotonic() > end:
                print(json.dumps({"stopped": f"after {arguments.most_seconds:g} s, before {precision} x {size}"}))
                return

            def embed(size: int = size, half: bool = precision == "bfloat16") -> np.ndarray:
                with torch.autocast(device.type, dtype=torch.bfloat16) if half else nullcontext():
                    return model.embed(windows[:size]).cpu().numpy()

            far = float(np.abs(embed()[: SIZES[0]] - expected).max())
            taken = min(timed(embed) for _ in range(REPEATS))
            row = {"precision": precision, "windows": size, "a_second": round(size / taken, 1)}
            row |= {"largest_difference": far, "within_tolerance": far <= TOLERANCE[precision]}
            print(json.dumps(row), flush=True)


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
