"""Find and keep: words, favourites, many changed at once, saved searches, through the interface."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.installation import add_stem, encode, noise_bursts, retrieve, serving
from tests.service.api.conftest import Fresh
from tests.service.api.test_api import problem_of

KEYS = {"read": "r" * 40, "ingest": "i" * 40}
STEMS = ("bass", "bass", "drums", "keys")


@pytest.fixture(scope="module")
def keyed(fresh: Fresh) -> Iterator[dict[str, httpx.Client]]:
    """Clients of an installation that needs keys, by scope; its STEMS wait for a worker that never comes."""
    settings = fresh(read_key=KEYS["read"], ingest_key=KEYS["ingest"])
    with serving(settings) as url:
        clients = {
            scope: httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) for scope, key in KEYS.items()
        }
        for n, instrument in enumerate(STEMS):
            add_stem(clients["ingest"], encode(noise_bursts(500 + n, 1.5)), f"{n}.flac", instrument=instrument)
        yield clients
        for client in clients.values():
            client.close()


def found(client: httpx.Client, **wanted: Any) -> list[str]:
    answer = client.get("/stems", params=wanted)
    assert answer.status_code == 200, answer.text
    return [stem["title"] for stem in answer.json()["stems"]]


def test_words_find_stems_and_restrict_hits(client: httpx.Client) -> None:
    assert found(client, q="DRÚMS shared tra") == ["0", "2", "4"]
    assert found(client, q='warm" OR ') == []
    hits = retrieve(client, encode(noise_bursts(0)), limit=50, align="grid", q="track 1 shared dru")["hits"]
    assert [hit["stem"]["title"] for hit in hits] == ["2"]
    problem_of(client.get("/stems", params={"q": "x" * 256}), 422, "invalid-request")


def test_favourites_and_ratings_are_changed_and_filter(client: httpx.Client) -> None:
    stem = client.get("/stems", params={"q": "track 0 bass"}).json()["stems"][0]
    assert (stem["favourite"], stem["rating"]) == (False, None)
    kept = client.patch(f"/stems/{stem['id']}", json={"favourite": True, "rating": 4}).json()
    assert (kept["favourite"], kept["rating"], kept["state"]) == (True, 4, "ready")
    assert found(client, favourite=True) == found(client, rating_min=4) == [stem["title"]]
    assert found(client, rating_min=5) == []
    hits = retrieve(client, encode(noise_bursts(0)), limit=50, align="grid", favourite=True, rating_min=3)["hits"]
    assert [hit["stem"]["id"] for hit in hits] == [stem["id"]]
    for wrong in ({"rating": 6}, {"rating": -1}, {"favourite": None}):
        problem_of(client.patch(f"/stems/{stem['id']}", json=wrong), 422, "invalid-request")
    client.patch(f"/stems/{stem['id']}", json={"favourite": False, "rating": None})
    assert found(client, favourite=True) == []


def test_many_are_changed_by_a_filter_after_a_dry_run(keyed: dict[str, httpx.Client]) -> None:
    client = keyed["ingest"]
    wanted = {"instrument": "bass"}
    dry = client.patch("/stems", params=wanted | {"dry_run": True}, json={"collection": "low"}).json()
    assert dry == {"stems": 2, "queued": 0, "dry_run": True}
    assert found(client, collection="low") == []
    done = client.patch("/stems", params=wanted, json={"collection": "low", "favourite": True}).json()
    assert done == {"stems": 2, "queued": 0, "dry_run": False}
    assert found(client, q="low", favourite=True) == ["0", "1"]
    assert client.patch("/stems", params={"all": True}, json={"tempo_bpm": 93}).json()["stems"] == len(STEMS)
    assert len(found(client, tempo_min=92.9, tempo_max=93.1)) == len(STEMS)


@pytest.mark.parametrize(("params", "code"), [
    ({}, "nothing-chosen"),
    ({"all": True, "instrument": "bass"}, "nothing-chosen"),
    ({"tempo_octaves": True}, "nothing-chosen"),
    ({"key_match": "compatible"}, "nothing-chosen"),
    ({"instrument": "bass", "colection": "x"}, "invalid-request"),
])  # fmt: skip
def test_everything_is_not_changed_by_mistake(keyed: dict[str, httpx.Client], params: Any, code: str) -> None:
    problem_of(keyed["ingest"].patch("/stems", params=params, json={"title": "oh"}), 422, code)
    problem_of(keyed["read"].patch("/stems", params={"all": True}, json={"title": "oh"}), 403, "key-refused")
    assert found(keyed["read"], q="oh") == []


def test_a_saved_search_is_its_callers_own(keyed: dict[str, httpx.Client], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, other = keyed["read"], keyed["ingest"]
    search = {"q": "ba", "rating_min": 2, "limit": 3}
    assert reader.put("/searches/late night", json=search).json() == {"name": "late night", "search": search}
    assert reader.get("/searches/late night").json()["search"] == search
    assert reader.get("/searches").json()["searches"] == [{"name": "late night", "search": search}]
    assert other.get("/searches").json() == {"searches": []}
    problem_of(other.get("/searches/late night"), 404, "search-not-found")
    problem_of(other.delete("/searches/late night"), 404, "search-not-found")
    problem_of(reader.put("/searches/x", json={"limit": 0}), 422, "invalid-request")
    problem_of(reader.put("/searches/x", json={"file": "x"}), 422, "invalid-request")
    problem_of(reader.put("/searches/a%1b", json={}), 422, "invalid-request")
    assert reader.delete("/searches/late night").status_code == 204
    assert reader.get("/searches").json() == {"searches": []}
    monkeypatch.setattr("indexer.catalog.searches.MOST_SEARCHES", 1)
    assert reader.put("/searches/one", json={}).status_code == 200
    assert problem_of(reader.put("/searches/more", json={}), 409, "too-many-searches")["maximum"] == 1


def test_a_retrieval_takes_what_was_saved_and_what_is_sent_before_it(client: httpx.Client) -> None:
    audio = encode(noise_bursts(0))
    client.put("/searches/mine", json={"collection": ["shared"], "instrument": ["bass"], "limit": 2, "align": "grid"})
    hits = retrieve(client, audio, saved="mine")["hits"]
    assert [hit["stem"]["instrument"] for hit in hits] == ["bass", "bass"]
    answer = retrieve(client, audio, saved="mine", instrument="drums", limit=1)
    assert [hit["stem"]["instrument"] for hit in answer["hits"]] == ["drums"]
    assert answer["align"]["mode"] == "grid"
    sent = client.post("/retrieve", files={"file": ("m.flac", audio)}, data={"saved": "theirs"})
    assert problem_of(sent, 404, "search-not-found")["name"] == "theirs"
    assert client.delete("/searches/mine").status_code == 204
