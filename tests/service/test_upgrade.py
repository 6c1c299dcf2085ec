"""A data folder that the first release made, under this one: the same stems, the same answers."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

from tests.installation import Installation, add_stem, encode, noise_bursts, retrieve, wait_ready

FIRST_RELEASE = Path(__file__).parents[1] / "data" / "first_release.sql"
STEMS = 3


def as_the_first_release_had_it(data: Path, made: Path) -> None:
    """Write what a data folder holds as the first release would have: its tables, and none that says so."""
    shutil.copytree(data, made, ignore=shutil.ignore_patterns("catalog.sqlite*"))
    with sqlite3.connect(made / "catalog.sqlite") as sql:
        sql.executescript(FIRST_RELEASE.read_text(encoding="utf-8"))
        sql.execute("DELETE FROM clock")
        sql.execute("ATTACH ? AS present", (str(data / "catalog.sqlite"),))
        tables = sql.execute("SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        for (table,) in tables.fetchall():
            columns = ", ".join(f'"{row[1]}"' for row in sql.execute(f"PRAGMA main.table_info({table})"))
            sql.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM present.{table}")
    sql.close()


def answer(running: Installation) -> tuple[list[dict[str, Any]], list[Any]]:
    with running.client() as client:
        stems = client.get("/stems").json()["stems"]
        hits = retrieve(client, encode(noise_bursts(1)), limit=STEMS)["hits"]
    return stems, [(hit["stem"]["id"], hit["start_s"], hit["score"]) for hit in hits]


def test_a_data_folder_of_the_first_release_keeps_every_stem_and_answers_as_before(
    tmp_path: Path, small_checkpoint: Path
) -> None:
    settings = {"PHALAR_CHECKPOINT": str(small_checkpoint)}
    running = Installation(tmp_path / "present", settings, stores={}).start()
    with running.client() as client:
        for seed in range(STEMS):
            wait_ready(client, add_stem(client, encode(noise_bursts(seed)), f"{seed}.flac", tags=["warm"]))
    before = answer(running)
    assert running.stop() == 0
    as_the_first_release_had_it(tmp_path / "present" / "data", tmp_path / "first" / "data")
    upgraded = Installation(tmp_path / "first", settings, stores={}).start()
    assert answer(upgraded) == before
    assert len(before[1]) == STEMS
    assert upgraded.stop() == 0
