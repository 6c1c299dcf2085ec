"""Building on a mix: searching with it again, with stems laid into it, and for a set of stems."""

import json
from typing import Any

import httpx
import numpy as np
import pytest

from model.audio import SAMPLE_RATE
from service.settings import Settings
from tests.installation import encode, noise_bursts, retrieve, serving
from tests.service.api.conftest import added
from tests.service.api.test_api import problem_of
from tests.service.api.test_security import client as client_with
from tests.service.api.test_security import keys_of
from tests.service.api.test_shares import AUDIO, worker

SAME_SCORE = 0.02  # a file of 16 bits is not the sum to the last bit
LOUD = 20.0


def again(client: httpx.Client, **form: Any) -> dict[str, Any]:
    answer = client.post("/retrieve", data=form)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def stem_named(client: httpx.Client, title: str) -> str:
    stems = client.get("/stems", params={"collection": "shared"}).json()["stems"]
    return next(str(stem["id"]) for stem in stems if stem["title"] == title)


def placing(stem_id: str, **how: Any) -> str:
    return json.dumps([{"stem_id": stem_id, **how}])


def found(answer: dict[str, Any]) -> dict[str, float]:
    return {hit["stem"]["title"]: hit["score"] for hit in answer["hits"]}


def test_a_mix_is_searched_with_again_without_another_upload(client: httpx.Client) -> None:
    first = retrieve(client, encode(noise_bursts(3)), limit=5, max_transpose=0)
    assert len(first["mix_id"]) == 32
    same = again(client, mix_id=first["mix_id"], limit=5, max_transpose=0)
    assert same["hits"] == first["hits"]
    assert same["mix"] == first["mix"]
    assert same["mix_id"] == first["mix_id"]
    assert "decode" not in same["timing_ms"]
    other = again(client, mix_id=first["mix_id"], limit=1, instrument="drums", align="grid", mix_key="A minor")
    assert [hit["stem"]["instrument"] for hit in other["hits"]] == ["drums"]
    assert other["mix"]["sources"]["key"] == "said"


def test_a_mix_of_stems_is_kept_with_what_it_is_made_of(client: httpx.Client) -> None:
    stem_id = stem_named(client, "2")
    kept = again(client, stem_id=stem_id, limit=50, align="grid")["mix_id"]
    answer = again(client, mix_id=kept, limit=50, align="grid")
    assert answer["hits"]
    assert stem_id not in {hit["stem"]["id"] for hit in answer["hits"]}


def test_a_mix_is_its_callers_own(chosen: dict[str, Any]) -> None:
    chosen |= {"require_keys": True}
    mine, yours = keys_of(chosen, "read", "read")
    with serving(Settings(**chosen)) as url, worker(chosen), client_with(url, mine) as me:
        mix_id = retrieve(me, AUDIO, align="grid")["mix_id"]
        with client_with(url, yours) as you:
            assert problem_of(you.post("/retrieve", data={"mix_id": mix_id}), 404, "mix-not-found")["mix_id"] == mix_id
        assert again(me, mix_id=mix_id, align="grid")["mix_id"] == mix_id
        problem_of(me.post("/retrieve", data={"mix_id": "0" * 32}), 404, "mix-not-found")


def test_nothing_is_kept_where_nothing_may_be(chosen: dict[str, Any]) -> None:
    with serving(Settings(**chosen, kept_mix_bytes=0)) as url, worker(chosen), client_with(url) as sender:
        assert retrieve(sender, AUDIO, align="grid")["mix_id"] is None


@pytest.mark.parametrize(
    ("how", "from_s", "at_s", "gain"),
    [({}, 0.0, 0.0, 1.0), ({"start_s": 2, "at_s": 1, "gain_db": -6}, 2.0, 1.0, 0.5012), ({"start_s": -1.5}, 0, 1.5, 1)],
)
def test_a_placed_stem_sounds_in_the_mix_and_is_no_hit(
    client: httpx.Client, how: dict[str, float], from_s: float, at_s: float, gain: float
) -> None:
    mix, stem = 0.5 * noise_bursts(0, 8.0), 0.5 * noise_bursts(4)
    form: dict[str, Any] = {"align": "search", "limit": 50, "collection": "shared"}
    kept = retrieve(client, encode(mix), **form)["mix_id"]
    with added(client, encode(stem), collection="placed") as stem_id:
        answer = again(client, mix_id=kept, placed=placing(stem_id, **how), **form)
    summed, at, begin = mix.copy(), round(at_s * SAMPLE_RATE), round(from_s * SAMPLE_RATE)
    part = stem[begin : begin + len(mix) - at]
    summed[at : at + len(part)] += np.float32(gain) * part
    whole = found(retrieve(client, encode(summed), **form))
    del whole["4"]  # the same audio as the placed one
    assert found(answer) == pytest.approx(whole, abs=SAME_SCORE)
    assert answer["mix"]["duration_s"] == 8.0
    assert found(again(client, mix_id=kept, **form)) != pytest.approx(whole, abs=SAME_SCORE), "the mix alone is kept"


def test_tempo_and_key_are_those_of_the_mix_alone(client: httpx.Client) -> None:
    form: dict[str, Any] = {"limit": 1, "align": "grid"}
    mix = retrieve(client, encode(0.1 * noise_bursts(1)), **form)
    placed = placing(stem_named(client, "3"), gain_db=20)
    assert again(client, mix_id=mix["mix_id"], placed=placed, **form)["mix"] == mix["mix"]


@pytest.mark.parametrize(
    ("placed", "status", "kind"),
    [
        ("{", 422, "invalid-request"),
        ("{}", 422, "invalid-request"),
        ('[{"stem_id": "x", "gain_db": NaN}]', 422, "invalid-request"),
        ('[{"stem_id": "x", "gain_db": 1e9}]', 422, "invalid-request"),
        ('[{"stem_id": "x", "speed": 0}]', 422, "invalid-request"),
        ('[{"stem_id": "x", "start_s": Infinity}]', 422, "invalid-request"),
        ('[{"stem_id": "x", "colour": 1}]', 422, "invalid-request"),
        ('[{"stem_id": "x\\u0000"}]', 422, "nul-in-text"),
        (json.dumps([{"stem_id": "x"}] * 500), 422, "invalid-request"),
        ("[" * 10_000, 422, "invalid-request"),
        ('[{"stem_id": "nobody"}]', 404, "stem-not-found"),
        ('[{"stem_id": "ID", "start_s": 9.1}]', 422, "placed-beyond-end"),
        ('[{"stem_id": "ID", "at_s": 9.1}]', 422, "placed-beyond-end"),
        ('[{"stem_id": "ID", "start_s": -10}]', 422, "placed-beyond-end"),
    ],
)
def test_what_cannot_be_placed_is_named(client: httpx.Client, placed: str, status: int, kind: str) -> None:
    placed = placed.replace("ID", stem_named(client, "1"))
    files = {"file": ("mix.flac", encode(noise_bursts(0)))}
    problem_of(client.post("/retrieve", files=files, data={"placed": placed}), status, kind)


def test_a_placed_stem_that_was_deleted_meanwhile_is_named(client: httpx.Client) -> None:
    kept = retrieve(client, encode(noise_bursts(0)), align="grid")["mix_id"]
    with added(client, encode(noise_bursts(300))) as stem_id:
        pass
    answer = client.post("/retrieve", data={"mix_id": kept, "placed": placing(stem_id)})
    assert problem_of(answer, 404, "stem-not-found")["stem_id"] == stem_id


def test_a_set_has_a_stem_of_each_instrument_that_there_is(client: httpx.Client) -> None:
    form = {"complete": "drums,Bass,theremin", "limit": 1, "align": "grid", "collection": "shared"}
    answer = retrieve(client, encode(noise_bursts(0)), **form)
    assert [hit["stem"]["instrument"] for hit in answer["hits"]] == ["drums", "bass"]
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2]
    drums, bass, none = answer["band"]["slots"]
    assert [(slot["instrument"], slot["rank"]) for slot in (drums, bass)] == [("drums", 1), ("Bass", 2)]
    assert [hit["stem"]["instrument"] for hit in drums["alternatives"] + bass["alternatives"]] == ["drums", "bass"]
    assert (none["rank"], none["alternatives"]) == (None, [])
    assert "of this instrument" in none["note"]
    assert answer["exact"]
    assert again(client, mix_id=answer["mix_id"], align="grid")["band"] is None


@pytest.mark.parametrize("named", ["", "drums,,bass", "drums,DRUMS", "a,b,c,d,e,f,g", "\x00", "x" * 300])
def test_instruments_that_cannot_be_are_refused(client: httpx.Client, named: str) -> None:
    files = {"file": ("mix.flac", encode(noise_bursts(0)))}
    problem_of(client.post("/retrieve", files=files, data={"complete": named}), 422, "invalid-request")


def test_one_mix_is_sent_and_one_way_to_name_instruments(client: httpx.Client) -> None:
    files = {"file": ("mix.flac", encode(noise_bursts(0)))}
    problem_of(client.post("/retrieve", files=files, data={"mix_id": "a" * 32}), 422, "no-mix")
    both = {"complete": "drums", "instrument": "bass"}
    problem_of(client.post("/retrieve", files=files, data=both), 422, "invalid-request")
