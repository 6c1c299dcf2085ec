"""How long fitted audio takes: the first time, from the disk, and the stretcher alone on the same samples.

    python -m benchmarks.fitted [--page docs/performance.md]

A real service with one composed minute of 44.1 kHz stereo; each request is for another place of it. The three are timed
in turns, so that all find the machine as it is then. Beside the time that a client waits stands the processor's, of the
service and its decoders: on a machine with nothing else to do the two are near each other, as one step follows another.
"""

import io
import os
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import soundfile

from benchmarks.installation import Installation
from benchmarks.page import page_parser, publish
from benchmarks.processes import used_s
from model.demo import compose_track
from model.evaluation.results import markdown_table
from service.work.fitting import Fitting, Samples, fit, frames_needed

SECTION = "fitted"
RATE = 44_100
SECONDS, TRACK_S = 8.0, 60.0
ASKED = ((1.04, 0, "wav"), (1.04, -2, "wav"), (1.0, -2, "flac"), (1.04, -2, "mp3"), (1.04, -2, "ogg"))


def stereo() -> Samples:
    """float32 (2, samples): a composed track, its stems to either side."""
    stems = compose_track(3, TRACK_S, RATE).stems
    sides = [(1.0, 0.6), (0.6, 1.0)]
    return np.sum([np.outer(sides[at % 2], stem.waveform) for at, stem in enumerate(stems)], axis=0, dtype=np.float32)


def get_ms(client: httpx.Client, path: str, asked: dict[str, str | float]) -> float:
    began = time.perf_counter()
    answer = client.get(path, params=asked)
    took = (time.perf_counter() - began) * 1000
    assert answer.status_code == 200, answer.text
    return took


def fit_ms(samples: Samples, fitting: Fitting) -> float:
    """Of the processor."""
    first, count = frames_needed(fitting, RATE)
    part = samples[:, first : first + (count or 0)]
    began = time.process_time()
    fit(part, RATE, fitting, first=first)
    return (time.process_time() - began) * 1000


def measure(client: httpx.Client, api: int, path: str, samples: Samples, repeats: int) -> str:
    rows = []
    for speed, transpose, kind in ASKED:
        waited, spent = [], np.zeros(3)
        for at in range(repeats + 1):
            start_s = 1.0 + at * (TRACK_S - 2 * SECONDS) / (repeats + 1)
            asked: dict[str, str | float] = {"speed": speed, "transpose": transpose, "start_s": start_s}
            asked |= {"duration_s": SECONDS, "format": kind}
            before = used_s(api)
            first, between, again = get_ms(client, path, asked), used_s(api), get_ms(client, path, asked)
            alone = fit_ms(samples, Fitting(speed, transpose, start_s, SECONDS))
            if at:  # the first one loads what is loaded once
                waited.append((first, again))
                spent += (1000 * (between - before), 1000 * (used_s(api) - between), alone)
        figures = [*np.median(waited, axis=0), *spent / repeats]
        rows.append([f"{speed:g}", str(transpose), kind, *(f"{figure:.0f}" for figure in figures)])
    header = ["speed", "semitones", "format", "first, ms", "again, ms", "processor first, ms", "processor again, ms"]
    return markdown_table([*header, "stretcher alone, ms"], rows)


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    samples = stereo()
    file = io.BytesIO()
    soundfile.write(file, samples.T, RATE, format="WAV", subtype="PCM_24")
    with (
        tempfile.TemporaryDirectory() as folder,
        Installation(Path(folder), {"PHALAR_WORKERS": "0"}) as installation,
        installation.client() as client,
    ):
        sent = client.post("/stems", files={"files": ("track.wav", file.getvalue())})
        sent.raise_for_status()
        path = f"/stems/{sent.json()['items'][0]['stem_id']}/audio"
        text = measure(client, installation.pids()["api"], path, samples, arguments.repeats)
    told = f"{SECONDS:g} s of 44.1 kHz stereo, {arguments.repeats} each: medians of the wait, means of the processor"
    load = f"load of the machine {os.getloadavg()[0]:.1f}"
    publish(f"{told}; {load}.\n\n{text}", arguments.page, SECTION)


if __name__ == "__main__":
    main()
