"""Names and words as people and systems write them, through the interface and back."""

import json

import httpx
import pytest

from tests.installation import encode, noise_bursts
from tests.service.api.conftest import added
from tests.service.api.test_api import problem_of

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # one picture, held together by joiners


@pytest.mark.parametrize(("name", "title"), [
    ("Cafe\u0301 bass.wav", "Caf\u00e9 bass"),
    (f"bass\u3000{FAMILY}\u00a0one.flac", f"bass\u3000{FAMILY}\u00a0one"),
    (".ogg", ".ogg"),
    ("a\x1b[31m\x9b.flac", "a\\x1b[31m\\x9b"),
    ("C:\\music\\bass.wav", "bass"),
    ("half\\way.wav", "half\\way"),
    ("x" * 300, "x" * 255),
], ids=repr)  # fmt: skip
def test_a_file_name_becomes_a_title_that_can_be_shown(client: httpx.Client, name: str, title: str) -> None:
    with added(client, encode(noise_bursts(300, 2.0)), name) as stem_id:
        assert client.get(f"/stems/{stem_id}").json()["title"] == title


def test_filters_find_a_name_however_it_is_spelled(client: httpx.Client) -> None:
    said = {"track": "Cafe\u0301 Stra\u00dfe", "instrument": "Bass", "tags": ["W\u00e4rm"], "key": "F# minor"}
    with added(client, encode(noise_bursts(301, 2.0)), **said) as stem_id:
        assert client.get(f"/stems/{stem_id}").json()["track"] == "Caf\u00e9 Stra\u00dfe"
        for wanted in ({"track": "caf\u00e9 STRASSE"}, {"track": "Cafe\u0301 stra\u00dfe"}, {"tag": "w\u00c4RM"}):
            found = client.get("/stems", params={**wanted, "key": "f# Minor", "instrument": " BASS"}).json()["stems"]
            assert [hit["id"] for hit in found] == [stem_id], wanted
        mix = {"file": ("m.flac", encode(noise_bursts(301, 2.0)))}
        hits = client.post("/retrieve", files=mix, data={"track": "CAFE\u0301 STRASSE"}).json()["hits"]
        assert [hit["stem"]["id"] for hit in hits] == [stem_id]


@pytest.mark.parametrize("text", ["a\x1b]52;c;YQ==\x07", "a\ud800", "a\nb", "\u3000", "x" * 256], ids=repr)
def test_words_that_cannot_be_shown_are_refused(client: httpx.Client, text: str) -> None:
    for field in ({"title": text}, {"tags": [text]}, {"track": text}):
        sent = client.post("/stems", files={"files": ("a.wav", b"x")}, data={"metadata": json.dumps(field)})
        assert problem_of(sent, 422, "bad-metadata")["detail"].isprintable()
