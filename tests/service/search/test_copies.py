"""The same audio in several files is one hit."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soxr

from indexer import StemFilter
from model.demo import compose_track
from service.metrics import Metrics, Stopwatch
from service.search.in_process import SearchedCatalog
from service.search.retrieval import SCORED_FIRST, Found, Wish
from tests.command import phalar
from tests.installation import Installation, add_stem, encode, noise_bursts, wait_ready
from tests.service.search.test_evaluate_catalog import bank_of, write

SECONDS = 8.0
TRACKS = [compose_track(seed, SECONDS) for seed in (0, 1)]
RATE = TRACKS[0].sample_rate
COPIED = "bass"
OTHERS = [stem.instrument for stem in TRACKS[0].stems if stem.instrument != COPIED]


def encodings(waveform: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, bytes]:
    """What one recording may lie about as, by file name."""
    return {
        "16 kHz.wav": encode(soxr.resample(waveform, RATE, 16_000), "WAV", 16_000),
        "24 bit.wav": encode(waveform, "WAV", RATE, subtype="PCM_24"),
        "quiet.flac": encode(waveform * np.float32(10 ** (-12 / 20)), "FLAC", RATE),
        "stereo.flac": encode(np.stack([waveform, 0.8 * waveform], axis=1), "FLAC", RATE),
        "coded.mp3": encode(waveform, "MP3", RATE),
        "coded.ogg": encode(waveform, "OGG", RATE, subtype="VORBIS"),
    }


Catalog = tuple[httpx.Client, dict[str, str], set[str]]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """Served with the default model: two tracks, one of whose stems came in many files. The ids of the first track's
    stems by instrument, and those of the copies."""
    running = Installation(tmp_path_factory.mktemp("copies")).start()
    with running.client() as client:
        ids = {
            f"{stem.instrument} {number}": add_stem(
                client, encode(stem.waveform, "FLAC", RATE), f"{number}.flac", track=f"{number}"
            )
            for number, track in enumerate(TRACKS)
            for stem in track.stems
        }
        copies = {
            name: add_stem(client, audio, name) for name, audio in encodings(TRACKS[0].stem(COPIED).waveform).items()
        }
        wait_ready(client, *ids.values(), *copies.values())
        yield client, {name.removesuffix(" 0"): ids[name] for name in ids}, set(copies.values())
    assert running.stop() == 0


def ask(client: httpx.Client, **form: Any) -> list[dict[str, Any]]:
    answer = client.post("/retrieve", data={"max_stretch": 0.5, **form})  # at any tempo, so that every stem is a hit
    assert answer.status_code == 200, answer.text
    hits: list[dict[str, Any]] = answer.json()["hits"]
    return hits


@pytest.mark.parametrize("align", ["beats", "search", "grid"])
def test_one_recording_in_seven_files_is_one_hit(catalog: Catalog, align: str) -> None:
    client, ids, copies = catalog
    hits = ask(client, stem_id=[ids[name] for name in OTHERS], limit=20, align=align)
    of_hits = [{hit["stem"]["id"], *(copy["id"] for copy in hit["copies"])} for hit in hits]
    assert [one for one in of_hits if len(one) > 1] == [{ids[COPIED], *copies}]
    assert sum(map(len, of_hits)) == len(copies) + len(ids) - len(OTHERS)
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_every_copy_is_a_hit_where_that_is_asked_for(catalog: Catalog) -> None:
    client, ids, copies = catalog
    hits = ask(client, stem_id=[ids[name] for name in OTHERS], limit=20, group_duplicates=False)
    assert copies < {hit["stem"]["id"] for hit in hits}
    assert not any(hit["copies"] for hit in hits)


def test_a_copy_of_a_stem_of_the_mix_is_no_hit(catalog: Catalog) -> None:
    client, ids, copies = catalog
    hits = ask(client, stem_id=ids[COPIED], limit=20)
    assert {hit["stem"]["id"] for hit in hits} == set(ids.values()) - {ids[COPIED]}
    assert not any(hit["copies"] for hit in hits)
    every = ask(client, stem_id=ids[COPIED], limit=20, group_duplicates=False)
    assert copies < {hit["stem"]["id"] for hit in every}


def test_copies_take_no_other_stems_place(tmp_path: Path, small_checkpoint: Path) -> None:
    copies = SCORED_FIRST + 4  # more than are scored of their own accord
    for number in range(copies + 2):
        waveform = noise_bursts(max(0, number - copies + 1), 6.0) * np.float32(1 - number / 1000)
        write(tmp_path / "stems" / "0" / f"{number:02}.wav", waveform)
    bank = bank_of(tmp_path / "stems")

    async def find() -> Found:
        async with SearchedCatalog.thrown_away(small_checkpoint) as searched:
            await searched.add(bank, 0)
            index = await searched.go_live()
            wish = Wish(limit=3, align="grid", group_copies=True)
            return await searched.finder.find(index, noise_bursts(0, 6.0), StemFilter(), wish, Stopwatch(Metrics()))

    found = asyncio.run(find())
    assert [1 + len(found.copies[row]) for row in found.places] == [copies, 1, 1]
    assert found.exact


def test_the_command_says_how_many_copies_a_hit_has(catalog: Catalog) -> None:
    client, ids, copies = catalog
    asked = ["retrieve", "--url", str(client.base_url), *(f"--stem-id={ids[name]}" for name in OTHERS)]
    assert f"+{len(copies)}" in phalar(*asked).output
    every = phalar(*asked, "--all-duplicates").output
    assert f"+{len(copies)}" not in every
