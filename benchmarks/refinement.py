"""Places refined by drawing through the grid of shifts, beside halving it: what each embeds, and what comes of it.

    python -m benchmarks.refinement --stems rendered --split test --stems real_stems --split all [--mixes 20]
        [--page docs/decisions/shifts-as-the-score-needs-them.md]

Mixes of 8 s that lack a stem, cut at any sample, asked of a catalog of all stems of at most 60 tracks.
"""

import asyncio
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.page import add_folders, folders_of, page_parser, publish
from model.audio import SAMPLE_RATE
from model.evaluation.commands import open_bank
from model.evaluation.results import markdown_table
from model.training.commands import default_cache
from model.training.stems import StemBank
from service.search.evaluation import CatalogSettings, choose_tracks, draw_queries
from service.search.in_process import SearchedCatalog
from service.search.retrieval import DRAWN
from service.settings import Settings

SECTION = "refinement"
MOST_TRACKS, LIMIT = 60, 10
SAME_PLACE_S = 0.02
WAYS = {"halving": 0.0, "drawing": DRAWN}


@dataclass(frozen=True)
class Answer:
    """One mix by one way."""

    windows: int  # embedded
    seconds: float
    hits: dict[int, tuple[float, float]]  # stem row -> score and place
    found: bool  # whether the missing stem is among them


async def ask(bank: StemBank, tracks: list[int], mixes: int, service: Settings) -> dict[str, list[Answer]]:
    """Every mix by both ways."""
    settings = CatalogSettings(queries=mixes)
    answers: dict[str, list[Answer]] = {way: [] for way in WAYS}
    async with SearchedCatalog.open(service) as catalog:
        rows = {track: await catalog.add(bank, track) for track in tracks}
        await catalog.go_live()
        finders = {way: catalog.finder_that(drawn=drawn) for way, drawn in WAYS.items()}
        for query in draw_queries(bank, rows, settings, round(service.stride_s * SAMPLE_RATE)):
            length = round(settings.seconds * SAMPLE_RATE)
            mix = bank.waveforms(query.track, query.start, length)[list(query.mixed)].sum(axis=0)
            for way, finder in finders.items():
                catalog.finder = finder
                before = catalog.embedder.embedded
                places, took_ms = await catalog.find(mix, "search", LIMIT)
                hits = {row: (place.score, place.start_s) for row, place in list(places.items())[:LIMIT]}
                missing = rows[query.track][query.missing]
                windows = catalog.embedder.embedded - before
                answers[way].append(Answer(windows, took_ms["total"] / 1000, hits, missing in hits))
    return answers


def compared(name: str, answers: dict[str, list[Answer]]) -> list[list[str]]:
    """A row a way; what agrees is told beside the first."""
    first = answers[next(iter(answers))]
    rows = []
    for way, mine in answers.items():
        both = [(a.hits[row], b.hits[row]) for a, b in zip(mine, first, strict=True) for row in a.hits if row in b.hits]
        lower = 1 - np.mean([a[0] for a, _ in both]) / np.mean([b[0] for _, b in both])
        same_place = np.mean([abs(a[1] - b[1]) <= SAME_PLACE_S for a, b in both])
        cells = [f"{len(both) / len(mine):.1f}", f"{lower:.1%}", f"{same_place:.0%}"] if mine is not first else [""] * 3
        windows, seconds = (np.mean([getattr(a, what) for a in mine]) for what in ("windows", "seconds"))
        found = sum(a.found for a in mine)
        rows.append([name, way, f"{windows:.0f}", f"{seconds:.2f}", *cells, f"{found} of {len(mine)}"])
    return rows


def main() -> None:
    parser = page_parser(__doc__)
    add_folders(parser)
    parser.add_argument("--mixes", type=int, default=20)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where decoded stems are kept")
    arguments = parser.parse_args()
    rows = []
    for folder, split in folders_of(arguments):
        bank = open_bank([folder], arguments.cache, jobs=1)
        tracks = choose_tracks(bank, split, MOST_TRACKS, seed=0)
        with tempfile.TemporaryDirectory() as home:
            elsewhere = {"database_url": None, "blob_url": None, "redis_url": None, "checkpoints": None}
            service = Settings(data=Path(home), **elsewhere)
            answers = asyncio.run(ask(bank, tracks, arguments.mixes, service))
        rows += compared(folder.name, answers)
    header = [
        "tracks",
        "by",
        "windows a query",
        "s",
        "of ten hits the same",
        "lower by",
        "within 20 ms",
        "missing found",
    ]
    table = f"Measured {datetime.now(UTC):%Y-%m-%d}.\n\n{markdown_table(header, rows)}"
    publish(table, arguments.page, SECTION)


if __name__ == "__main__":
    main()
