"""Latency and rate of POST /retrieve for several clients at once, beside the bare encoder on as many windows.

    python -m benchmarks.queries [--page docs/performance.md]

A real service with the demo's tracks of 40 s and the default model; each query is another cut. How many windows were
embedded is what the worker counted. Beside several clients the encoder is timed before and after them, with the service
idle; beside a lone one in turns with it, so that both find the machine as it is then.
"""

import math
import os
import re
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from benchmarks.bare import BareEncoder, compose, mixes
from benchmarks.installation import Installation
from benchmarks.page import page_parser, publish
from model.audio import load_clip
from model.evaluation.results import markdown_table
from service.commands.client import Client, NewStem
from service.settings import Settings

SECTION = "queries"
CLIENTS = (1, 8, 32)
SECONDS = 8.0
TRACK_S = 40.0
TURNS = 2
ASKED = (("beats", SECONDS), ("search", SECONDS), ("grid", SECONDS), ("grid", 30.0))
CLAIM_AFTER_S = 6  # a worker reports three times in this time
SETTINGS = {"PHALAR_CLAIM_AFTER_S": str(CLAIM_AFTER_S)}


@dataclass(frozen=True)
class Asked:
    """What came of some queries, asked by some clients."""

    ms: list[float]  # of each query
    stages: dict[str, float]  # median ms
    seconds: float  # in all
    windows: float  # embedded, by the worker's count


def worker_windows(client: httpx.Client) -> float:
    """Windows that the workers have embedded; waits for their next report."""
    time.sleep(CLAIM_AFTER_S / 2)
    text = client.get("/metrics").text
    return sum(float(value) for value in re.findall(r'^phalar_worker\{figure="windows",.*\} (\S+)$', text, re.M))


def ask(client: httpx.Client, mix: bytes, align: str, **wishes: str) -> tuple[float, dict[str, float]]:
    """Milliseconds of one query, and of its stages."""
    began = time.perf_counter()
    answer = client.post("/retrieve", files={"file": ("mix.flac", mix)}, data={"align": align, **wishes})
    ms = (time.perf_counter() - began) * 1000
    answer.raise_for_status()
    stages: dict[str, float] = answer.json()["timing_ms"]
    return ms, stages


def ask_all(client: httpx.Client, asked: Sequence[bytes], align: str, clients: int) -> Asked:
    """Ask by so many clients at once, each as soon as it has its answer."""
    before = worker_windows(client)
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda mix: ask(client, mix, align), asked))
    seconds = time.perf_counter() - began
    return Asked([ms for ms, _ in answers], _medians(answers), seconds, worker_windows(client) - before)


def ask_alone(
    client: httpx.Client, bare: BareEncoder, asked: Sequence[bytes], align: str, windows: int
) -> tuple[list[float], dict[str, float], float]:
    """Milliseconds of each query, medians of their stages, and the median of the encoder's on as many windows."""
    answers, encoder_ms = [], []
    for turn in range(TURNS):
        mine = asked[turn::TURNS]
        answers += [ask(client, mix, align) for mix in mine]
        encoder_ms += [bare.seconds(windows, repeats=1) * 1000 for _ in mine]
    return [ms for ms, _ in answers], _medians(answers), float(np.median(encoder_ms))


def _medians(answers: Sequence[tuple[float, dict[str, float]]]) -> dict[str, float]:
    return {name: float(np.median([stages[name] for _, stages in answers])) for name in answers[0][1]}


def measure(client: httpx.Client, bare: BareEncoder, tracks: Sequence[Sequence[Path]], queries: int) -> tuple[str, str]:
    """The table of latencies, and that of a lone client's stages."""
    rows, stage_rows, stages = [], [], ["decode", "hear", "embed", "index", "rescore", "total"]
    for align, length_s in ASKED:
        cuts = mixes(tracks, 4 * queries, length_s)
        ask(client, cuts[0], align)  # the first one loads what is loaded once
        for clients in CLIENTS:
            count = queries * (1 if clients == 1 else 2 if clients == 8 else 4)
            before = bare.rate()
            asked = ask_all(client, [cuts[at % len(cuts)] for at in range(count)], align, clients)
            rate = (before + bare.rate()) / 2
            each = asked.windows / count
            times, alone = asked.ms, math.nan
            if clients == 1:
                times, lone_stages, encoder_ms = ask_alone(client, bare, cuts[:count], align, max(1, round(each)))
                alone = encoder_ms + lone_stages["decode"]
                told = [f"{ms:.1f}" for ms in (*(lone_stages.get(stage, 0.0) for stage in stages), encoder_ms)]
                stage_rows.append([align, f"{length_s:.0f}", *told])
            p50, p99 = np.percentile(times, [50, 99])
            row = [align, f"{length_s:.0f}", str(clients), str(count), f"{each:.1f}", f"{p50:.0f}", f"{p99:.0f}"]
            row.append(f"{p50 / alone:.2f}" if clients == 1 else "")  # of several, each waits for the others
            rows.append([*row, f"{asked.windows / asked.seconds / rate:.0%}"])
    header = ["align", "mix, s", "clients", "queries", "windows each", "p50, ms", "p99, ms"]
    return (
        markdown_table([*header, "p50 / encoder", "rate / encoder"], rows),
        markdown_table(["a lone client, ms", "mix, s", *stages, "the encoder alone"], stage_rows),
    )


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--queries", type=int, default=16, help="of a lone client; 8 ask twice as many, 32 four times")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, as the service does
    with tempfile.TemporaryDirectory() as folder:
        tracks = compose(Path(folder) / "demo", TRACK_S)
        bare = BareEncoder(Settings(), load_clip(tracks[0][0]).waveform)
        with Installation(Path(folder), SETTINGS, client_timeout_s=600) as installation:
            with Client(installation.url) as uploads:
                for _ in uploads.ingest(NewStem(path, {}) for track in tracks for path in track):
                    pass
            with installation.client() as client:
                text = "\n".join(measure(client, bare, tracks, arguments.queries))
    publish(text, arguments.page, SECTION)


if __name__ == "__main__":
    main()
