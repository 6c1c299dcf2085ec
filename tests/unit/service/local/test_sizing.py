"""`phalar size`: its arithmetic on figures that are easy to reckon with, and the command over those that ship."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from service.local.sizing import BUSY, MEASURED, Line, Machine, NotMeasured, plan
from tests.command import phalar

FIGURES = Machine(
    name="a machine",
    cores=4,
    memory_bytes=40_000_000,
    windows=Line(-1.0, 0.5),
    ingest_s=Line(0.1, 0.02),
    sql_bytes=Line(1000.0, 4000.0),
    audio_bytes=30_000.0,
    index_bytes={"flat": 4000.0, "sq8": 1000.0},
    busy=0.8,
    query_s=0.5,
    compare_s={"flat": 1e-6, "sq8": 2e-6},
    reindex_s=Line(1.0, 1e-3),
)
STEMS, MINUTES = 100, 1.0  # 6000 s of audio, 2900 windows


def test_everything_grows_with_stems_seconds_and_windows() -> None:
    found = plan(FIGURES, STEMS, MINUTES, 0)
    assert found.windows == 100 * -1 + 6000 * 0.5
    assert found.sql_bytes == 100 * 1000 + 2900 * 4000
    assert found.audio_bytes == 6000 * 30_000
    assert found.ingest_core_h == pytest.approx((100 * 0.1 + 6000 * 0.02) / 3600)
    assert found.ingest_h == pytest.approx(found.ingest_core_h / (4 * 0.8))
    assert found.reindex_h == pytest.approx((1 + 2900 * 1e-3) / 3600)
    assert {kind.name: kind.bytes for kind in found.kinds} == {"flat": 2900 * 4000, "sq8": 2900 * 1000}


def test_an_index_may_have_a_quarter_of_the_memory() -> None:
    assert {kind.name: kind.fits for kind in plan(FIGURES, STEMS, MINUTES, 0).kinds} == {"flat": False, "sq8": True}


def test_queries_want_cores_for_embedding_and_for_comparing() -> None:
    found = plan(FIGURES, STEMS, MINUTES, 7)
    assert found.workers == math.ceil(7 * 0.5 / BUSY)
    (flat, sq8) = found.kinds
    assert flat.query_s == pytest.approx(0.5 + 2900 * 1e-6)
    assert sq8.cores == pytest.approx(7 * (0.5 + 2900 * 2e-6) / BUSY)


def test_a_small_catalog_wants_this_machine_alone() -> None:
    assert plan(FIGURES, STEMS, MINUTES, 1).advice == ["this machine alone"]


def test_each_step_of_growth_is_advised_by_what_runs_out() -> None:
    def steps(machine: Machine = FIGURES, stems: int = STEMS, queries_per_s: float = 0) -> str:
        return "; ".join(plan(machine, stems, MINUTES, queries_per_s).advice)

    assert "a card" in steps(queries_per_s=6)
    assert "PostgreSQL and S3" in steps(queries_per_s=6)
    assert "a card" in steps(replace(FIGURES, ingest_s=Line(0, 1000.0)))
    assert "PostgreSQL and S3" in steps(replace(FIGURES, audio_bytes=1e9))
    # 29,900 windows of 1,000 bytes in quarters of 40 MB; 2e-6 s to compare each are no trouble.
    assert "Qdrant with 3 shards" in steps(stems=1031)
    # 4e-3 s for each of 2,900 windows is 2.9 s of four cores, which three machines have.
    assert "Qdrant with 3 shards" in steps(replace(FIGURES, compare_s={"flat": 4e-3, "sq8": 4e-3}))


def test_figures_are_read_as_they_were_written_and_nothing_else_is(tmp_path: Path) -> None:
    FIGURES.write(tmp_path / "figures.json")
    assert Machine.read(tmp_path / "figures.json") == FIGURES
    for text in ("", "[]", "{}", json.dumps({"windows": {"stem": 1}})):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(NotMeasured):
            Machine.read(tmp_path / "other.json")


def test_the_command_plans_by_the_figures_that_ship() -> None:
    asked = ["size", "--stems", "1000000", "--minutes", "3", "--queries-per-second", "5"]
    shown = phalar(*asked).stdout
    planned = plan(Machine.read(MEASURED), 1_000_000, 3, 5)
    assert re.search(rf"windows +{planned.windows:,}", shown)
    told = json.loads(phalar(*asked, "--json").stdout)
    assert (told["windows"], told["workers"]) == (planned.windows, planned.workers)
