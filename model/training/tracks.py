"""Tracks on disk: which files are the stems of which track, and which split a track belongs to.

Read as their users have them on disk: MoisesDB, Slakh2100 (original and redux), CocoChorales, and any folder of
`<track>/<stem>.*`. Nothing is dropped in silence: what could not be used is listed with its reason.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from model.audio import ENDINGS
from model.checkpoints.heard import piece_of

Split = Literal["train", "validation", "test"]
SUFFIXES = frozenset(f".{ending}" for ending in ENDINGS)

MIX_NAMES = frozenset({"mix", "mixture", "master", "mixdown"})
"""Files of these names are the sum of the others, no stem."""

MOISES_STEMS = frozenset(
    {"bass", "bowed_strings", "drums", "guitar", "other", "other_keys", "other_plucked", "percussion", "piano",
     "vocals", "wind"}
)  # fmt: skip
"""The folders of a MoisesDB track; all files of one are one stem."""

SLAKH_OMITTED = "omitted"
"""The redux's folder of tracks that repeat others: left out, and said so."""


@dataclass(frozen=True)
class TrackFiles:
    """One track on disk: `stems` maps each stem's name to the files whose sum it is."""

    name: str
    stems: dict[str, tuple[Path, ...]]
    folder: Path | None = None  # where a track.json may lie


@dataclass(frozen=True)
class Dropped:
    """What could not be used, and why: a whole track, or one stem of it."""

    track: str
    stem: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.track}{f'/{self.stem}' if self.stem else ''}: {self.reason}"


def find_tracks(root: Path) -> tuple[list[TrackFiles], list[Dropped]]:
    """Find the tracks below a folder, in any of the layouts above, sorted by name.

    Args:
        root: of a data set, of one of its splits, or of any tree whose innermost folders are tracks.

    Returns:
        The tracks, each named for its path below the root, and the folders that were left out.
    """
    tracks: list[TrackFiles] = []
    dropped: list[Dropped] = []

    def visit(folder: Path, depth: int) -> None:
        name = folder.relative_to(root).as_posix()
        if depth and folder.name == SLAKH_OMITTED:
            dropped.append(Dropped(name, None, "Slakh's redux omits these tracks: they repeat others"))
            return
        for inner in ("stems", "stems_audio"):  # Slakh2100, CocoChorales
            if (folder / inner).is_dir() and (files := _audio(folder / inner)):
                add_track(name, files, folder)
                return
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        below = [path for path in below if not _leads_up(path)]
        moises = [path for path in below if path.name in MOISES_STEMS and _audio(path)]
        if moises and (len(moises) == len(below) or (folder / "data.json").is_file()):
            # A stem's folder may hold files of several sources: together they are the stem.
            tracks.append(TrackFiles(name, {path.name: tuple(_audio(path)) for path in below if _audio(path)}, folder))
            return
        files = [path for path in _audio(folder) if path.stem.lower() not in MIX_NAMES]
        if depth and files and (len(files) > 1 or not below):
            add_track(name, files, folder)
            inside = [path.relative_to(root).as_posix() for path in below if _audio(path)]
            dropped.extend(Dropped(path, None, "a folder beside the stems of a track") for path in inside)
            return
        outside = [path.relative_to(root).as_posix() for path in files]
        dropped.extend(Dropped(path, None, "a file outside any track's folder") for path in outside)
        if depth and not below:
            dropped.append(Dropped(name, None, "no audio file"))
        for path in below:
            try:
                visit(path, depth + 1)
            except PermissionError as error:
                dropped.append(Dropped(path.relative_to(root).as_posix(), None, f"cannot be read: {error.strerror}"))

    def add_track(name: str, files: list[Path], folder: Path) -> None:
        stems: dict[str, tuple[Path, ...]] = {}
        for path in files:
            if stems.setdefault(path.stem, (path,)) != (path,):
                beside = stems[path.stem][0].name
                dropped.append(Dropped(name, path.stem, f"{path.name}: {beside} has its name, and is taken"))
        tracks.append(TrackFiles(name, stems, folder))

    visit(root, 0)
    return sorted(tracks, key=lambda track: track.name), dropped


def named_tracks(root: Path) -> tuple[list[TrackFiles], list[Dropped]]:
    """As `find_tracks`, each name as a bank has it: the root's before it."""
    tracks, dropped = find_tracks(root)
    prefix = f"{root.resolve().name}/"
    return (
        [replace(track, name=prefix + track.name) for track in tracks],
        [Dropped(prefix + entry.track, entry.stem, entry.reason) for entry in dropped],
    )


def split_of(track: str, seed: int = 0) -> Split:
    """The split of a track: 80, 10 and 10 %, from its name alone, so that adding a track moves no other.

    Renderings of one piece stay together. The name is that of a `StemBank`, which begins with the root's: of a folder
    that is renamed, other tracks are held out. `model.checkpoints.heard` tells when that matters.
    """
    share = zlib.crc32(f"{seed}\0{piece_of(track)}".encode()) / 2**32
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def _leads_up(folder: Path) -> bool:
    """Whether it is a link to a folder that it lies in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _audio(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
