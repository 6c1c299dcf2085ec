"""What a search finds by what it takes off for playing a stem otherwise, and for notes unlike the mix's.

    python -m benchmarks.costs --stems real_stems --split all --stems rendered --split validation
        [--queries 120] [--tracks 60] [--page docs/decisions/on-the-beat.md]

Mixes of 8 s, the missing stem stored as recorded, and at another tempo and in another key. Every stem of the catalog is
scored in every way once, and ranked by each pair of costs: the first ten of other tracks, and the mean reciprocal rank,
of all missing stems, of those that play notes and of those that play none.
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.page import add_folders, folders_of, page_parser, publish
from indexer import Catalog, Index, StemMusic, best_places
from model.audio import SAMPLE_RATE
from model.checkpoints import piece_of
from model.evaluation.results import markdown_table
from model.evaluation.retimed import RetimedBank
from model.training.stems import StemBank, load_bank
from service.search.costs import HARMONY_COST, OTHERWISE_COST, harmony_costs, length_costs
from service.search.evaluation import CatalogSettings, choose_tracks, draw_queries
from service.search.in_process import SearchedCatalog
from service.search.judging import Query
from service.search.retrieval import Asked, Wish, timed
from service.settings import Settings

SECTION = "costs"
SECONDS = 8
COSTS = [(1.5, 0.0), (2.0, 0.0), *((otherwise, 3.0) for otherwise in (0.25, 1.0, 1.5, 2.0, 2.5)), (2.0, 2.0)]
Float64 = NDArray[np.float64]


@dataclass
class Ways:
    """All ways of laying the stems of a catalog against one mix: scores less what length takes off, and by what they
    are raised for each unit of the two costs. -inf: it may not lie so."""

    score: Float64  # (ways, stems)
    played: Float64  # likewise: what `cost_of` takes off
    moved: NDArray[np.bool_]  # likewise: not as it was recorded
    unlike: Float64  # likewise: what harmony takes off
    missing: int
    pitched: bool  # whether the missing stem plays notes
    strangers: NDArray[np.int64]  # all stems of other pieces

    def rank(self, otherwise: float, harmony: float) -> int:
        """Of the missing stem among strangers, by these costs."""
        costs = self.played + (otherwise - OTHERWISE_COST) * self.moved + harmony / HARMONY_COST * self.unlike
        best = (self.score - costs).max(axis=0)
        own = best[self.missing]
        return 1 + int((best[self.strangers] >= own).sum()) if np.isfinite(own) else len(best)


async def ways(catalog: Catalog, index: Index, asked: list[Asked], rows: list[int]) -> tuple[Float64, ...]:
    """`score`, `played`, `moved` and `unlike` of a mix."""
    music = await catalog.music_of(rows)
    stems = await catalog.embeddings_of(rows, index.fingerprint)
    at = {row: number for number, row in enumerate(rows)}
    made = []
    for one in asked:
        in_beats = one.plan.grid is not None
        allowed = set(rows if one.allowed is None else one.allowed.tolist()) & (music.keys() if in_beats else set(rows))
        some = {row: timed(stems[row], in_beats=in_beats) for row in rows if row in allowed}
        _, first = np.unique(one.queries.shift, return_index=True)
        for key in np.unique(one.key).tolist():
            elsewhere = np.where(one.key[first] == key, 0.0, np.inf)
            found = best_places(index.fold, one.queries, some, np.tile(elsewhere, (len(some), 1)))
            lines = np.stack([np.full(len(rows), -np.inf), *np.zeros((3, len(rows)))])
            for row, score in found.scores.items():
                played = one.cost(music[row], key) if in_beats else 0.0
                if np.isfinite(score) and played is not None and (not in_beats or one.may_move(music[row], key)):
                    score -= float(length_costs([len(some[row].starts_s)])[0])
                    lines[:, at[row]] = score, played, played > 0, unlike(one, music.get(row), key)
            made.append(lines)
    return tuple(np.stack(made, axis=1))


def unlike(asked: Asked, music: StemMusic | None, key: int) -> float:
    return float(harmony_costs(asked.chroma, [None if music is None else music.chroma], [key])[0, 0])


@dataclass(frozen=True)
class Drawn:
    """A mix that lacks a stem, asked of a catalog."""

    catalog: Catalog
    index: Index
    track_of: dict[int, int]  # of every row of the catalog, in their order
    query: Query
    asked: list[Asked]
    missing: int  # the row
    strangers: NDArray[np.int64]  # places, among all rows, of stems of other pieces


async def drawn_mixes(
    bank: StemBank, held: StemBank | RetimedBank, tracks: Iterable[int], queries: int
) -> AsyncIterator[Drawn]:
    """So many mixes of the bank's tracks, asked of a catalog that holds what `held` has of them."""
    with tempfile.TemporaryDirectory() as folder:
        given = {"data": Path(folder), "device": "cpu", "database_url": None, "blob_url": None, "redis_url": None}
        service = Settings(**given, checkpoints=None)
        async with SearchedCatalog.open(service) as searching:
            rows = {track: await searching.add(held, track) for track in tracks}
            index = await searching.go_live()
            track_of = dict(sorted((row, track) for track, some in rows.items() for row in some))
            pieces = np.array([piece_of(bank.tracks[track].name) for track in track_of.values()], dtype=np.str_)
            settings, stride = CatalogSettings(queries, float(SECONDS)), round(service.stride_s * SAMPLE_RATE)
            for query in draw_queries(bank, rows, settings, stride):
                stems = bank.waveforms(query.track)[list(query.mixed)]
                mix = stems[:, query.start : query.start + SECONDS * SAMPLE_RATE].sum(axis=0)
                _, asked = await searching.ask(mix, Wish())
                missing = rows[query.track][query.missing]
                strangers = np.flatnonzero(pieces != piece_of(bank.tracks[track_of[missing]].name))
                yield Drawn(searching.catalog, index, track_of, query, asked, missing, strangers)


async def searched(bank: StemBank, held: StemBank | RetimedBank, tracks: list[int], queries: int) -> list[Ways]:
    """Every mix's ways, over a catalog of these tracks."""
    found = []
    async for drawn in drawn_mixes(bank, held, tracks, queries):
        every, missing = list(drawn.track_of), drawn.missing
        music = await drawn.catalog.music_of([missing])
        parts = await ways(drawn.catalog, drawn.index, drawn.asked, every)
        found.append(Ways(*parts, every.index(missing), music[missing].pitched, drawn.strangers))
    return found


def rows_of(folders: Iterator[tuple[Path, str]], cache: Path, tracks: int, queries: int) -> Iterator[list[str]]:
    """Of each set, as recorded and at other tempi and in other keys."""
    for folder, split in folders:
        bank = load_bank([folder], cache, jobs=1)
        chosen = choose_tracks(bank, split, tracks, 0)
        for what, held in (("as recorded", bank), ("retimed", RetimedBank(bank, cache / "retimed"))):
            found = asyncio.run(searched(bank, held, chosen, queries))
            for plays, some in (
                ("", found),
                (", notes", [each for each in found if each.pitched]),
                (", none", [each for each in found if not each.pitched]),
            ):
                ranks = np.array([[each.rank(*costs) for costs in COSTS] for each in some]).reshape(-1, len(COSTS))
                cells = [f"{np.mean(of_one <= 10):.0%} ({np.mean(1 / of_one):.2f})" for of_one in ranks.T if len(some)]
                yield [f"{folder.name}, {split}, {what}{plays}: {len(some)}", *cells]


def main() -> None:
    parser = page_parser(__doc__)
    add_folders(parser)
    parser.add_argument("--queries", type=int, default=120)
    parser.add_argument("--tracks", type=int, default=60, help="of each folder")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/phalar").expanduser())
    arguments = parser.parse_args()
    header = ["mixes", *(f"{otherwise:g}, {harmony:g}" for otherwise, harmony in COSTS)]
    rows = [*rows_of(folders_of(arguments), arguments.cache, arguments.tracks, arguments.queries)]
    publish(markdown_table(header, rows), arguments.page, SECTION)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
