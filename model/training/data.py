"""The bank of a run: the tracks on disk that it names, and those that our composer adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from pathlib import Path

from model.audio.truth import FILE
from model.demo import compose_files
from model.training.processes import alone_in, map_in_processes
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
        homes = {seed: chosen / f"{seed:06d}" for seed in range(FIRST_SEED, FIRST_SEED + settings.composed)}
        with alone_in(chosen):  # another training may want the same
            missing = {seed: home for seed, home in homes.items() if not (home / FILE).is_file()}  # written last
            length = repeat(settings.composed_seconds)
            made = map_in_processes(compose_files, missing, length, missing.values(), jobs=jobs)
            for done, _ in enumerate(made, start=len(homes) - len(missing) + 1):
                if progress is not None:
                    progress("composing", done, settings.composed)
        folders.append(chosen)
    decoding = None if progress is None else lambda done, total: progress("decoding", done, total)
    return load_bank(folders, cache, most_seconds=settings.most_seconds, jobs=jobs, progress=decoding)
