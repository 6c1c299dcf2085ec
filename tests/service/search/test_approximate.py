"""How many stems are scored exactly where nothing can be proven: by an approximate index, or within what is scored at
most."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer import Catalog, Index, StemFilter
from model.audio import SAMPLE_RATE
from service.metrics import Metrics, Stopwatch
from service.search import retrieval
from service.search.in_process import SearchedCatalog
from service.search.mix import DELAY, Align
from service.search.retrieval import UNPROVEN, Found, Wish
from tests.installation import noise_bursts
from tests.service.search.test_evaluate_catalog import bank_of, write

STEMS, LIMIT = 70, 3
WINDOWS = 2  # of a stem of 6 s


@pytest.mark.parametrize(
    ("index_type", "align", "late", "most", "expected"),
    [
        ("ivf", "grid", 0, {}, UNPROVEN * LIMIT),
        ("ivf", "search", 3 * DELAY, {}, UNPROVEN * LIMIT),
        ("ivf", "grid", 0, {"SCORED_MOST": 45}, 45),
        ("flat", "grid", 0, {"SCORED_MOST": 45}, 45),
    ],
)
def test_as_many_stems_are_scored_as_matter_and_no_more(
    index_type: str,
    align: Align,
    late: int,
    most: dict[str, int],
    expected: int,
    tmp_path: Path,
    small_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in most.items():
        monkeypatch.setattr(retrieval, name, value)
    for number in range(STEMS):
        write(tmp_path / "stems" / "0" / f"{number:02}.wav", noise_bursts(number, 6.0))
    bank = bank_of(tmp_path / "stems")
    if index_type == "flat":  # keys that were rounded so badly that nothing can be proven either
        monkeypatch.setattr(Index, "slack", lambda _, embedding, trait_weights: np.full(len(embedding), 100.0))
    scored: list[int] = []
    embeddings_of = Catalog.embeddings_of

    async def counted(catalog: Catalog, rows: list[int], fingerprint: str) -> Any:
        scored.extend(rows)
        return await embeddings_of(catalog, rows, fingerprint)

    async def find(first: int) -> tuple[Found, int]:
        async with SearchedCatalog.thrown_away(small_checkpoint, index_type=index_type) as searched:
            rows = await searched.add(bank, 0)
            index = await searched.go_live()
            assert index.approximate == (index_type == "ivf")
            assert index.windows == WINDOWS * STEMS
            monkeypatch.setattr(Catalog, "embeddings_of", counted)
            wish = Wish(limit=LIMIT, align=align)
            mix = np.float32(0.5) * noise_bursts(first, 6.0)[late:]  # at a delay of which candidates are not asked
            return await searched.finder.find(index, mix, StemFilter(), wish, Stopwatch(Metrics())), rows[first]

    found, itself = asyncio.run(find(9))
    assert next(iter(found.places)) == itself
    assert found.places[itself].start_s == pytest.approx(late / SAMPLE_RATE, abs=0.005)
    assert not found.exact
    assert len(scored) == len(set(scored)) == expected < STEMS
