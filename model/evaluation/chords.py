"""Linear chord probe: can a linear classifier read the chord off frozen embeddings?

arXiv:2605.03929v4 probes so, in five folds by clip. Here windows are embedded, labelled with the chord that fills most
of them, and classified by logistic regression on the embedding's real and imaginary parts. The authors train a complex
layer, on GuitarSet, and label each window of 5 s with the chord at its start: their figures and ours are no match.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from model.audio import SAMPLE_RATE, AudioError, ClipTooShort, load_clip, window_starts
from model.errors import Told
from model.evaluation.annotated import BadAnnotation, NothingAnnotated, annotated_files, embed_windows, lines_of
from model.evaluation.systems import System, package
from model.training.tracks import Dropped

ROOTS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")

NO_CHORD = "N"

STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Values of scikit-learn's C (the smaller, the stronger the regularisation) that are tried. An embedding of twelve
numbers needs another than one of a thousand; each fold chooses on some of its training clips."""

MOST_ITERATIONS = 1000


class TooFewClips(Told, ValueError):
    says = "{clips} clips have labelled windows; {folds} folds need at least {folds}"
    clips: int
    folds: int


class Span(NamedTuple):
    """A stretch of a clip under one chord: `label` is one of the 25, or None for a chord of no third."""

    start_s: float
    end_s: float
    label: str | None


@dataclass(frozen=True)
class ChordSettings:
    """Which windows are classified."""

    window_s: float = 2.0  # the shortest the paper trains on: chords are short
    stride_s: float = 0.5
    majority: float = 0.6  # the part of a window that its chord must fill
    folds: int = 5


DEFAULTS = ChordSettings()


@dataclass(frozen=True)
class Fold:
    """One fold's test: `chance` is the accuracy of always answering the training windows' most frequent label."""

    accuracy: float
    chance: float
    windows: int
    clips: int


@dataclass(frozen=True)
class ChordResult:
    """Mean accuracy over folds, 0 to 1, and what was not classified."""

    accuracy: float
    chance: float
    folds: tuple[Fold, ...]
    labels: dict[str, int]  # classified windows by label
    unclear: int  # windows that no chord fills clearly, or one that is neither major nor minor
    left_out: tuple[Dropped, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"left_out": [str(entry) for entry in self.left_out]}


def chords(
    system: System,
    folder: Path,
    settings: ChordSettings = DEFAULTS,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> ChordResult:
    """Probe a system's embeddings for chords, on every annotated clip of a folder.

    Args:
        system: only its `embed` is used.
        folder: audio files, at any depth, and beside each a `<name>.chords`: lines of start, end (seconds) and label
            (as in `C:min7`, Harte's syntax, which `.lab` files use), with white space between.
        settings: which windows are classified.
        progress: called with clips done and clips in all.

    Returns:
        Accuracies by fold, folds by clip: no clip is trained on and tested on. Labels are reduced to root
        and third, so to 24 chords and N. Files that cannot be decoded or have no annotation are listed as left out.

    Raises:
        NothingAnnotated: no clip is left.
        TooFewClips: under one a fold.
        BadAnnotation: a line that cannot be read.
        ImportError: without the extra `evaluation`.
    """
    window, stride = round(settings.window_s * SAMPLE_RATE), round(settings.stride_s * SAMPLE_RATE)
    annotated, left_out = annotated_files(folder, ".chords", read_chords)
    embedded: list[NDArray[np.float32]] = []
    labels: list[str] = []
    clips: list[str] = []
    unclear = 0
    for done, (name, path, spans) in enumerate(annotated, start=1):
        try:
            waveform = load_clip(path).waveform
            if len(waveform) < window:
                raise ClipTooShort(seconds=len(waveform) / SAMPLE_RATE, minimum=settings.window_s)
        except (AudioError, OSError) as error:
            left_out.append(Dropped(name, None, f"{type(error).__name__}: {error}"))
        else:
            starts = window_starts(len(waveform), window, stride)
            found = [label_window(spans, at / SAMPLE_RATE, settings) for at in starts]
            clear = np.array([label is not None for label in found])
            unclear += int((~clear).sum())
            if clear.any():
                embedded.append(probe_features(embed_windows(system, waveform, starts[clear], window)))
                labels += [label for label in found if label is not None]
                clips += [name] * int(clear.sum())
        if progress is not None:
            progress(done, len(annotated))
    if not embedded:
        raise NothingAnnotated(folder, ".chords")
    folds = probe(np.concatenate(embedded), labels, clips, settings.folds)
    return ChordResult(
        accuracy=float(np.mean([fold.accuracy for fold in folds])),
        chance=float(np.mean([fold.chance for fold in folds])),
        folds=tuple(folds),
        labels=dict(Counter(labels).most_common()),
        unclear=unclear,
        left_out=tuple(left_out),
    )


def probe(features: NDArray[np.float32], labels: Sequence[str], clips: Sequence[str], folds: int = 5) -> list[Fold]:
    """Train and test a linear classifier in folds by clip.

    Args:
        features: float32 (windows, n); each is brought to mean 0 and deviation 1 by the training windows' statistics.
        labels: of each window.
        clips: what each window was cut from.
        folds: at least 3.

    Returns:
        The outcome of each fold. A label that only its test windows have counts as missed.

    Raises:
        TooFewClips: fewer than folds.
        ValueError: under three folds, or the training windows of a fold have all one label.
        ImportError: without the extra `evaluation`.
    """
    package("sklearn", "the chord probe", "evaluation")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if folds < 3:
        raise ValueError(f"{folds} folds leave no training clips to choose by; three are the fewest")
    count = len(set(clips))
    if count < folds:
        raise TooFewClips(count, folds)
    truth, groups = np.array(labels), np.array(clips)
    outcome: list[Fold] = []
    for train, test in GroupKFold(folds).split(features, truth, groups):
        classifier = GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=MOST_ITERATIONS)),
            {"logisticregression__C": STRENGTHS},
            cv=[next(GroupKFold(folds - 1).split(features[train], truth[train], groups[train]))],
        )
        classifier.fit(features[train], truth[train])
        commonest = Counter(truth[train]).most_common(1)[0][0]
        outcome.append(
            Fold(
                accuracy=float(np.mean(classifier.predict(features[test]) == truth[test])),
                chance=float(np.mean(truth[test] == commonest)),
                windows=len(test),
                clips=len(set(groups[test])),
            )
        )
    return outcome


def probe_features(embeddings: Tensor) -> NDArray[np.float32]:
    """Embeddings (n, ...) as float32 (n, numbers): of complex ones, real and imaginary parts."""
    parts = torch.view_as_real(embeddings.resolve_conj()) if embeddings.is_complex() else embeddings
    return parts.flatten(1).float().cpu().numpy()


def label_window(spans: Sequence[Span], start_s: float, settings: ChordSettings) -> str | None:
    """The chord that fills at least `majority` of a window; None where none does, or one without a third."""
    end_s = start_s + settings.window_s
    filled: defaultdict[str | None, float] = defaultdict(float)
    for span in spans:
        overlap = min(span.end_s, end_s) - max(span.start_s, start_s)
        if overlap > 0:
            filled[span.label] += overlap
    if not filled:
        return None
    label = max(filled, key=lambda name: filled[name])
    return label if filled[label] >= settings.majority * settings.window_s else None


def reduce_chord(label: str) -> str | None:
    """A chord label in Harte's syntax -> root and third: "Bb:min7/b3" is "A#:min", "N" stays.

    None for chords that have neither third (sus4, 5) and for X, the unknown chord.

    Raises:
        ValueError: no such label.
        ImportError: without the extra `evaluation`.
    """
    mir_chord = package("mir_eval.chord", "the chord probe", "evaluation")
    try:
        root, intervals, _ = mir_chord.encode(label)
    except mir_chord.InvalidChordException as error:
        raise ValueError(f"{label!r} is no chord label") from error
    if label == NO_CHORD:
        return NO_CHORD
    if root < 0 or not (intervals[3] or intervals[4]):
        return None
    return f"{ROOTS[root]}:{'maj' if intervals[4] else 'min'}"  # 7(#9) has both thirds, and is major


def read_chords(path: Path) -> list[Span]:
    """The spans in a `.chords` file.

    Raises:
        BadAnnotation: not start, end and label, an end before its start, a label that is none; no span at all.
    """
    spans: list[Span] = []
    for number, line in lines_of(path):
        try:
            start, end, label = line.split()
            span = Span(float(start), float(end), reduce_chord(label))
        except ValueError as error:
            raise BadAnnotation(path, number, str(error)) from error
        if not 0 <= span.start_s <= span.end_s < np.inf:  # NaN compares false
            raise BadAnnotation(path, number, f"{start} to {end} s is no stretch of time")
        spans.append(span)
    return spans


def chords_table(result: ChordResult) -> Table:
    """The result as a table: a row a fold, the mean last."""
    windows = sum(fold.windows for fold in result.folds)
    clips = sum(fold.clips for fold in result.folds)
    table = Table(box=None, header_style="bold", show_footer=True)
    table.caption = f"{result.unclear} windows without a clear chord, {len(result.left_out)} clips left out"
    for name, footer in (
        ("fold", "mean"),
        ("accuracy", f"{result.accuracy:.1%}"),
        ("chance", f"{result.chance:.1%}"),
        ("windows", str(windows)),
        ("clips", str(clips)),
    ):
        table.add_column(name, footer=footer, justify="right")
    for number, fold in enumerate(result.folds, start=1):
        table.add_row(str(number), f"{fold.accuracy:.1%}", f"{fold.chance:.1%}", str(fold.windows), str(fold.clips))
    return table
