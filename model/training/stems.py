"""The bank of stems: tracks on disk, decoded once into files that processes map and share."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.audio import SAMPLE_RATE, AudioError, Waveform, load_clip
from model.audio.grid import BadGrid, Grid, said_grid
from model.audio.hearing import Hearing
from model.audio.truth import FILE, BadTruth, Truth, read_truth
from model.checkpoints.weights import write_whole
from model.training.processes import alone_in, map_in_processes
from model.training.tracks import Dropped, TrackFiles, named_tracks, split_of

AUDIBLE_RMS = 1e-3
"""A stem counts in a window when its RMS there reaches this: -60 dBFS."""

ACTIVITY_HOP = SAMPLE_RATE // 10
"""Samples a cell of the table of what sounds when."""

CACHE_FORMAT = 3
_SAMPLES, _ACTIVITY, _FACTS = "samples.i16", "activity.npy", "tracks.json"


@dataclass(frozen=True)
class BankedTrack:
    """Where a track's stems lie: row after row of `samples`, from `offset` on in the `part` of its bank."""

    name: str
    stems: tuple[str, ...]
    part: int
    offset: int
    samples: int
    grid: Grid | None = None  # said by its track.json, or heard; None: no steady tempo
    key: str | None = None  # said, such as "F# minor"
    pitched: tuple[bool, ...] = ()  # whether each stem plays notes: said, or heard


class StemBank:
    """Every stem of a set of tracks, decoded once into files of 16-bit samples that are mapped, not read.

    A part for each root folder, so that training on several and measuring on one of them share it. Processes that use
    the same data share its pages. `tracks` tells where each track lies; what could not be used stands in `dropped`.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        tracks: list[BankedTrack] = []
        dropped: list[Dropped] = []
        for part, folder in enumerate(folders):
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            tracks += [_banked(entry, part) for entry in facts["tracks"]]
            dropped += [Dropped(**entry) for entry in facts["dropped"]]
        self.tracks = tuple(tracks)
        self.dropped = tuple(dropped)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")  # only read here
            self.samples = tuple(torch.from_numpy(_mapped(folder / _SAMPLES)) for folder in folders)
        self._activity = tuple(np.load(folder / _ACTIVITY, mmap_mode="r") for folder in folders)
        self._activity_at: list[int] = []
        ends = [0] * len(folders)
        for track in self.tracks:
            self._activity_at.append(ends[track.part])
            ends[track.part] += len(track.stems) * _cells(track.samples)

    def waveforms(self, track: int, start: int = 0, length: int | None = None) -> Waveform:
        """A stretch of a track's stems: float32 (stems, samples)."""
        banked = self.tracks[track]
        rows = self.samples[banked.part][banked.offset : banked.offset + len(banked.stems) * banked.samples].numpy()
        stop = banked.samples if length is None else start + length
        return rows.reshape(len(banked.stems), banked.samples)[:, start:stop].astype(np.float32) / np.float32(32_768)

    def audible(self, track: int, start: int, length: int) -> NDArray[np.bool_]:
        """Which stems of a track sound in a window, (stems,); to the nearest tenth of a second."""
        banked = self.tracks[track]
        at, cells = self._activity_at[track], _cells(banked.samples)
        table = self._activity[banked.part][at : at + len(banked.stems) * cells].reshape(len(banked.stems), cells)
        first = start // ACTIVITY_HOP
        last = max(first + 1, (start + length) // ACTIVITY_HOP)
        power: NDArray[np.float32] = table[:, first:last].mean(axis=1)
        return power >= AUDIBLE_RMS**2

    def of_split(self, split: str, seed: int = 0) -> list[int]:
        """The tracks of a split, or of "all", by their place in `tracks`."""
        return [at for at, track in enumerate(self.tracks) if split in ("all", split_of(track.name, seed))]


def _banked(entry: dict[str, Any], part: int) -> BankedTrack:
    grid = Grid(np.array(entry["beats_s"]), entry["grid"]) if entry["grid"] else None
    stems, pitched = tuple(entry["stems"]), tuple(entry["pitched"])
    return BankedTrack(entry["name"], stems, part, entry["offset"], entry["samples"], grid, entry["key"], pitched)


def _mapped(path: Path) -> NDArray[np.int16]:
    """A file of samples; of no track it is empty, and no empty file can be mapped."""
    return np.memmap(path, dtype=np.int16, mode="r") if path.stat().st_size else np.zeros(0, np.int16)


def _cells(samples: int) -> int:
    return -(-samples // ACTIVITY_HOP)


def load_bank(
    roots: Sequence[Path],
    cache: Path,
    *,
    most_seconds: float | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> StemBank:
    """Decode the tracks below some folders into a bank, each folder once, whatever bank it is asked for.

    Args:
        roots: folders for `find_tracks`; a track's name begins with its root's, of one root as of several.
        cache: a folder for banks.
        most_seconds: of each track, counted from its start; None: all.
        jobs: processes that decode.
        progress: called with tracks done and tracks in all.

    Returns:
        A bank of every track with two stems that sound at all. Stems of a track are padded with silence to the
        longest; those that cannot be decoded, or are silent or too short, are left out and listed.
    """
    found = {root: named_tracks(root) for root in map(Path.resolve, roots)}  # each once, however it is written
    folders = {root: cache / _fingerprint(tracks, most_seconds) for root, (tracks, _) in found.items()}
    missing = [root for root in found if not (folders[root] / _FACTS).is_file()]
    total, done = sum(len(found[root][0]) for root in missing), 0

    def one_more() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    for root in missing:
        with alone_in(folders[root]):
            if not (folders[root] / _FACTS).is_file():  # nor written by another process meanwhile
                _write_part(folders[root], *found[root], most_seconds, jobs, one_more)
    return StemBank([*folders.values()])


def _write_part(
    folder: Path,
    tracks: Sequence[TrackFiles],
    dropped: Sequence[Dropped],
    most_seconds: float | None,
    jobs: int,
    one_more: Callable[[], None],
) -> None:
    """Decode tracks into a folder that `StemBank` opens; `one_more` is called after each."""
    dropped = list(dropped)
    banked: list[dict[str, object]] = []
    activity: list[NDArray[np.float32]] = []
    offset = 0
    scratch = folder / f"{_SAMPLES}.partial"  # of one name, so that what a killed process left is written over
    try:
        with scratch.open("wb") as file:
            decoded = map_in_processes(_decode, tracks, [most_seconds] * len(tracks), jobs=jobs)
            for track, (stems, rows, cells, known, problems) in zip(tracks, decoded, strict=True):
                dropped += problems
                if len(stems) < 2:
                    dropped.append(Dropped(track.name, None, f"{len(stems)} of its stems can be used; two are needed"))
                else:
                    file.write(rows.tobytes())
                    shape = {"name": track.name, "stems": stems, "offset": offset, "samples": rows.shape[1]}
                    banked.append(shape | known)
                    activity.append(cells.reshape(-1))
                    offset += rows.size
                one_more()
        os.replace(scratch, folder / _SAMPLES)
    finally:
        scratch.unlink(missing_ok=True)  # of a decoding that was interrupted
    np.save(folder / _ACTIVITY, np.concatenate(activity) if activity else np.zeros(0, dtype=np.float32))
    facts = {"tracks": banked, "dropped": [asdict(entry) for entry in dropped]}
    write_whole(json.dumps(facts).encode() + b"\n", folder / _FACTS)  # last: a part with this file is whole


def _decode(
    track: TrackFiles, most_seconds: float | None
) -> tuple[tuple[str, ...], NDArray[np.int16], NDArray[np.float32], dict[str, Any], list[Dropped]]:
    """A track's stems as 16-bit rows, their power in each cell of the activity table, what is known of its beats and
    key, and what was left out."""
    waveforms: dict[str, Waveform] = {}
    problems: list[Dropped] = []
    most = None if most_seconds is None else round(most_seconds * SAMPLE_RATE)
    for name, files in track.stems.items():
        sources: list[Waveform] = []
        for path in files:
            try:
                sources.append(load_clip(path).waveform[:most])
            except (AudioError, OSError) as error:
                problems.append(Dropped(track.name, name, f"{path.name}: {type(error).__name__}: {error}"))
        if sources:
            waveforms[name] = _sum(sources)
    length = max((len(waveform) for waveform in waveforms.values()), default=0)
    rows = np.zeros((len(waveforms), length), dtype=np.float32)
    for row, waveform in zip(rows, waveforms.values(), strict=True):
        row[: len(waveform)] = waveform
    # One factor for the whole track, where one of its stems leaves the 16-bit range: their balance stays.
    loudest = float(np.abs(rows).max(initial=0.0))
    rows *= np.float32(min(1.0, 0.999 / max(loudest, 1e-9)))
    padded = np.zeros((len(waveforms), _cells(length) * ACTIVITY_HOP), dtype=np.float32)
    padded[:, :length] = rows
    cells = np.square(padded).reshape(len(waveforms), _cells(length), ACTIVITY_HOP).mean(axis=2)
    sounding = np.array([bool((row >= AUDIBLE_RMS**2).any()) for row in cells], dtype=bool)
    for name, sounds in zip(waveforms, sounding, strict=True):
        if not sounds:
            problems.append(Dropped(track.name, name, "never reaches -60 dBFS"))
    names = tuple(name for name, sounds in zip(waveforms, sounding, strict=True) if sounds)
    grid, truth, problem = _known(track, rows.sum(axis=0))
    if problem is not None:
        problems.append(Dropped(track.name, None, f"no beat grid: {problem}"))
    known = {
        "beats_s": [] if grid is None else grid.beats_s.tolist(),
        "grid": None if grid is None else grid.source,
        "key": truth.key,
        "pitched": [
            truth.pitched[name] if name in truth.pitched else Hearing(row).is_pitched()
            for name, row in zip(names, rows[sounding], strict=True)
        ],
    }
    return names, np.round(rows[sounding] * 32_767).astype(np.int16), cells[sounding], known, problems


def _known(track: TrackFiles, mix: Waveform) -> tuple[Grid | None, Truth, str | None]:
    """A track's grid, what its track.json says, and why it has no grid where that is the track.json's fault."""
    unknown = Truth((), None, {})
    try:
        truth = read_truth(track.folder) if track.folder is not None else None
        if truth is not None:
            return said_grid(np.array(truth.beats_s), len(mix) / SAMPLE_RATE), truth, None
    except (BadTruth, BadGrid) as error:
        return None, unknown, f"{FILE}: {error}"
    return Hearing(mix).grid(), unknown, None


def _sum(sources: Sequence[Waveform]) -> Waveform:
    total = np.zeros(max(map(len, sources)), dtype=np.float32)
    for source in sources:
        total[: len(source)] += source
    return total


def _fingerprint(tracks: Iterable[TrackFiles], most_seconds: float | None) -> str:
    digest = hashlib.sha256(f"{CACHE_FORMAT} {SAMPLE_RATE} {most_seconds}".encode())
    for track in tracks:
        files = [(stem, path) for stem, paths in track.stems.items() for path in paths]
        if track.folder is not None and (track.folder / FILE).is_file():
            files.append((FILE, track.folder / FILE))
        for stem, path in files:
            status = path.stat()
            facts = f"\0{track.name}\0{stem}\0{path}\0{status.st_size}\0{status.st_mtime_ns}"
            digest.update(facts.encode(errors="surrogateescape"))  # a path may be no UTF-8
    return digest.hexdigest()[:24]
