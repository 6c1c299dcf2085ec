"""The demo catalog: tracks of our own composer as files, and the mix that the first query is made with."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from model.training.processes import map_in_processes

MISSING = "bass"  # what the demo mix lacks, so that the first answer can be heard to be right


@dataclass(frozen=True)
class DemoStem:
    """One composed stem on disk, with what POST /stems is told about it."""

    path: Path
    metadata: dict[str, Any]


def compose_demo(folder: Path, tracks: int = 12, seconds: float = 20.0, seed: int = 0) -> Iterator[list[DemoStem]]:
    """Compose tracks into `<folder>/<track>/<instrument>.flac`, one track at a time as they are done.

    The first track's mix without its bass is written to `<folder>/mix.flac`.
    """
    seeds = range(seed, seed + tracks)
    with_mix = (one == seed for one in seeds)
    yield from map_in_processes(_compose, seeds, repeat(seconds), repeat(folder), with_mix, jobs=2)


def _compose(seed: int, seconds: float, folder: Path, with_mix: bool) -> list[DemoStem]:
    import soundfile

    from model.demo import compose_track, write_track

    track = compose_track(seed, seconds)
    paths = write_track(track, folder / track.slug)
    if with_mix:
        mix = track.submix(stem.instrument for stem in track.stems if stem.instrument != MISSING)
        soundfile.write(folder / "mix.flac", mix, track.sample_rate, format="FLAC", subtype="PCM_16")
    return [DemoStem(path, track.metadata(path.stem)) for path in paths]
