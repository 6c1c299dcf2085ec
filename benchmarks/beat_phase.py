"""Learn where in a beat the beat falls, from rendered tracks, and how often it is heard right, before and after.

    python -m benchmarks.beat_phase --stems rendered --write model/audio/beat_phase.json
    python -m benchmarks.beat_phase --stems rendered --real real_stems --page docs/decisions/on-the-beat.md

Mixes of 8 s, each of some stems of a track. Of a rendering the truth is known: the train split is learnt from, the test
split measured. Of a real song it is not: there a mix without one stem must agree with the whole song.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from benchmarks.page import page_parser, publish
from model.audio import SAMPLE_RATE, Waveform
from model.audio.beat_phase import LEARNT, QUARTERS, Curves, beat_curves, by_quarter, read_at_phases
from model.audio.grid import Grid
from model.audio.hearing import FRAME_S, Hearing
from model.evaluation.commands import open_bank
from model.evaluation.results import markdown_table
from model.training.stems import StemBank
from service.search.evaluation import choose_tracks

MIX = 8 * SAMPLE_RATE
EACH, EACH_REAL = 4, 24  # mixes of a track: real songs are few
DECAY = 3e-3  # of the squared weights: a tenth and three times as much hear no better
NEAR = 0.12  # of a beat, from a quarter of it
AGREE = 0.9  # of the beats of two grids that are of one tempo, their mean as unit vectors


@dataclass(frozen=True)
class Mix:
    """What is read of a mix, by quarters of a beat from its heard beats on, and how late the true ones are."""

    read: Curves  # (QUARTERS, curves, phases)
    late: float  # of a beat, -0.5 to 0.5: the true beats after the heard ones


def mixes(bank: StemBank, tracks: list[int], each: int = EACH, *, all_but_one: bool) -> Iterator[Mix]:
    """Of all stems but one, or of a random part of them; those whose tempo is heard right."""
    rng = np.random.default_rng(0)
    for track in tracks:
        true, room = bank.tracks[track].grid, bank.tracks[track].samples - MIX
        for start in rng.integers(room + 1, size=each).tolist() if true is not None and room >= 0 else []:
            sounding = rng.permutation(np.flatnonzero(bank.audible(track, start, MIX)))
            if len(sounding) < 2:
                continue
            most = len(sounding) - 1 if all_but_one else int(rng.integers(1, len(sounding) + 1))
            read = read_mix(bank.waveforms(track, start, MIX)[sounding[:most]].sum(axis=0))
            if read is not None and (late := lateness(read[1], start / SAMPLE_RATE, true)) is not None:
                yield Mix(read[0], late)


def read_mix(waveform: Waveform) -> tuple[Curves, Grid] | None:
    hearing = Hearing(waveform)
    grid = hearing.grid()
    if grid is None:
        return None
    curves = beat_curves(hearing.onset_strength(), hearing.decibels)
    period = 60 / grid.tempo_bpm / FRAME_S
    return by_quarter(read_at_phases(curves, float(grid.beats_s[0]) / FRAME_S, period)), grid


def lateness(heard: Grid, start_s: float, true: Grid) -> float | None:
    """How far true beats lie after heard ones, as a part of a beat; None: of another tempo."""
    mean = np.exp(-2j * np.pi * true.beats_at(heard.beats_s + start_s)).mean()
    return float(np.angle(mean) / (2 * np.pi)) if abs(mean) > AGREE else None


def learn(drawn: list[Mix]) -> Curves:
    """Weights by which the right one of four quarters is the likeliest: (curves, phases)."""
    near = [mix for mix in drawn if abs(QUARTERS * mix.late - round(QUARTERS * mix.late)) < QUARTERS * NEAR / 2]
    read = torch.tensor(np.stack([mix.read for mix in near]))  # (n, QUARTERS, curves, phases)
    right = torch.tensor([round(QUARTERS * mix.late) % QUARTERS for mix in near])
    weights = torch.zeros(read.shape[2:], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=300)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        found = functional.cross_entropy((read * weights).sum(dim=(2, 3)), right) + DECAY * weights.square().sum()
        found.backward()
        return found

    optimiser.step(loss)
    return np.asarray(weights.detach().numpy())


def off(drawn: list[Mix], weights: Curves) -> np.ndarray:
    """By these weights, how far true beats lie after the chosen ones, as a part of a beat: (n,)."""
    chosen = [int(np.argmax((mix.read * weights).sum(axis=(1, 2)))) / QUARTERS for mix in drawn]
    return np.array([mix.late for mix in drawn]) - chosen


def by_onsets(weights: Curves) -> Curves:
    """What chooses the beat where onsets gather; those half a beat from it count half."""
    alone = np.zeros_like(weights)
    alone[0, 0], alone[0, alone.shape[1] // 2] = 1.0, 0.5
    return alone


def shares(off_beat: np.ndarray) -> list[str]:
    """On the beat, and on the half beat."""
    return [f"{np.mean(np.abs((off_beat - at + 0.5) % 1 - 0.5) < NEAR):.1%}" for at in (0.0, 0.5)]


def measure(rendered: StemBank, real: StemBank, weights: Curves) -> str:
    ways = {"onsets": by_onsets(weights), "learnt": weights}
    drawn = list(mixes(rendered, choose_tracks(rendered, "test", None, 0), all_but_one=True))
    apart: dict[str, list[float]] = {way: [] for way in ways}
    for track, banked in enumerate(real.tracks):
        whole = read_mix(real.waveforms(track).sum(axis=0))
        late = None if whole is None or banked.grid is None else lateness(whole[1], 0.0, banked.grid)
        if whole is None or late is None:
            continue
        parts = list(mixes(real, [track], EACH_REAL, all_but_one=True))
        for way, some in ways.items():
            apart[way] += (off(parts, some) - off([Mix(whole[0], late)], some)).tolist()
    rows = [["rendered, test split", way, str(len(drawn)), *shares(off(drawn, some))] for way, some in ways.items()]
    rows += [["real, against the whole song", way, str(len(far)), *shares(np.array(far))] for way, far in apart.items()]
    return markdown_table(["mixes of 8 s", "beat told by", "mixes", "right", "half a beat off"], rows)


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--stems", type=Path, required=True, help="rendered tracks")
    parser.add_argument("--real", type=Path, help="real songs")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="where decoded stems are kept")
    parser.add_argument("--write", type=Path, help="the file that the weights go into")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rendered = open_bank([arguments.stems], arguments.cache, 1)
    if arguments.write:
        tracks = choose_tracks(rendered, "train", None, 0)
        drawn = [mix for some in (True, False) for mix in mixes(rendered, tracks, all_but_one=some)]
        text = ",\n ".join(json.dumps(row) for row in np.round(learn(drawn), 3).tolist())
        arguments.write.write_text(f"[{text}]\n", encoding="utf-8")
    if arguments.real:
        weights = np.array(json.loads(LEARNT.read_text(encoding="utf-8")))
        table = measure(rendered, open_bank([arguments.real], arguments.cache, 1), weights)
        publish(table, arguments.page, "beat-phase")


if __name__ == "__main__":
    main()
