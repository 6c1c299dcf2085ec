"""A stem's waveform -> what it is musically, and where its windows lie: on its beats, or by the clock."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from indexer import StemJob, StemMusic
from model.audio import SAMPLE_RATE, Windows, window_starts
from model.audio.analysis import Analysis
from model.audio.grid import STRIDE_BEATS, WINDOW_BEATS, Grid, beat_windows
from model.audio.said import Said, key_of_text
from service.settings import Settings


@dataclass(frozen=True, eq=False)
class Laid:
    """`waveform`: a loop that is short goes round until it fills windows. `parts`: windows in clock time, then, of a
    stem with a grid, those in beat time. `beats`: where each window begins on the grid; NaN in clock time."""

    waveform: NDArray[np.float32]
    parts: tuple[Windows, ...]
    beats: NDArray[np.float64]
    music: StemMusic


def lay(waveform: NDArray[np.float32], analysis: Analysis, settings: Settings) -> Laid:
    """Lay windows by the clock, and on the beats of a stem whose tempo is known.

    Args:
        waveform: float32 (samples,), 16 kHz.
        analysis: of it.
        settings: how long windows in clock time are, and how far apart.
    """
    window, stride = (round(s * SAMPLE_RATE) for s in (settings.window_s, settings.stride_s))
    starts = window_starts(len(waveform), window, stride)
    clock = Windows.in_clock_time(starts, min(window, len(waveform)))
    by_clock = np.full(len(clock), np.nan)
    grid = analysis.grid
    if grid is not None:
        longer = _repeated(waveform, analysis, grid)
        found = beat_windows(grid, len(longer))
        if found is not None:
            return Laid(longer, (clock, found[0]), np.concatenate([by_clock, found[1]]), music_of(analysis, grid))
    return Laid(waveform, (clock,), by_clock, music_of(analysis, None))


def said_of(stem: StemJob) -> Said:
    """What was said of a stem, by whomever; what was heard before is heard again."""
    sources: dict[str, Any] = {name: source for name, source in stem.sources.items() if source != "heard"}
    return Said(
        tempo_bpm=stem.tempo_bpm if "tempo_bpm" in sources else None,
        key=_key(stem.key) if "key" in sources else None,
        kind=cast(Any, stem.kind) if "kind" in sources else None,
        beats=stem.said_beats,
        sources=sources,
    )


def _key(text: str | None) -> str | None:
    """A key that somebody wrote, as it is compared with what is heard; None: it says none."""
    try:
        return key_of_text(text or "")
    except ValueError:
        return None


def _repeated(waveform: NDArray[np.float32], analysis: Analysis, grid: Grid) -> NDArray[np.float32]:
    """A loop of a few beats as often as it takes to fill a window from any of its strides."""
    beats = analysis.seconds * grid.tempo_bpm / 60
    if analysis.kind != "loop" or beats >= WINDOW_BEATS + STRIDE_BEATS:
        return waveform
    return np.tile(waveform, int(np.ceil((WINDOW_BEATS + STRIDE_BEATS) / beats)))


def music_of(analysis: Analysis, grid: Grid | None) -> StemMusic:
    """An analysis as the catalog keeps it, with the grid that windows were laid on."""
    return StemMusic(
        kind=analysis.kind,
        pitched=analysis.pitched,
        tempo_bpm=analysis.tempo_bpm,
        key=analysis.key,
        sources={fact: source for fact, source in analysis.sources.items() if fact in ("tempo_bpm", "key", "kind")},
        sure=analysis.sure,
        beats_s=None if grid is None else grid.beats_s,
        beat_bpm=None if grid is None else grid.tempo_bpm,
        warnings=analysis.warnings,
        chroma=analysis.chroma,
    )
