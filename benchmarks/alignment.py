"""Ingest real stems over HTTP, then find random cuts of them again: does the service tell which stem, and where?

With H set to the identity a stem's own audio scores highest, so the right answer is known for every cut. Weights are
the seeded ones: what is measured is the machinery (decoding, windows, fold, index, diagonals), not a model.

    python -m benchmarks.alignment --stems DIR [--cuts 200] [--seconds 8]

DIR holds `<track>/<stem>.ogg` (or another format); no file of it is changed.
"""

import argparse
import io
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from benchmarks.installation import Installation
from model.audio import SAMPLE_RATE, is_silent, load_clip
from model.checkpoints import save_phalar
from model.phalar import untrained_phalar

PLACE_TOLERANCE_S = 0.020
REPEAT_CORRELATION = 0.999  # two stretches this alike are the same music: an exact repeat counts as right
WINDOW = 5 * SAMPLE_RATE
AUDIO = {".ogg", ".wav", ".flac", ".mp3"}


@dataclass(frozen=True)
class Cut:
    """A stretch of one stem, as a user would send it."""

    stem: Path
    start_s: float
    waveform: NDArray[np.float32]

    def as_wav(self) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, self.waveform, SAMPLE_RATE, format="WAV", subtype="FLOAT")
        return file.getvalue()


def save_identity_checkpoint(path: Path) -> None:
    """Seeded weights with W = I, so that a window scores highest against itself."""
    model = untrained_phalar()
    dimension = model.config.dimension
    with torch.no_grad():
        model.similarity.form.weight.copy_(torch.cat([torch.eye(dimension), torch.zeros(dimension, dimension)]))
    save_phalar(model, path, trained=False)


def draw_cuts(stems: list[Path], count: int, seconds: float, seed: int) -> list[Cut]:
    """Cuts that begin at any sample of any stem; silent ones are drawn again."""
    rng = np.random.default_rng(seed)
    length, cuts = round(seconds * SAMPLE_RATE), []
    while len(cuts) < count:
        stem = stems[rng.integers(len(stems))]
        waveform = load_clip(stem).waveform
        if len(waveform) <= length:
            continue
        start = int(rng.integers(len(waveform) - length))
        cut = waveform[start : start + length]
        if not is_silent(cut):
            cuts.append(Cut(stem, start / SAMPLE_RATE, cut))
    return cuts


def repeats(cut: Cut, stem: Path, start_s: float) -> bool:
    """Whether the cut sounds at this place of a stem too: over all of it that the stem has, one window at least.

    The place may be off by the tolerance; the comparison finds the lag within it.
    """
    waveform, length = load_clip(stem).waveform, len(cut.waveform)
    reach, first = round(PLACE_TOLERANCE_S * SAMPLE_RATE), round(start_s * SAMPLE_RATE)
    begin, end = max(0, -first), min(length, len(waveform) - first)  # of the cut, where the stem has audio
    if end - begin < WINDOW:
        return False
    heard = cut.waveform[begin:end].astype(np.float64)
    best = 0.0
    for lag in range(-reach, reach + 1):
        at = first + begin + lag
        there = waveform[max(0, at) : at + len(heard)].astype(np.float64)
        if len(there) == len(heard):
            norm = np.linalg.norm(there) * np.linalg.norm(heard)
            best = max(best, float(heard @ there / max(norm, 1e-12)))
    return best >= REPEAT_CORRELATION


def ingest(client: httpx.Client, stems: list[Path]) -> dict[str, Path]:
    """Upload every stem, wait until each is ready or failed; returns the ready ones by id."""
    by_id: dict[str, Path] = {}
    began = time.perf_counter()
    for stem in stems:
        metadata = json.dumps({"track": stem.parent.name})
        with stem.open("rb") as file:
            answer = client.post("/stems", files={"files": (stem.name, file)}, data={"metadata": metadata})
        if answer.status_code != 202:
            print(f"refused  {stem.parent.name}/{stem.name}: {answer.json().get('detail')}")
            continue
        by_id.setdefault(answer.json()["items"][0]["stem_id"], stem)
    while (counts := client.get("/readyz").json()["stems"])["queued"]:
        time.sleep(1)
    print(f"{len(stems)} stems uploaded as {len(by_id)}: {counts} after {time.perf_counter() - began:.0f} s")
    for failed in client.get("/stems", params={"state": "failed", "limit": 500}).json()["stems"]:
        print(f"failed   {failed['track']}/{failed['file_name']}: {failed['problem']}")
    return by_id


def measure(client: httpx.Client, by_id: dict[str, Path], cuts: list[Cut]) -> None:
    """Ask for every cut and judge the first hit."""
    found = placed = 0
    seconds: list[float] = []
    stages: dict[str, list[float]] = {}
    for number, cut in enumerate(cuts, start=1):
        began = time.perf_counter()
        answer = client.post("/retrieve", files={"file": ("cut.wav", cut.as_wav())}, data={"limit": 3})
        seconds.append(time.perf_counter() - began)
        answer.raise_for_status()
        for stage, ms in answer.json()["timing_ms"].items():
            stages.setdefault(stage, []).append(ms)
        hit = answer.json()["hits"][0]
        stem = by_id[hit["stem"]["id"]]
        here = stem == cut.stem and abs(hit["start_s"] - cut.start_s) <= PLACE_TOLERANCE_S
        again = not here and repeats(cut, stem, hit["start_s"])
        found += stem == cut.stem or again
        placed += here or again
        if not (here or again):
            print(
                f"missed   {cut.stem.parent.name}/{cut.stem.name} at {cut.start_s:.3f} s, "
                f"got {stem.parent.name}/{stem.name} at {hit['start_s']:.2f} s, score {hit['score']:.4f}"
            )
        if number % 20 == 0:
            print(
                f"{number} cuts: stem found {found}, place right {placed}, median {np.median(seconds):.2f} s",
                flush=True,
            )
    print(f"cuts {len(cuts)}; stem first {found}; stem first and place within 20 ms {placed}")
    print("median ms: " + ", ".join(f"{stage} {np.median(ms):.0f}" for stage, ms in stages.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stems", type=Path, required=True)
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    stems = sorted(path for path in arguments.stems.rglob("*") if path.suffix.lower() in AUDIO)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "identity.safetensors"
        save_identity_checkpoint(checkpoint)
        service = Installation(Path(folder), {"PHALAR_CHECKPOINT": str(checkpoint)}, client_timeout_s=600).start()
        try:
            with service.client() as client:
                by_id = ingest(client, stems)
                measure(
                    client, by_id, draw_cuts(sorted(by_id.values()), arguments.cuts, arguments.seconds, arguments.seed)
                )
        finally:
            service.stop()


if __name__ == "__main__":
    main()
