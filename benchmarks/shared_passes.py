"""How alike windows that share a pass of the network are to those embedded alone.

    python -m benchmarks.shared_passes --stems real_stems --split all [--page docs/performance.md]

Some stems of a track against others that sound with them, by the default model. By the clock a mix is cut anywhere and
laid as a search lays it, so the window that meets a stem's begins up to 10 ms beside it: score kept, of that of the
window alone and in its place. In keys, both are moved: of that of the window moved alone.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.page import add_folders, folders_of, page_parser, publish
from model.audio import SAMPLE_RATE, Waveform, Windows
from model.checkpoints import load_phalar
from model.cqt import MOST_SEMITONES, BeatClips
from model.evaluation.results import markdown_table
from model.phalar import Phalar
from model.training.stems import StemBank, load_bank
from service.search.evaluation import choose_tracks
from service.search.mix import plan_windows
from service.work.models import DEFAULT_CHECKPOINT

MIX, WINDOW = 8 * SAMPLE_RATE, 5 * SAMPLE_RATE
Alike = tuple[float, float, float]
"""A cosine, and two scores: of what the pass gave, and of the window alone."""


def pairs(bank: StemBank, tracks: list[int], each: int) -> list[tuple[Waveform, Waveform]]:
    """Stretches of some stems of a track and of others that sound there, both float32 (MIX,)."""
    rng, drawn = np.random.default_rng(0), []
    for track in tracks:
        room = bank.tracks[track].samples - MIX
        for start in rng.integers(room + 1, size=each).tolist() if room >= 0 else []:
            sounding = rng.permutation(np.flatnonzero(bank.audible(track, start, MIX)))
            if len(sounding) < 2:
                continue
            first = int(rng.integers(1, len(sounding)))
            stems = bank.waveforms(track, start, MIX)
            drawn.append((stems[sounding[:first]].sum(axis=0), stems[sounding[first:]].sum(axis=0)))
    return drawn


def by_the_clock(phalar: Phalar, mix: Waveform, other: Waveform, rng: np.random.Generator) -> Alike:
    """One window of a mix, by the pass that holds it; the stem's window begins anywhere near."""
    plan = plan_windows(mix, window=WINDOW, stride=WINDOW // 2, search=True)
    clip = int(rng.integers(len(plan.laid)))
    start, length = int(plan.laid.starts[clip]), int(plan.laid.lengths[clip])
    shared = phalar.embed_each_step(torch.from_numpy(mix[None, start : start + length]), WINDOW)[0]
    inner = int(rng.integers(len(shared)))
    begin = start + inner * phalar.config.step
    place = int(np.clip(begin + rng.integers(-plan.step // 2, plan.step // 2 + 1), 0, MIX - WINDOW))
    cuts = (mix[begin : begin + WINDOW], mix[place : place + WINDOW], other[place : place + WINDOW])
    laid, in_place, stem = phalar.embed(np.stack(cuts))
    return _alike(phalar, shared[inner], laid, in_place, stem)


def in_keys(phalar: Phalar, mix: Waveform, other: Waveform, semitones: int) -> list[Alike]:
    """One window of a mix in every key, by one pass."""
    laid = Windows(np.zeros(1, np.int64), np.full(1, WINDOW), frames=1 + WINDOW // phalar.config.hop)
    clip, stem = (BeatClips.cut(waveform, laid, phalar.config.hop) for waveform in (mix, other))
    found = []
    for key, shared in enumerate(phalar.embed_in_keys(clip, semitones)[0], start=-semitones):
        moved = (replace(each, transpose=torch.tensor([key])) for each in (clip, stem))
        alone, right = (phalar.embed_in_beat_time(each)[0] for each in moved)
        found.append(_alike(phalar, shared, alone, alone, right))
    return found


def _alike(phalar: Phalar, shared: Tensor, laid: Tensor, alone: Tensor, stem: Tensor) -> Alike:
    scores = phalar.score(torch.stack([shared, alone]), stem[None]).flatten().tolist()
    return float((shared.conj() @ laid).real), scores[0], scores[1]


def main() -> None:
    parser = page_parser(__doc__)
    add_folders(parser)
    parser.add_argument("--pairs", type=int, default=2, help="of each track")
    parser.add_argument("--tracks", type=int, default=100, help="of each folder, at most")
    parser.add_argument("--cache", type=Path, help="where decoded stems are kept")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    phalar, rng, rows = load_phalar(DEFAULT_CHECKPOINT).eval(), np.random.default_rng(1), []
    with tempfile.TemporaryDirectory() as scratch:
        for folder, split in folders_of(arguments):
            bank = load_bank([folder], arguments.cache or Path(scratch))
            tracks = choose_tracks(bank, split, arguments.tracks, 0)
            drawn = pairs(bank, tracks, arguments.pairs)
            clock = [by_the_clock(phalar, *pair, rng) for pair in drawn]
            rows.append([folder.name, "delays, by the clock", str(len(drawn)), *figures(clock)])
            for semitones in (2, MOST_SEMITONES):
                keys = [one for pair in drawn for one in in_keys(phalar, *pair, semitones)]
                rows.append([folder.name, f"keys, {semitones} semitones either way", str(len(drawn)), *figures(keys)])
    columns = ("stems", "of one pass", "pairs", "cosine, mean", "cosine, lowest 5 %", "score kept")
    publish(markdown_table(columns, rows), arguments.page, "shared-passes")


def figures(found: list[Alike]) -> list[str]:
    """Of all pairs: cosines, and the scores of the one in all by those of the other."""
    cosines, shared, alone = (np.array(values) for values in zip(*found, strict=True))
    told: NDArray[np.float64] = np.array([cosines.mean(), np.quantile(cosines, 0.05), shared.sum() / alone.sum()])
    return [f"{value:.4f}" for value in told]


if __name__ == "__main__":
    main()
