"""A folder of clips, each with what somebody heard in it beside it; and the windows of one, embedded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.audio import Waveform, cut_windows
from model.errors import Told
from model.evaluation.systems import System
from model.training.tracks import SUFFIXES, Dropped

Annotation = TypeVar("Annotation")

SAMPLES_PER_CALL = 64 * 80_000
"""Most samples handed to `System.embed` at once, which bounds memory: 64 windows of 5 s."""


class BadAnnotation(Told, ValueError):
    """A line of an annotation file (`path`, `line` from 1) that cannot be read; line 0 is the file as a whole."""

    says = "{path}:{line}: {reason}"
    path: Path
    line: int
    reason: str


class NothingAnnotated(Told, ValueError):
    says = "{folder}: no audio file that can be used has a {suffix} file of its name beside it"
    folder: Path
    suffix: str


def embed_windows(system: System, waveform: Waveform, starts: NDArray[np.int64], window: int) -> Tensor:
    """Embed windows of a waveform, as many at a time as memory bears.

    Args:
        system: that embeds.
        waveform: float32 (samples,) at 16 kHz.
        starts: int64 (n,), samples; at least one, each window inside the waveform.
        window: samples.

    Returns:
        Whatever the system makes of them, (n, ...).
    """
    calls = np.array_split(starts, -(-len(starts) * window // SAMPLES_PER_CALL))
    return torch.cat([system.embed(torch.from_numpy(cut_windows(waveform, part, window))) for part in calls])


def lines_of(path: Path) -> list[tuple[int, str]]:
    """The lines of an annotation file with their numbers, but empty ones and those that begin with #.

    Raises:
        BadAnnotation: the file is not in UTF-8, or has no other lines.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows' editors begin with a mark
    except UnicodeDecodeError as error:
        raise BadAnnotation(path, 0, f"not in UTF-8: {error}") from error
    told = [(number, line) for number, line in enumerate(lines, start=1) if line.strip() and not line.startswith("#")]
    if not told:
        raise BadAnnotation(path, 0, "nothing is annotated")
    return told


def annotated_files(
    folder: Path, suffix: str, read: Callable[[Path], Annotation]
) -> tuple[list[tuple[str, Path, Annotation]], list[Dropped]]:
    """Find audio files that have an annotation beside them, and read all of these: a bad one is told before any work.

    Returns:
        (name below the folder, audio file, annotation) of each, sorted by name; and the audio files without one.
    """
    found: list[tuple[str, Path, Annotation]] = []
    left_out: list[Dropped] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith("."):
            name, annotation = path.relative_to(folder).as_posix(), path.with_suffix(suffix)
            if annotation.is_file():
                found.append((name, path, read(annotation)))
            else:
                left_out.append(Dropped(name, None, f"no {annotation.name} beside it"))
    return found, left_out
