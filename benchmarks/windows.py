"""Windows of distinct music for the index's benchmarks: as many as wanted, embedded by one model.

    python -m benchmarks.windows FOLDER [--stems RENDERED] [--windows 1000000] [--checkpoint FILE]

Tracks below `--stems` and composed ones by turns. Each of their stems and some submixes are varied by speed,
transposition, equaliser and first beat, on the CQT's magnitudes, and embedded in beat time. `FOLDER` gets float16 files
and a manifest, and goes on from there when the command is given again, with tracks that came later.
"""

import argparse
import json
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.audio import SAMPLE_RATE, AudioError, load_clip
from model.audio.grid import FRAMES_A_BEAT, STRIDE_BEATS, WINDOW_BEATS, BadGrid, Grid, said_grid
from model.audio.truth import BadTruth, read_truth
from model.checkpoints import load_phalar
from model.cqt import MOST_SEMITONES, FastCQT, read_frames, scale_decibels
from model.demo.compose import compose_track
from model.phalar import Phalar
from model.similarity import to_unit_norm
from model.training.tracks import TrackFiles, find_tracks
from service.work.models import DEFAULT_CHECKPOINT

Complex64 = NDArray[np.complex64]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

WINDOWS_EACH = 8  # of a stem: rows lie in blocks of so many
BLOCKS = 3  # of a stem in one variation, at most
VARIATIONS = 2  # in speed, tone and first beat, of each stem and submix, each time its track is used
KEYS = 6  # of each variation
SOURCES = 16  # stems and submixes of a track, at most
SECONDS = 90.0  # of a track, at most
QUERY_SHARE = 0.1  # of the blocks of single stems: the rest of the mix asks for one of their windows
SPEEDS = (2 / 3, 3 / 4, 1.0, 1.0, 1.0, 4 / 3, 3 / 2)
EQUALISER_DB = 9.0
AUDIBLE_RMS = 1e-3
MANIFEST, WINDOWS, QUERIES, ANSWERS = "manifest.json", "windows.f16", "queries.f16", "answers.i64"


@dataclass(frozen=True)
class Kept:
    """The manifest: what the files hold."""

    fingerprint: str
    dimension: int
    windows: int = 0
    queries: int = 0
    done: tuple[str, ...] = ()  # tracks, each with how often it was used before
    note: str = "float16 real and imaginary parts, row by row; eight windows to a stem"


@dataclass
class Made:
    """Of one track."""

    windows: list[Complex64] = field(default_factory=list)
    queries: list[Complex64] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)  # rows among `windows`


class WindowFiles:
    """The files of a folder, mapped."""

    def __init__(self, folder: Path) -> None:
        self.kept = Kept(**json.loads((folder / MANIFEST).read_text()))
        shape = (self.kept.windows, 2 * self.kept.dimension)
        self._windows = np.memmap(folder / WINDOWS, np.float16, "r", shape=shape)
        queries = np.fromfile(folder / QUERIES, np.float16, self.kept.queries * 2 * self.kept.dimension)
        self.queries = embeddings(queries.reshape(-1, 2 * self.kept.dimension))
        """complex64 (m, D): each the rest of a mix from which one stem was taken."""
        self.answers: Int64 = np.fromfile(folder / ANSWERS, np.int64, self.kept.queries)
        """int64 (m,): the row of the window that was taken."""

    def __len__(self) -> int:
        return self.kept.windows

    def __getitem__(self, rows: slice | Int64) -> Complex64:
        """complex64 (n, D), of unit norm."""
        return embeddings(self._windows[rows])


def embeddings(halves: NDArray[np.float16]) -> Complex64:
    """float16 (n, 2D) -> complex64 (n, D), of unit norm."""
    rows = np.ascontiguousarray(halves, np.float32).view(np.complex64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Varied:
    """Embeds windows of a whole source, read in beat time at another speed, in another key and with another tone."""

    def __init__(self, model: Phalar) -> None:
        self._model = model
        settings = model.cqt.settings
        lowest_hz = settings.lowest_hz * 2 ** (-MOST_SEMITONES / settings.bins_per_octave)
        self._bins = settings.bins
        self._cqt = FastCQT(replace(settings, lowest_hz=lowest_hz, bins=settings.bins + 2 * MOST_SEMITONES))

    def hear(self, waveform: Float32) -> torch.Tensor:
        """Magnitudes of all of it: float32 (bins + 2 * MOST_SEMITONES, frames)."""
        return self._cqt(torch.from_numpy(waveform)[None])[0]

    def embed(self, magnitudes: torch.Tensor, places: NDArray[np.float64], keys: Int64, gains_db: Float32) -> Complex64:
        """Places float64 (n, frames of beat time), in frames; semitones; gains of octaves -> complex64 (keys, n, D).

        The keys share a pass of the network, as in `Phalar.embed_in_keys`.
        """
        at = np.linspace(0, len(gains_db) - 1, len(magnitudes))
        curve = 10 ** (np.interp(at, np.arange(len(gains_db)), gains_db) / 20)
        toned = magnitudes * torch.from_numpy(curve).float()[:, None]
        wanted = torch.from_numpy(places).float().clamp(0, toned.shape[1] - 1)
        read = read_frames(toned.expand(len(wanted), -1, -1), wanted)  # (n, bins, frames)
        features = self._model.backbone.infer(scale_decibels(read, self._model.config.dynamic_range_db))
        embedded = []
        for semitones in keys.tolist():
            start = MOST_SEMITONES - semitones
            projected = self._model.pooling.project(features[:, :, start : start + self._bins])
            embedded.append(to_unit_norm(self._model.head(self._model.pooling.pool(projected))).numpy())
        return np.stack(embedded)


def vary(varied: Varied, stems: list[Float32], grid: Grid, rng: np.random.Generator) -> Made:
    """The windows of one track, float32 (samples,) a stem, all equally long."""
    made, rows = Made(), 0
    singles = [(at,) for at in range(len(stems))][: SOURCES // 2]
    wanted = min(SOURCES // 2, 2 ** len(stems) - len(stems) - 2)
    submixes: set[tuple[int, ...]] = set()
    while len(submixes) < wanted:
        chosen = rng.permutation(len(stems))[: rng.integers(2, len(stems))] if len(stems) > 2 else np.arange(2)
        submixes.add(tuple(sorted(chosen.tolist())))
    for source in [*singles, *sorted(submixes)]:
        waveform = np.sum([stems[at] for at in source], axis=0, dtype=np.float32)
        magnitudes, rest = varied.hear(waveform), None
        for _ in range(VARIATIONS):
            speed = float(rng.choice(SPEEDS))
            keys = rng.permutation(np.arange(-MOST_SEMITONES, MOST_SEMITONES + 1))[:KEYS]
            gains = rng.uniform(-EQUALISER_DB, EQUALISER_DB, (2, 9)).astype(np.float32)
            starts = audible_starts(waveform, grid, speed, float(rng.integers(STRIDE_BEATS)))
            blocks = min(BLOCKS, len(starts) // WINDOWS_EACH)
            if not blocks:
                continue
            beats = np.linspace(0, WINDOW_BEATS * speed, 1 + WINDOW_BEATS * FRAMES_A_BEAT)
            places = grid.seconds_at(starts[: blocks * WINDOWS_EACH, None] + beats) * (SAMPLE_RATE / 160)
            made.windows.extend(varied.embed(magnitudes, places, keys, gains[0]))
            if len(source) == 1 and rng.random() < QUERY_SHARE:
                if rest is None:
                    others = [stem for at, stem in enumerate(stems) if at != source[0]]
                    rest = varied.hear(np.sum(others, axis=0, dtype=np.float32))
                asked, key = int(rng.integers(len(places))), int(rng.integers(KEYS))
                made.queries.append(varied.embed(rest, places[[asked]], keys[[key]], gains[1])[0])
                made.answers.append(rows + key * len(places) + asked)
            rows += KEYS * len(places)
    return made


def audible_starts(waveform: Float32, grid: Grid, speed: float, first: float) -> NDArray[np.float64]:
    """The beats from `first` on, a stride apart, on which a window begins that lies within the clip and sounds."""
    seconds = len(waveform) / SAMPLE_RATE
    stop = len(grid.beats_s) - 1 - WINDOW_BEATS * speed
    starts = np.arange(first, stop, STRIDE_BEATS * speed)
    ends = np.minimum(grid.seconds_at(starts + WINDOW_BEATS * speed), seconds)
    powers = np.concatenate([[0.0], np.cumsum(waveform.astype(np.float64) ** 2)])
    begin, end = (np.minimum((at * SAMPLE_RATE).astype(int), len(waveform)) for at in (grid.seconds_at(starts), ends))
    return starts[powers[end] - powers[begin] >= AUDIBLE_RMS**2 * np.maximum(end - begin, 1)]


def decoded(track: TrackFiles) -> tuple[list[Float32], Grid] | None:
    """A track's stems and its grid; None where it says none, or has too few stems that can be read."""
    try:
        truth = read_truth(track.folder) if track.folder else None
        clips = [
            load_clip(path).waveform[: int(SECONDS * SAMPLE_RATE)] for paths in track.stems.values() for path in paths
        ]
        if truth is None or len(clips) < 2:
            return None
        longest = max(map(len, clips))
        beats = np.array([beat for beat in truth.beats_s if beat <= longest / SAMPLE_RATE])
        stems = [np.pad(clip, (0, longest - len(clip))) for clip in clips]
        return [stem for stem in stems if np.abs(stem).max() > AUDIBLE_RMS], said_grid(beats, longest / SAMPLE_RATE)
    except (AudioError, BadTruth, BadGrid, OSError):
        return None


def composed(seed: int) -> tuple[list[Float32], Grid]:
    """A composed track's stems and its grid."""
    track = compose_track(seed, SECONDS * 2 / 3, SAMPLE_RATE)
    stems = [stem.waveform for stem in track.stems]
    return stems, said_grid(np.array(track.truth.beats_s), len(stems[0]) / SAMPLE_RATE)


def tracks(folders: list[Path], done: set[str]) -> Iterator[tuple[str, list[Float32], Grid]]:
    """Each track that is not done: three from the folders, then a composed one; all used, they are used again."""
    seeds = iter(seed for seed in count() if f"composed {seed}" not in done)
    for used in count():
        fresh = True
        while fresh:
            found = [(f"{folder.name}/{track.name}", track) for folder in folders for track in find_tracks(folder)[0]]
            names = [(name if not used else f"{name} {used}", track) for name, track in found]
            left = [(name, track) for name, track in names if name not in done]
            fresh = bool(left)
            left.sort(key=lambda named: zlib.crc32(named[0].encode()))
            for at, (name, track) in enumerate(left[:60]):
                done.add(name)
                if (known := decoded(track)) is not None and len(known[0]) > 1:
                    yield name, *known
                if at % 3 == 2:
                    seed = next(seeds)
                    yield f"composed {seed}", *composed(seed)
        if not folders or not found:
            seed = next(seeds)
            yield f"composed {seed}", *composed(seed)


def opened(folder: Path, model: Phalar) -> Kept:
    """The manifest of a folder, its files cut to what that says; a new one where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = Kept(model.fingerprint, model.config.dimension)
    if (folder / MANIFEST).is_file():
        found = Kept(**json.loads((folder / MANIFEST).read_text()))
        if found.fingerprint != kept.fingerprint:
            raise SystemExit(f"{folder} holds windows of another model")
        kept = replace(found, done=tuple(found.done))
    row = 4 * kept.dimension
    for name, size in ((WINDOWS, kept.windows * row), (QUERIES, kept.queries * row), (ANSWERS, kept.queries * 8)):
        with (folder / name).open("ab") as file:
            file.truncate(size)
    return kept


def write(folder: Path, kept: Kept, name: str, made: Made) -> Kept:
    """Append a track's windows, and the manifest that counts them."""
    for file_name, parts in ((WINDOWS, made.windows), (QUERIES, made.queries)):
        with (folder / file_name).open("ab") as file:
            for part in parts:
                file.write(part.view(np.float32).astype(np.float16).tobytes())
    with (folder / ANSWERS).open("ab") as file:
        file.write((np.array(made.answers, np.int64) + kept.windows).tobytes())
    kept = replace(
        kept,
        windows=kept.windows + sum(map(len, made.windows)),
        queries=kept.queries + len(made.queries),
        done=(*kept.done, name),
    )
    unnamed = folder / f"{MANIFEST}.partial"
    unnamed.write_text(json.dumps(asdict(kept), indent=1) + "\n")
    os.replace(unnamed, folder / MANIFEST)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stems", type=Path, action="append", default=[], help="tracks; may be given several times")
    parser.add_argument("--windows", type=int, default=1_000_000)
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT)
    arguments = parser.parse_args()
    model = load_phalar(arguments.checkpoint).eval()
    varied = Varied(model)
    kept = opened(arguments.folder, model)
    began, before = time.perf_counter(), kept.windows
    with torch.inference_mode():
        for name, stems, grid in tracks(arguments.stems, set(kept.done)):
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            kept = write(arguments.folder, kept, name, vary(varied, stems, grid, rng))
            rate = (kept.windows - before) / (time.perf_counter() - began)
            print(f"{kept.windows:,} windows, {kept.queries:,} queries, {rate:.0f} windows/s: {name}", flush=True)
            if kept.windows >= arguments.windows:
                break


if __name__ == "__main__":
    main()
