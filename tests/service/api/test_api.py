"""The HTTP interface as a client sees it, on a whole running installation."""

import io
import json
import wave
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from model.audio import SAMPLE_RATE
from tests.installation import Installation, add_stem, encode, eventually, noise_bursts, retrieve, wait_ready
from tests.service.api.conftest import added

CLEARLY = 0.1  # a stem scores 1 against itself, in this model
PLACE_TOLERANCE_S = 0.04  # delays are tried every 40 ms, and this stand-in's score is gone before the next


def problem_of(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["type"] == f"/problems/{kind}"
    assert body["status"] == status
    assert body["title"]
    return body


def test_a_cut_finds_its_stem_and_the_second_it_was_cut_at(client: httpx.Client) -> None:
    clip = noise_bursts(3)
    start = 7_777
    answer = retrieve(client, encode(clip[start:]), limit=3)
    first = answer["hits"][0]
    assert first["stem"]["title"] == "3"
    assert first["rank"] == 1
    assert abs(first["start_s"] - start / SAMPLE_RATE) <= PLACE_TOLERANCE_S
    assert answer["exact"]
    assert answer["model"]["trained"]
    assert {"decode", "hear", "embed", "index", "rescore", "total"} <= answer["timing_ms"].keys()


def test_stems_that_begin_alike_are_told_apart_by_the_rest_of_a_longer_mix(client: httpx.Client) -> None:
    """The first half fits both."""
    alike = noise_bursts(200)
    rests = [0.4 * noise_bursts(seed) for seed in (201, 202)]
    other, wanted = (
        add_stem(client, encode(np.concatenate([alike, rest])), title=title, collection="alike")
        for rest, title in zip(rests, ("other", "wanted"), strict=True)
    )
    wait_ready(client, other, wanted)
    start = 4_000
    mix = np.concatenate([alike, rests[1]])[start:]
    first, second = retrieve(client, encode(mix), collection="alike")["hits"]
    assert [first["stem"]["title"], second["stem"]["title"]] == ["wanted", "other"]
    assert first["score"] > second["score"] + CLEARLY
    for hit in (first, second):
        assert abs(hit["start_s"] - start / SAMPLE_RATE) <= PLACE_TOLERANCE_S
        assert max(pair["mix_s"] for pair in hit["windows"]) > 8, "in the other half"
        before = hit["score"] + hit["cost"] + hit["harmony_cost"] + hit["length_cost"]
        assert before == pytest.approx(np.mean([pair["score"] for pair in hit["windows"]]), abs=1e-6)
    for stem_id in (other, wanted):
        client.delete(f"/stems/{stem_id}")


def test_a_mix_that_begins_before_the_stem_gets_a_negative_start(client: httpx.Client) -> None:
    clip = noise_bursts(2)
    mix = np.concatenate([np.zeros(SAMPLE_RATE // 2, np.float32), clip])
    first = retrieve(client, encode(mix), limit=1)["hits"][0]
    assert first["stem"]["title"] == "2"
    assert abs(first["start_s"] + 0.5) <= PLACE_TOLERANCE_S


def test_on_the_grid_one_embedding_a_window_is_enough(client: httpx.Client) -> None:
    answer = retrieve(client, encode(noise_bursts(1)), align="grid", limit=1)
    assert answer["align"]["shifts"] == 1
    assert answer["hits"][0]["stem"]["title"] == "1"
    assert answer["hits"][0]["start_s"] == 0.0


def test_a_mix_of_catalog_stems_does_not_return_them(client: httpx.Client) -> None:
    stems = client.get("/stems", params={"track": "track 0"}).json()["stems"]
    ids = [stem["id"] for stem in stems]
    answer = client.post("/retrieve", data={"stem_id": ids, "limit": 50})
    assert answer.status_code == 200
    found = {hit["stem"]["id"] for hit in answer.json()["hits"]}
    assert found
    assert not found & set(ids)


@pytest.mark.parametrize(
    ("form", "titles"),
    [
        ({"instrument": "bass"}, {"1", "3", "5"}),
        ({"instrument": ["bass", "drums"], "tempo_max": 101}, {"0", "1"}),
        ({"collection": "shared", "tempo_min": 104}, {"4", "5"}),
        ({"tag": "warm", "track": "track 1"}, {"2", "3"}),
        ({"collection": "shared", "exclude_track": ["track 0", "track 1"]}, {"4", "5"}),
        ({"key": "H flat"}, set()),
    ],
)
def test_filters_restrict_the_hits(client: httpx.Client, form: dict[str, Any], titles: set[str]) -> None:
    answer = retrieve(client, encode(noise_bursts(0)), limit=50, align="grid", **form)
    assert {hit["stem"]["title"] for hit in answer["hits"]} == titles


def test_an_upload_is_found_once_ready_and_gone_once_deleted(client: httpx.Client) -> None:
    audio = encode(noise_bursts(100))
    with added(client, audio) as stem_id:
        assert retrieve(client, audio, limit=1, align="grid")["hits"][0]["stem"]["id"] == stem_id
        assert client.delete(f"/stems/{stem_id}").status_code == 204
    hits = retrieve(client, audio, limit=50, align="grid")["hits"]
    assert stem_id not in {hit["stem"]["id"] for hit in hits}
    problem_of(client.get(f"/stems/{stem_id}"), 404, "stem-not-found")
    problem_of(client.get(f"/stems/{stem_id}/audio"), 404, "stem-not-found")


def test_the_same_bytes_twice_are_one_stem(client: httpx.Client) -> None:
    stem = client.get("/stems", params={"limit": 1}).json()["stems"][0]
    audio = client.get(stem["audio_url"]).content
    answer = client.post("/stems", files={"files": ("again.flac", audio)})
    item = answer.json()["items"][0]
    assert (item["stem_id"], item["created"], item["state"]) == (stem["id"], False, "ready")
    assert client.get("/stems", params={"sha256": stem["sha256"]}).json()["stems"] == [stem]


def test_one_bad_file_among_good_ones_fails_alone(client: httpx.Client) -> None:
    files = [
        ("files", ("good.flac", encode(noise_bursts(101)))),
        ("files", ("bad.wav", b"this is text")),
        ("files", ("also good.ogg", encode(noise_bursts(102), "OGG"))),
    ]
    metadata = json.dumps([{"title": "a"}, {"title": "b"}, {"title": "c", "tags": ["x", "y"]}])
    answer = client.post("/stems", files=files, data={"metadata": metadata})
    assert answer.status_code == 202
    location = answer.headers["location"]
    job = eventually(lambda: (j := client.get(location).json())["state"] == "done" and j)
    assert [item["state"] for item in job["items"]] == ["ready", "failed", "ready"]
    assert job["items"][1]["problem"]["type"] == "/problems/unknown-format"
    third = client.get(f"/stems/{job['items'][2]['stem_id']}").json()
    assert (third["title"], third["tags"], third["file_name"]) == ("c", ["x", "y"], "also good.ogg")
    for item in job["items"]:
        if item["stem_id"]:
            client.delete(f"/stems/{item['stem_id']}")


def test_metadata_can_be_changed_and_filters_see_it_at_once(client: httpx.Client) -> None:
    stem = client.get("/stems", params={"instrument": "bass", "limit": 1}).json()["stems"][0]
    changed = client.patch(f"/stems/{stem['id']}", json={"instrument": "tuba", "tags": ["brass"]}).json()
    assert (changed["instrument"], changed["tags"], changed["title"]) == ("tuba", ["brass"], stem["title"])
    hits = retrieve(client, encode(noise_bursts(0)), align="grid", instrument="tuba")["hits"]
    assert [hit["stem"]["id"] for hit in hits] == [stem["id"]]
    values = client.get("/catalog").json()
    assert "tuba" in values["instruments"]
    assert (values["tempo_min"], values["tempo_max"]) == (100, 105)
    client.patch(f"/stems/{stem['id']}", json={"instrument": "bass", "tags": ["warm"]})


def test_audio_comes_back_whole(client: httpx.Client) -> None:
    stem = client.get("/stems", params={"limit": 1}).json()["stems"][0]
    whole = client.get(stem["audio_url"])
    assert whole.headers["content-type"] == "audio/flac"
    assert soundfile.info(io.BytesIO(whole.content)).duration == stem["duration_s"]


def silence(seconds: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    return np.zeros(round(seconds * rate), np.float32)


def header_of_64_channels() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(64)
        writer.setsampwidth(2)
        writer.setframerate(48_000)
        writer.writeframes(bytes(64 * 2 * 48_000 * 2 // 100))
    return file.getvalue()


def not_a_number() -> bytes:
    samples = noise_bursts(9, 3.0)
    samples[20_000] = np.nan
    return encode(samples, "WAV", subtype="FLOAT")


HOSTILE = {
    "empty": (b"", 422, "empty-file"),
    "text": (b"I am not audio, whatever my name says.\n" * 100, 415, "unknown-format"),
    "one second": (encode(noise_bursts(9, 1.0)), 422, "clip-too-short"),
    "silence": (encode(silence(5.0)), 422, "silent-clip"),
    "an hour of silence": (encode(silence(3600.0, 8000), rate=8000), 422, "clip-too-long"),
    "64 channels": (header_of_64_channels(), 422, "too-many-channels"),
    "NaN": (not_a_number(), 422, "non-finite-samples"),
    "over the limit": (encode(noise_bursts(9, 70.0), "WAV", subtype="DOUBLE"), 413, "body-too-large"),
}


@pytest.mark.parametrize(("name", "path"), [*((name, "/stems") for name in HOSTILE), ("text", "/retrieve")])
def test_unusable_audio_gets_its_own_problem_and_the_next_good_upload_works(
    client: httpx.Client, name: str, path: str
) -> None:
    audio, status, kind = HOSTILE[name]
    field = "files" if path == "/stems" else "file"
    problem_of(client.post(path, files={field: ("upload.wav", audio)}), status, kind)
    assert retrieve(client, encode(noise_bursts(0)), align="grid", limit=1)["hits"]


def test_a_truncated_mp3_is_kept_with_a_warning(client: httpx.Client) -> None:
    whole = encode(noise_bursts(103), "MP3")
    with added(client, whole[: len(whole) // 2], "cut.mp3") as stem_id:
        stem = client.get(f"/stems/{stem_id}").json()
        assert stem["duration_s"] < 6
        assert any("ends early" in warning for warning in stem["warnings"])


def test_every_error_has_the_one_shape(client: httpx.Client) -> None:
    problem_of(client.get("/nowhere"), 404, "not-found")
    problem_of(client.put("/stems"), 405, "method-not-allowed")
    problem_of(client.post("/retrieve"), 422, "no-mix")
    problem_of(client.post("/retrieve", data={"stem_id": "nobody"}), 404, "stem-not-found")
    problem_of(client.post("/retrieve", data={"stem_id": "x", "limit": 0}), 422, "invalid-request")
    problem_of(client.get("/stems", params={"cursor": "'--"}), 422, "bad-cursor")
    problem_of(client.get("/jobs/none"), 404, "job-not-found")
    problem_of(client.post("/admin/reindex", json={"checkpoint": "../../etc/passwd"}), 422, "unknown-checkpoint")
    problem_of(client.post("/admin/reindex", json={"checkpoint": "\u1e70" * 200}), 422, "unknown-checkpoint")
    audio = ("files", ("a.flac", encode(noise_bursts(0))))
    problem_of(client.post("/stems", files=[audio], data={"metadata": "{"}), 422, "bad-metadata")
    problem_of(client.post("/stems", files=[audio], data={"metadata": '{"tempo_bpm": -1}'}), 422, "bad-metadata")
    problem_of(client.post("/stems", files=[audio], data={"metadata": "[{}, {}]"}), 422, "bad-metadata")


def test_every_problem_type_is_explained(client: httpx.Client) -> None:
    listed = client.get("/problems").json()
    for code, status in {"silent-clip": 422, "queue-full": 429, "not-found": 404, "method-not-allowed": 405}.items():
        (explained,) = client.get(f"/problems/{code}").json()
        assert explained["status"] == status
        assert explained in listed


def test_metrics_tell_the_time_of_every_stage(client: httpx.Client) -> None:
    retrieve(client, encode(noise_bursts(0)), limit=1)
    text = client.get("/metrics").text
    for stage in ("decode", "hear", "embed", "index", "rescore", "total"):
        assert f'phalar_retrieval_stage_seconds_count{{stage="{stage}"}}' in text
    assert "phalar_worker" in text
    assert 'phalar_queue_depth{kind="uploads"} 0.0' in text


def test_readiness_names_the_model_and_the_index(client: httpx.Client) -> None:
    assert client.get("/livez").json() == {"status": "alive"}
    report = client.get("/readyz").json()
    assert report["status"] == "ready"
    assert report["model"]["trained"]
    assert report["index"]["stems"] == report["stems"]["ready"]


def test_files_of_an_installation_are_its_users_alone(installation: Installation) -> None:
    data = installation.folder / "data"
    assert data.stat().st_mode & 0o777 == 0o700
    for path in data.rglob("*"):
        assert path.is_socket() or not path.stat().st_mode & 0o077, path


def test_the_interface_describes_itself_without_another_host(client: httpx.Client) -> None:
    page = client.get("/docs").text
    assert "swagger" in page.lower()
    assert "https://" not in page
    assert client.get("/openapi.json").json()["info"]["title"] == "Phalar Retrieval"


def test_text_with_a_nul_is_a_problem_of_the_request(client: httpx.Client) -> None:
    for answer in (client.get("/stems/%00"), client.get("/jobs/%00")):
        problem_of(answer, 422, "nul-in-text")
    for answer in (
        client.get("/stems", params={"instrument": "a\0b"}),
        client.get("/stems", params={"tag": "a\0b"}),
        client.post("/retrieve", data={"stem_id": "\0"}),
    ):
        assert "\\x00" in problem_of(answer, 422, "invalid-request")["detail"]
