"""Zero-shot beat tracking: where along a clip do metronomes fit, by a system's own score?

arXiv:2605.03929v4. A metronome of each tempo from 30 to 240 BPM is scored against a window that slides along the clip.
The score rises as the window's start comes upon a beat, for then the metronome's first click falls on it; so the rises,
summed over tempi, are an onset curve, in which `librosa.beat` finds the beats. Nothing is trained.

Unlike the authors', every window is embedded by itself (`System.embed` takes clips, no crops of a longer CQT), the
click is our own, a rise counts at the window that it leads to and not at the one before, and beats go on at the found
tempo through the last window of a clip, which they leave without any.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from model.audio import SAMPLE_RATE, AudioError, ClipTooShort, Waveform, load_clip
from model.demo.synthesis import RIM, Note, play_drums, tune_kit
from model.evaluation.annotated import BadAnnotation, NothingAnnotated, annotated_files, embed_windows, lines_of
from model.evaluation.retrieval import mean_with_interval
from model.evaluation.systems import System, package
from model.training.tracks import Dropped

RISE_DEVIATIONS = 3.0
"""A rise of the score counts when it exceeds the mean by this many standard deviations..."""

RISE_NEIGHBOURS = 3
"""...and so do this many of the nine cells around it (its own included), over neighbouring tempi and places."""

FLOOR = 1e-6
"""Of the onset curve, as a part of its maximum."""

PULSE_BPM = 120.0
"""The blind answer that is measured beside a system: a pulse of this tempo from the start of the clip."""


@dataclass(frozen=True)
class BeatSettings:
    """The authors' numbers."""

    slowest_bpm: int = 30
    fastest_bpm: int = 240
    window_s: float = 5.0
    step_s: float = 0.02  # from one window to the next; beats lie on this grid
    first_click_s: float = 0.02  # from a metronome's start


AUTHORS = BeatSettings()


@dataclass(frozen=True)
class FileBeats:
    """One clip's outcome; F-measures are 0 to 1, a beat counting when it lies within 70 ms of an annotated one."""

    file: str
    f_measure: float
    blind: float  # F-measure of a pulse of 120 BPM
    found: int
    annotated: int


@dataclass(frozen=True)
class BeatResult:
    """`low` to `high` is the 95 % interval of the mean F-measure, by bootstrap over clips."""

    mean: float
    low: float
    high: float
    blind: float
    files: tuple[FileBeats, ...]
    left_out: tuple[Dropped, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"left_out": [str(entry) for entry in self.left_out]}


def beats(
    system: System,
    folder: Path,
    settings: BeatSettings = AUTHORS,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> BeatResult:
    """Track the beats of every annotated clip of a folder, and compare.

    Args:
        system: what is measured.
        folder: audio files, at any depth, and beside each a `<name>.beats`: one beat a line, its time in seconds
            first (what follows on the line, as in the annotations of GTZAN, is not read).
        settings: of the protocol.
        seed: of the bootstrap.
        progress: called with clips done and clips in all.

    Returns:
        The F-measure (`mir_eval.beat.f_measure`, over the whole clip) of each clip and its mean. Audio files that
        cannot be decoded, have no annotation or are no longer than a window are listed as left out.

    Raises:
        NothingAnnotated: no clip is left.
        BadAnnotation: a time that is no number, or earlier than the one before.
        ImportError: without the extra `evaluation`.
    """
    mir_beat = package("mir_eval.beat", "beat tracking", "evaluation")
    annotated, left_out = annotated_files(folder, ".beats", read_beats)
    metronomes = embed_metronomes(system, settings)
    files: list[FileBeats] = []
    for done, (name, path, expected) in enumerate(annotated, start=1):
        try:
            waveform = load_clip(path).waveform
            found = track_beats(system, waveform, metronomes, settings)
        except (AudioError, OSError) as error:
            left_out.append(Dropped(name, None, f"{type(error).__name__}: {error}"))
        else:
            pulse = np.arange(0.0, len(waveform) / SAMPLE_RATE, 60.0 / PULSE_BPM)
            f_measure = float(mir_beat.f_measure(expected, found)) if len(found) else 0.0
            blind = float(mir_beat.f_measure(expected, pulse))
            files.append(FileBeats(name, f_measure, blind, len(found), len(expected)))
        if progress is not None:
            progress(done, len(annotated))
    if not files:
        raise NothingAnnotated(folder, ".beats")
    f_measures = np.array([file.f_measure for file in files])
    mean, low, high = mean_with_interval(f_measures, np.array([file.file for file in files]), seed)
    blind = float(np.mean([file.blind for file in files]))
    return BeatResult(mean, low, high, blind, tuple(files), tuple(left_out))


def track_beats(
    system: System, waveform: Waveform, metronomes: Tensor, settings: BeatSettings = AUTHORS
) -> NDArray[np.float64]:
    """Find the beats of a clip, float32 (samples,) at 16 kHz, by the score of `embed_metronomes` along it.

    Returns:
        float64 (beats,), seconds, rising; empty where the score rises nowhere.

    Raises:
        ClipTooShort: the clip is no longer than a window.
        ImportError: without the extra `evaluation`.
    """
    window, step = round(settings.window_s * SAMPLE_RATE), round(settings.step_s * SAMPLE_RATE)
    if len(waveform) <= window:
        raise ClipTooShort(seconds=len(waveform) / SAMPLE_RATE, minimum=settings.window_s)
    librosa_beat = package("librosa.beat", "beat tracking", "evaluation")
    # A little silence first, for the beat that falls on the start.
    lead = 3 * step + round(settings.first_click_s * SAMPLE_RATE)
    padded = np.concatenate([np.zeros(lead, dtype=np.float32), waveform])
    starts = np.arange(0, len(padded) - window + 1, step)
    scores = system.score(metronomes, embed_windows(system, padded, starts, window))  # (tempi, windows)
    rises = onset_curve(scores.cpu().numpy())
    if not rises.any():
        return np.zeros(0)
    # To the clip's end, where no window starts. The floor is for librosa, which keeps no beat where a curve is 0.
    curve = np.full(-(-len(padded) // step), FLOOR * rises.max())
    curve[: len(rises)] += rises
    _, frames = librosa_beat.beat_track(onset_envelope=curve, sr=SAMPLE_RATE, hop_length=step, trim=False)
    times = (np.asarray(frames, dtype=np.float64) * step - lead) / SAMPLE_RATE + settings.first_click_s
    inside: NDArray[np.float64] = times[(times >= 0) & (times < len(waveform) / SAMPLE_RATE)]
    return inside


def onset_curve(scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """How strongly the score rises along the clip, over all tempi together.

    Args:
        scores: real (tempi, windows), of each metronome against each window.

    Returns:
        float64 (windows,), 0 or more. Only rises that stand out and do not stand alone are counted, so it is 0
        everywhere for scores that never change.
    """
    rise = np.zeros(scores.shape)
    rise[:, 2:] = scores[:, 2:].astype(np.float64) - scores[:, :-2]
    strong = rise - rise.mean() > RISE_DEVIATIONS * rise.std()
    core = _neighbours(strong) >= RISE_NEIGHBOURS
    near_core = _neighbours(core) > 0
    curve: NDArray[np.float64] = np.where(near_core, np.maximum(rise, 0.0), 0.0).sum(axis=0)
    return curve


def metronome(bpm: float, settings: BeatSettings = AUTHORS) -> Waveform:
    """A window of a metronome: a rim click every beat, float32 (samples,) at 16 kHz, peak 0.5."""
    samples = round(settings.window_s * SAMPLE_RATE)
    click = _click()
    clicks = np.zeros(samples + len(click), dtype=np.float32)
    for onset_s in np.arange(settings.first_click_s, settings.window_s, 60.0 / bpm):
        at = round(onset_s * SAMPLE_RATE)
        clicks[at : at + len(click)] += click
    return clicks[:samples]


def embed_metronomes(system: System, settings: BeatSettings = AUTHORS) -> Tensor:
    """Embeddings of the metronomes of every whole tempo, (tempi, ...)."""
    tempi = range(settings.slowest_bpm, settings.fastest_bpm + 1)
    clicks = np.concatenate([metronome(bpm, settings) for bpm in tempi])
    window = len(clicks) // len(tempi)
    return embed_windows(system, clicks, np.arange(len(tempi)) * window, window)


def read_beats(path: Path) -> NDArray[np.float64]:
    """The times in a `.beats` file, float64 (beats,), seconds.

    Raises:
        BadAnnotation: a time that is no number or below 0, or earlier than the one before; no time at all.
    """
    times: list[float] = []
    for number, line in lines_of(path):
        try:
            time = float(line.split()[0])
        except ValueError as error:
            raise BadAnnotation(path, number, f"{line.split()[0]!r} is no time in seconds") from error
        if not (times[-1] if times else 0.0) <= time < np.inf:  # NaN compares false
            raise BadAnnotation(path, number, f"{time:g} s is out of order")
        times.append(time)
    return np.array(times)


def beats_table(result: BeatResult) -> Table:
    """The result as a table: a row a clip, the mean last."""
    table = Table(box=None, header_style="bold", show_footer=True)
    interval = f"{result.mean:.3f} ({result.low:.3f} to {result.high:.3f})"
    table.add_column("clip", footer=f"mean of {len(result.files)}, {len(result.left_out)} left out")
    table.add_column("F-measure", footer=interval, justify="right")
    table.add_column("of a 120 BPM pulse", footer=f"{result.blind:.3f}", justify="right")
    for name in ("found", "annotated"):
        table.add_column(name, footer=str(sum(getattr(file, name) for file in result.files)), justify="right")
    for file in result.files:
        cells = (f"{file.f_measure:.3f}", f"{file.blind:.3f}", str(file.found), str(file.annotated))
        table.add_row(escape(file.file), *cells)
    return table


@functools.cache
def _click() -> Waveform:
    """A tenth of a second of a rim shot, peak 0.5: one drum of our composer's kit."""
    samples = SAMPLE_RATE // 10
    kit, hits = tune_kit(np.random.default_rng(0)), np.random.default_rng(0)
    click = play_drums(kit, [Note(0.0, samples / SAMPLE_RATE, RIM, 1.0)], samples, SAMPLE_RATE, hits)
    return np.asarray(click * (0.5 / np.abs(click).max()), dtype=np.float32)


def _neighbours(cells: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many of the nine cells in and around each are true."""
    padded = np.pad(cells.astype(np.int64), 1)
    around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    counts: NDArray[np.int64] = around.sum(axis=(2, 3))
    return counts
