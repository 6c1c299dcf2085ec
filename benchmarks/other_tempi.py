"""How alike one performance's embeddings are when it is played at other tempi.

    python -m benchmarks.other_tempi --scores scores [--page docs/decisions/tempo-leaks-into-beat-time.md]

Scores of the validation split, each rendered by the same instruments faster and slower, no audio stretched; and the
recording stretched. The same ten beats of each stem in beat time, by the default model, with the centres of the CQT's
kernels brought to 120 BPM and with their fronts: the cosine to the recording's embedding.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.page import page_parser, publish
from model.audio import SAMPLE_RATE, Waveform, Windows
from model.audio.grid import FRAMES_A_BEAT, WINDOW_BEATS
from model.audio.stretch import played
from model.checkpoints import load_phalar
from model.cqt import BeatClips
from model.evaluation.results import markdown_table
from model.phalar import Phalar
from model.training.render import RenderSettings, render_track
from model.training.scores import Score, read_score, score_files
from model.training.tracks import split_of
from service.work.models import DEFAULT_CHECKPOINT

SECTION = "other-tempi"
SPEEDS = (0.89, 0.94, 1.06, 1.12)
EXCERPT_S = 16.0  # of a score, at its own tempo
FIRST_BEAT = 4  # of the window
RECORDED = RenderSettings(seconds=2 * EXCERPT_S / min(SPEEDS), sequenced=1.0)
Window = tuple[Waveform, int, int]
"""A stem, and the first sample of ten beats and the one after the last."""


def faster(score: Score, speed: float) -> Score:
    """The beginning of a score, played so much faster."""
    parts = []
    for part in score.parts:
        notes = [note for note in part.notes if note.onset_s + note.duration_s < EXCERPT_S]
        moved = [replace(one, onset_s=one.onset_s / speed, duration_s=one.duration_s / speed) for one in notes]
        if moved:
            parts.append(replace(part, notes=tuple(moved)))
    return Score(tuple(parts), tuple(beat / speed for beat in score.beats_s), score.key)


def performed(score: Score, speed: float, seed: int) -> dict[str, Window]:
    """The window of each stem that sounds in it; instruments follow from the seed alone."""
    stems, truth = render_track(faster(score, speed), RECORDED, np.random.default_rng(seed))
    begin, end = (round(truth.beats_s[beat] * SAMPLE_RATE) for beat in (FIRST_BEAT, FIRST_BEAT + WINDOW_BEATS))
    return {name: (wave, begin, end) for name, wave in stems.items() if np.abs(wave[begin:end]).max() > 1e-3}


def stretched(window: Window, speed: float) -> Window:
    """The same of the stem's audio, stretched."""
    wave, begin, end = window
    return played(wave, round(len(wave) / speed), 0), round(begin / speed), round(end / speed)


def embedded(phalar: Phalar, windows: list[Window]) -> NDArray[np.complex64]:
    """In beat time: complex64 (n, dimension)."""
    frames = 1 + WINDOW_BEATS * FRAMES_A_BEAT
    clips = [
        BeatClips.cut(wave, Windows(np.array([begin]), np.array([end - begin]), frames), phalar.config.hop)
        for wave, begin, end in windows
    ]
    found: NDArray[np.complex64] = phalar.embed_in_beat_time(BeatClips.joined(clips)).numpy()
    return found


def cosines(phalar: Phalar, score: Score, seed: int) -> Iterator[tuple[tuple[float, bool, str], NDArray[np.float64]]]:
    """Of a score's stems, by the speed, whether fronts are moved, and how the tempo was changed."""
    recorded = performed(score, 1.0, seed)
    for speed in SPEEDS:
        again = performed(score, speed, seed)
        names = [name for name in recorded if name in again]
        for fronts in (False, True) if names else ():
            phalar.cqt.kernel_fronts = fronts
            there = embedded(phalar, [recorded[name] for name in names])
            for how, windows in (
                ("played", [again[name] for name in names]),
                ("stretched", [stretched(recorded[name], speed) for name in names]),
            ):
                yield (speed, fronts, how), (embedded(phalar, windows).conj() * there).sum(axis=1).real


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--scores", type=Path, required=True, help="MIDI files")
    parser.add_argument("--most", type=int, default=40, help="of them")
    arguments = parser.parse_args()
    phalar = load_phalar(DEFAULT_CHECKPOINT)
    found: dict[tuple[float, bool, str], list[float]] = defaultdict(list)
    asked = 0
    for path in score_files(arguments.scores):
        name = "__".join(path.relative_to(arguments.scores).with_suffix("").parts)
        if split_of(f"rendered/{name}") != "validation" or asked == arguments.most:
            continue
        score = read_score(path)
        if len(score.beats_s) <= FIRST_BEAT + WINDOW_BEATS or score.beats_s[FIRST_BEAT + WINDOW_BEATS] > EXCERPT_S:
            continue
        asked += 1
        for case, alike in cosines(phalar, score, asked):
            found[case].extend(alike.tolist())
    header = ["speed", "stems", "played, centres", "played, fronts", "stretched, centres", "stretched, fronts"]
    rows = []
    for speed in SPEEDS:
        cases = [found[speed, fronts, how] for how in ("played", "stretched") for fronts in (False, True)]
        means = [f"{np.mean(alike):.3f} ({np.percentile(alike, 10):.3f})" for alike in cases]
        rows.append([f"{speed:g}", f"{len(cases[0])}", *means])
    publish(markdown_table(header, rows), arguments.page, SECTION)


if __name__ == "__main__":
    main()
