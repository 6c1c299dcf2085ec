"""Whether long stems push short ones out of the first ten, by what a stem's length takes off its score.

    phalar train render scores --seconds 150 ...
    python -m benchmarks.lengths --stems rendered [--queries 100] [--page docs/decisions/long-stems-fit-by-luck.md]

Mixes of 8 s, of which one stem is missing. In the catalog each stem stands whole, or as ten or thirty seconds of it,
which chance says, twenty times for each mix; what is cut from the mix's own track holds the place that is asked for.
Every stem is scored both ways once, and ranked by each cost among the stems of other tracks.
"""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.costs import SECONDS, drawn_mixes
from benchmarks.page import page_parser, publish
from indexer import StemEmbeddings
from model.audio import SAMPLE_RATE
from model.evaluation.results import markdown_table
from model.training.stems import StemBank, load_bank
from service.search.retrieval import score_stems, timed

SECTION = "lengths"
CUT_S = (10.0, 30.0)
WINDOW_S = 5.0
DRAWS = 20
COSTS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6)
Float64 = NDArray[np.float64]


@dataclass
class Scores:
    """Every stem against one mix, cut to each of CUT_S, then whole; by the clock, then on beats.

    -inf: it cannot lie so.
    """

    score: Float64  # (lengths, time bases, stems), before its length takes anything off
    windows: Float64  # likewise
    missing: int
    strangers: NDArray[np.int64]

    def rank(self, whole: NDArray[np.bool_], cut: int, cost: float) -> tuple[int, float]:
        """Of the missing stem among strangers, and the share of whole ones among the first ten."""
        each, at = np.where(whole, len(CUT_S), cut), np.arange(len(whole))
        score = (self.score[each, :, at] - cost * np.log(self.windows[each, :, at])).max(axis=1)
        first = self.strangers[np.argsort(-score[self.strangers])[:10]]
        return 1 + int((score[self.strangers] >= score[self.missing]).sum()), float(whole[first].mean())


def cut_out(stem: StemEmbeddings, begin_s: float, end_s: float) -> StemEmbeddings:
    """What a stem would be that had only been recorded from one second to another."""
    inside = (stem.starts_s >= begin_s) & (stem.starts_s + WINDOW_S <= end_s)
    return stem.some(inside)


async def searched(bank: StemBank, queries: int) -> list[Scores]:
    """Every mix's scores, over a catalog of all tracks."""
    found, rng = [], np.random.default_rng(0)
    async for drawn in drawn_mixes(bank, bank, range(len(bank.tracks)), queries):
        every = list(drawn.track_of)
        at = {row: number for number, row in enumerate(every)}
        stems = await drawn.catalog.embeddings_of(every, drawn.index.fingerprint)
        music = await drawn.catalog.music_of(every)
        middle_s = drawn.query.start / SAMPLE_RATE + SECONDS / 2
        score = np.full((len(CUT_S) + 1, 2, len(every)), -np.inf)
        windows = np.ones_like(score)
        for length, seconds in enumerate((*CUT_S, np.inf)):
            some: dict[int, StemEmbeddings] = {}
            for row, track in drawn.track_of.items():
                room_s = max(0.0, bank.tracks[track].samples / SAMPLE_RATE - seconds)
                own = track == drawn.query.track
                begin_s = min(max(middle_s - seconds / 2, 0.0), room_s) if own else rng.uniform(0.0, room_s)
                some[row] = cut_out(stems[row], begin_s, begin_s + seconds)
            for one in drawn.asked:
                allowed = set(every if one.allowed is None else one.allowed.tolist())
                in_beats = one.plan.grid is not None
                own_way = {row: stem for row, stem in some.items() if row in allowed}
                for row, scored in score_stems(drawn.index, one, own_way, music).items():
                    place = length, int(in_beats), at[row]
                    score[place] = max(score[place], scored.score + scored.length_cost)
                    windows[place] = len(timed(some[row], in_beats=in_beats).starts_s)
        found.append(Scores(score, windows, at[drawn.missing], drawn.strangers))
    return found


def rows_of(found: list[Scores]) -> Iterator[list[str]]:
    """For each length that stems are cut to: of all missing stems, of those that are cut, of those that are whole."""
    for cut, seconds in enumerate(CUT_S):
        told: dict[float, list[tuple[bool, int, float]]] = {}
        for cost in COSTS:
            rng = np.random.default_rng(1)
            told[cost] = [
                (bool(whole[one.missing]), *one.rank(whole, cut, cost))
                for one in found
                for whole in rng.random((DRAWS, one.score.shape[2])) < 0.5
            ]
        for name, chosen in (("all", (False, True)), ("cut", (False,)), ("whole", (True,))):
            ranks = [np.array([rank for whole, rank, _ in told[cost] if whole in chosen]) for cost in COSTS]
            cells = [f"{np.mean(of_one <= 10):.0%} ({np.mean(1 / of_one):.2f})" for of_one in ranks]
            yield [f"{seconds:.0f} s, {name}", *cells]
        shares = (np.mean([share for _, _, share in told[cost]]) for cost in COSTS)
        yield [f"{seconds:.0f} s, of the first ten are whole", *(f"{share:.0%}" for share in shares)]


def main() -> None:
    parser = page_parser(__doc__)
    parser.add_argument("--stems", type=Path, required=True, help="a folder of tracks, some minutes each")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/phalar").expanduser())
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, as the service does
    bank = load_bank([arguments.stems], arguments.cache, jobs=1)
    found = asyncio.run(searched(bank, arguments.queries))
    header = [f"stems cut to, and which is missing; of {len(found)} mixes", *(f"{cost:g}" for cost in COSTS)]
    publish(markdown_table(header, list(rows_of(found))), arguments.page, SECTION)


if __name__ == "__main__":
    main()
