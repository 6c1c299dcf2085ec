"""The bank of a run: the tracks on disk that it names, and those that our composer adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from pathlib import Path

from model.audio import SAMPLE_RATE
from model.audio.truth import FILE
from model.demo import compose_track, write_track
from model.training.processes import map_in_processes
from model.training.recipe import DataSettings
from model.training.stems import StemBank, load_bank

FIRST_SEED = 1000
"""The composer's seeds from here on are for training; the demo catalog and tests use those below."""


def training_bank(
    roots: Sequence[Path],
    settings: DataSettings,
    cache: Path,
    jobs: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> StemBank:
    """Compose what is missing, decode what is new, and map the rest.

    Args:
        roots: folders of tracks, see `find_tracks`; may be none where the settings ask for composed tracks.
        settings: how many tracks are composed, and how much of each track is used.
        cache: where composed tracks and banks are kept.
        jobs: processes.
        progress: called with what is being done, how many are done, and how many there are.
    """
    folders = list(roots)
    if settings.composed:
        chosen = cache / f"composed-{settings.composed_seconds:g}s-{settings.composed}"
        chosen.mkdir(parents=True, exist_ok=True)
        seeds = range(FIRST_SEED, FIRST_SEED + settings.composed)
        made = map_in_processes(_compose, seeds, repeat(settings.composed_seconds), repeat(chosen), jobs=jobs)
        for done, _ in enumerate(made, start=1):
            if progress is not None:
                progress("composing", done, settings.composed)
        folders.append(chosen)
    decoding = None if progress is None else lambda done, total: progress("decoding", done, total)
    return load_bank(folders, cache, most_seconds=settings.most_seconds, jobs=jobs, progress=decoding)


def _compose(seed: int, seconds: float, folder: Path) -> None:
    """`<folder>/<seed>/<instrument>.flac` and its track.json, unless they are there."""
    home = folder / f"{seed:06d}"
    if not (home / FILE).is_file():  # it is written last
        write_track(compose_track(seed, seconds, SAMPLE_RATE), home)
