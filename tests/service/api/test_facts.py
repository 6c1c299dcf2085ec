"""Tempo, key and kind over HTTP: read from files and names, said, changed, filtered by."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from model.audio import SAMPLE_RATE
from tests.installation import encode, eventually, noise_bursts, retrieve, wait_ready
from tests.service.api.conftest import added
from tests.service.api.test_api import problem_of

CLIP = noise_bursts(400)


@pytest.fixture
def stem_id(client: httpx.Client) -> Iterator[str]:
    """A stem of which its name says tempo and key, and its uploader the kind."""
    with added(client, encode(CLIP), "bass_90bpm_F#m.flac", kind="piece", collection="facts") as stem_id:
        yield stem_id


def shown(client: httpx.Client, stem_id: str) -> dict[str, Any]:
    return client.get(f"/stems/{stem_id}").json()  # type: ignore[no-any-return]


def found(client: httpx.Client, **wanted: Any) -> list[str]:
    stems = client.get("/stems", params={"collection": "facts", **wanted}).json()["stems"]
    return [stem["id"] for stem in stems]


def test_a_name_says_tempo_and_key_and_an_uploader_wins(client: httpx.Client, stem_id: str) -> None:
    stem = shown(client, stem_id)
    assert (stem["tempo_bpm"], stem["key"], stem["kind"]) == (90, "F# minor", "piece")
    assert stem["sources"] == {"tempo_bpm": "name", "key": "name", "kind": "said"}
    assert {"tempo_bpm", "key", "kind"}.isdisjoint(stem["sure"])
    values = client.get("/catalog").json()
    assert "F# minor" in values["keys"]
    assert "piece" in values["kinds"]


@pytest.mark.parametrize(
    ("wanted", "is_found"),
    [
        ({"kind": "piece"}, True),
        ({"kind": ["loop", "one-shot"]}, False),
        ({"tempo_min": 179, "tempo_max": 181}, False),
        ({"tempo_min": 179, "tempo_max": 181, "tempo_octaves": "true"}, True),
        ({"tempo_max": 46, "tempo_octaves": "true"}, True),
        ({"key": "A major"}, False),
        ({"key": "A major", "key_match": "compatible"}, True),
        ({"key": "11A", "key_match": "compatible"}, True),
        ({"key": ["gb MINOR", "no key"], "key_match": "compatible"}, True),
        ({"key": ["C major", "no key"], "key_match": "compatible"}, False),
    ],
)
def test_filters_know_kinds_octaves_and_keys_that_mix(
    client: httpx.Client, stem_id: str, wanted: dict[str, Any], is_found: bool
) -> None:
    assert found(client, **wanted) == ([stem_id] if is_found else [])
    hits = retrieve(client, encode(CLIP), align="grid", collection="facts", **wanted)["hits"]
    assert [hit["stem"]["id"] for hit in hits] == ([stem_id] if is_found else [])


def test_another_tempo_sends_a_stem_back_until_it_is_embedded_again(client: httpx.Client, stem_id: str) -> None:
    changed = client.patch(f"/stems/{stem_id}", json={"tempo_bpm": 77}).json()
    assert (changed["state"], changed["tempo_bpm"], changed["sources"]["tempo_bpm"]) == ("queued", 77, "said")
    wait_ready(client, stem_id)
    assert shown(client, stem_id)["tempo_bpm"] == 77
    hits = eventually(lambda: retrieve(client, encode(CLIP), align="grid", collection="facts")["hits"])
    assert hits[0]["stem"]["id"] == stem_id


def test_a_key_is_said_without_a_pause(client: httpx.Client, stem_id: str) -> None:
    changed = client.patch(f"/stems/{stem_id}", json={"key": "odd"}).json()
    assert (changed["state"], changed["key"], changed["sources"]["key"]) == ("ready", "odd", "said")


def test_a_fact_that_is_taken_back_is_not_said_any_more(client: httpx.Client, stem_id: str) -> None:
    changed = client.patch(f"/stems/{stem_id}", json={"tempo_bpm": None, "kind": None}).json()
    assert (changed["state"], changed["tempo_bpm"], changed["kind"]) == ("queued", None, None)
    wait_ready(client, stem_id)
    assert shown(client, stem_id)["sources"].get("tempo_bpm", "heard") == "heard"


def test_a_said_tempo_becomes_exact_where_the_clip_is_whole_beats_long(client: httpx.Client, stem_id: str) -> None:
    seconds = len(CLIP) / SAMPLE_RATE
    beats = round(seconds * 120 / 60)
    exact = 60 * beats / seconds
    changed = client.patch(f"/stems/{stem_id}", json={"tempo_bpm": round(exact, 2)}).json()
    assert changed["tempo_bpm"] == pytest.approx(exact, abs=1e-9)
    wait_ready(client, stem_id)


@pytest.mark.parametrize(
    "wrong",
    [
        '{"tempo_bpm": 0}',
        '{"tempo_bpm": -1}',
        '{"tempo_bpm": NaN}',
        '{"tempo_bpm": 1e-310}',
        '{"tempo_bpm": 10000}',
        '{"kind": "song"}',
        '{"kind": ""}',
        '{"sources": {}}',
    ],
)
def test_facts_that_cannot_be_are_refused(client: httpx.Client, stem_id: str, wrong: str) -> None:
    before = shown(client, stem_id)
    json_body = {"content": wrong, "headers": {"Content-Type": "application/json"}}
    problem_of(client.patch(f"/stems/{stem_id}", **json_body), 422, "invalid-request")  # type: ignore[arg-type]
    answer = client.post("/stems", files={"files": ("x.flac", encode(CLIP))}, data={"metadata": wrong})
    problem_of(answer, 422, "bad-metadata")
    assert shown(client, stem_id) == before


@pytest.mark.parametrize(
    "wrong", [{"kind": "song"}, {"key_match": "near"}, {"tempo_octaves": "some"}, {"tempo_min": "nan"}]
)
def test_filters_that_cannot_be_are_refused(client: httpx.Client, wrong: dict[str, str]) -> None:
    problem_of(client.get("/stems", params=wrong), 422, "invalid-request")
    problem_of(client.post("/retrieve", data={"stem_id": "x", **wrong}), 422, "invalid-request")


def test_a_contradiction_is_a_warning(client: httpx.Client) -> None:
    with added(client, encode(noise_bursts(401)), "pad_loop_140bpm.flac", tempo_bpm=100) as stem_id:
        stem = shown(client, stem_id)
        assert stem["tempo_bpm"] == 100
        assert "it was uploaded as 100 BPM, its name says 140 BPM" in stem["warnings"], stem
