"""How long fitted audio takes: the first time, from the disk, and the stretcher alone on the same samples.

    python -m benchmarks.fitted [--page docs/performance.md]

A real service with one composed minute of 44.1 kHz stereo; each request is for another place of it. The three are timed
in turns, so that all find the machine as it is then; the stretcher's time is that of the processor, too.
"""

import io
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import soundfile

from benchmarks.installation import Installation
from benchmarks.page import page_parser, publish
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


def fit_ms(samples: Samples, fitting: Fitting) -> tuple[float, float]:
    """Of the wall, and of the processor."""
    first, count = frames_needed(fitting, RATE)
    part = samples[:, first : first + (count or 0)]
    began, spent = time.perf_counter(), time.process_time()
    fit(part, RATE, fitting, first=first)
    return (time.perf_counter() - began) * 1000, (time.process_time() - spent) * 1000


def measure(client: httpx.Client, path: str, samples: Samples, repeats: int) -> str:
    rows = []
    for speed, transpose, kind in ASKED:
        taken = []
        for at in range(repeats + 1):
            start_s = 1.0 + at * (TRACK_S - 2 * SECONDS) / (repeats + 1)
            asked: dict[str, str | float] = {"speed": speed, "transpose": transpose, "start_s": start_s}
            asked |= {"duration_s": SECONDS, "format": kind}
            first, again = get_ms(client, path, asked), get_ms(client, path, asked)
            taken.append((first, again, *fit_ms(samples, Fitting(speed, transpose, start_s, SECONDS))))
        first, again, alone, processor = np.median(taken[1:], axis=0)  # the first one loads what is loaded once
        figures = (f"{first:.0f}", f"{again:.0f}", f"{alone:.0f}", f"{processor:.0f}", f"{first / alone:.2f}")
        rows.append([f"{speed:g}", str(transpose), kind, *figures])
    header = ["speed", "semitones", "format", "first, ms", "again, ms", "stretcher, ms", "its processor, ms"]
    return markdown_table([*header, "first / stretcher"], rows)


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    samples = stereo()
    file = io.BytesIO()
    soundfile.write(file, samples.T, RATE, format="WAV", subtype="PCM_24")
    with tempfile.TemporaryDirectory() as folder:
        installation = Installation(Path(folder), {"PHALAR_WORKERS": "0"}).start()
        try:
            with installation.client() as client:
                sent = client.post("/stems", files={"files": ("track.wav", file.getvalue())})
                sent.raise_for_status()
                path = f"/stems/{sent.json()['items'][0]['stem_id']}/audio"
                text = measure(client, path, samples, arguments.repeats)
        finally:
            installation.stop()
    publish(f"{SECONDS:g} s of 44.1 kHz stereo, medians of {arguments.repeats}.\n\n{text}", arguments.page, SECTION)


if __name__ == "__main__":
    main()
