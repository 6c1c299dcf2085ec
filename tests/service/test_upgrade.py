"""A data folder that the first release made, under this one: the same stems, the same answers; then a reindex."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.clips import riff
from tests.installation import Installation, add_stem, encode, eventually, noise_bursts, retrieve, wait_ready

FIRST_RELEASE = Path(__file__).parents[1] / "data" / "first_release.sql"
NOISES, RIFFS = 3, 3
COSTS = ("cost", "harmony_cost", "length_cost")
IN_ANOTHER_BATCH = 1e-4  # of scores and seconds: an embedding's last bits depend on what is embedded beside it
TEMPO_BPM, FASTER = 120.0, 1.05
HEARD_WITHIN = 1e-3  # a tempo, as a share: half a frame of 10 ms in some beats
MUSIC = {"tempo_bpm", "key", "kind", "pitched", "sources", "sure", "beat_bpm", "windows", "warnings"}
"""What the first release did not know of a stem, or knew otherwise."""


def as_the_first_release_had_it(data: Path, made: Path) -> None:
    """Write what a data folder holds as the first release would have: its tables, none that says so, nothing heard,
    windows by the clock alone, and no index that holds others."""
    shutil.copytree(data, made, ignore=shutil.ignore_patterns("catalog.sqlite*", "index"))
    with sqlite3.connect(made / "catalog.sqlite") as sql:
        sql.executescript(FIRST_RELEASE.read_text(encoding="utf-8"))
        sql.execute("DELETE FROM clock")
        sql.execute("ATTACH ? AS present", (str(data / "catalog.sqlite"),))
        tables = sql.execute("SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        for (table,) in tables.fetchall():
            columns = ", ".join(f'"{row[1]}"' for row in sql.execute(f"PRAGMA main.table_info({table})"))
            sql.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM present.{table}")
        for fact in ("tempo_bpm", "key"):
            heard = f"SELECT row FROM present.stems WHERE json_extract(sources, '$.{fact}') = 'heard'"
            sql.execute(f"UPDATE main.stems SET {fact} = NULL WHERE row IN ({heard})")
        stored = "SELECT stem_row, windows, starts_s, embedding, beats FROM present.embeddings"
        for row, windows, starts_s, embedding, beats in sql.execute(stored).fetchall():
            by_clock = np.isnan(np.frombuffer(beats))
            kept = [
                np.frombuffer(field).reshape(len(by_clock), -1)[by_clock] for field in (windows, starts_s, embedding)
            ]
            sql.execute(
                "UPDATE main.embeddings SET windows = ?, starts_s = ?, embedding = ? WHERE stem_row = ?",
                (*(field.tobytes() for field in kept), row),
            )
            sql.execute("UPDATE main.stems SET windows = ? WHERE row = ?", (int(by_clock.sum()), row))
    sql.close()


def shown(client: httpx.Client) -> list[dict[str, Any]]:
    stems: list[dict[str, Any]] = client.get("/stems").json()["stems"]
    assert {stem["state"] for stem in stems} == {"ready"}
    return stems


def without_music(stems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in stem.items() if name not in MUSIC} for stem in stems]


def answer(client: httpx.Client, align: str) -> list[tuple[str, float, float, float]]:
    """Of a riff that the catalog has, played faster: the title of each hit, where and how fast it is played, and its
    score, best first, before what is taken off it: seeded weights tell less apart than that, and the first release kept
    no chroma."""
    hits = retrieve(client, encode(riff(1, TEMPO_BPM * FASTER)), limit=NOISES + RIFFS, align=align)["hits"]
    told = [
        (hit["stem"]["title"], hit["start_s"], hit["speed"], hit["score"] + sum(hit[cost] for cost in COSTS))
        for hit in hits
    ]
    return sorted(told, key=lambda hit: -hit[3])


def assert_alike(found: list[tuple[str, float, float, float]], wanted: list[tuple[str, float, float, float]]) -> None:
    assert [hit[0] for hit in found] == [hit[0] for hit in wanted]
    np.testing.assert_allclose([hit[1:] for hit in found], [hit[1:] for hit in wanted], atol=IN_ANOTHER_BATCH)


def test_a_data_folder_of_the_first_release_answers_as_before_and_in_beat_time_after_a_reindex(
    tmp_path: Path, small_checkpoint: Path
) -> None:
    settings = {"PHALAR_CHECKPOINT": str(small_checkpoint)}
    running = Installation(tmp_path / "present", settings, stores={}).start()
    with running.client() as client:
        said = add_stem(client, encode(riff(0, TEMPO_BPM)), "riff 0.flac", tempo_bpm=TEMPO_BPM, tags=["warm"])
        heard = [add_stem(client, encode(riff(seed, TEMPO_BPM)), f"riff {seed}.flac") for seed in range(1, RIFFS)]
        noises = [add_stem(client, encode(noise_bursts(seed)), f"noise {seed}.flac") for seed in range(NOISES)]
        wait_ready(client, said, *heard, *noises)
        stems, by_clock, on_beats = shown(client), answer(client, "search"), answer(client, "beats")
    assert running.stop() == 0
    assert on_beats[0][0] == "riff 1"
    assert on_beats[0][2] == pytest.approx(FASTER, rel=HEARD_WITHIN)
    assert {speed for _, _, speed, _ in by_clock} == {1.0}

    as_the_first_release_had_it(tmp_path / "present" / "data", tmp_path / "first" / "data")
    upgraded = Installation(tmp_path / "first", settings, stores={}).start()
    with upgraded.client() as client:
        old = shown(client)
        assert without_music(old) == without_music(stems)
        for align in ("beats", "search"):
            assert_alike(answer(client, align), by_clock)
        job = client.post("/admin/reindex").json()
        eventually(lambda: shown(client) != old)
    upgraded.kill_all()
    upgraded.start()
    with upgraded.client() as client:
        eventually(lambda: shown(client) and client.get(f"/jobs/{job['id']}").json()["state"] == "done")
        assert shown(client) == stems
        assert_alike(answer(client, "search"), by_clock)
        assert_alike(answer(client, "beats"), on_beats)
        generation = client.get("/readyz").json()["index"]["generation"]
        assert client.post("/admin/rollback").json()["generation"] < generation
        assert_alike(answer(client, "beats"), on_beats)  # no index of windows by the clock is taken for one of beats
    assert upgraded.stop() == 0
