"""Fitted audio over HTTP: what is asked is what sounds, and it is cached, conditional and bounded."""

import io
import os
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from service.work.fitting import Fitting, fit
from tests.installation import add_stem, encode
from tests.service.api.conftest import full_disk
from tests.service.api.test_api import problem_of

RATE = 44_100
NOISE = (np.random.default_rng(0).standard_normal((3 * RATE, 2)) * 0.1).astype(np.float32)
AUDIO = encode(NOISE, "WAV", RATE, subtype="FLOAT")
ASKED = {"speed": 1.04, "transpose": -2, "start_s": 0.5, "duration_s": 0.8}


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    return {"fitted_bytes": 3_000_000, "max_clip_s": 30}


@pytest.fixture(scope="module")
def client(own: tuple[httpx.Client, Path]) -> httpx.Client:
    return own[0]


@pytest.fixture(scope="module")
def stem_id(client: httpx.Client) -> str:
    return add_stem(client, AUDIO, title="bass", key="B minor", tempo_bpm=119.23)


@pytest.fixture
def audio(stem_id: str) -> str:
    return f"/stems/{stem_id}/audio"


def samples_of(answer: httpx.Response) -> tuple[np.ndarray, int]:
    assert answer.status_code == 200, answer.text
    samples, rate = soundfile.read(io.BytesIO(answer.content), dtype="float32", always_2d=True)
    return samples.T, rate


def test_without_parameters_the_audio_is_as_uploaded(client: httpx.Client, audio: str) -> None:
    answer = client.get(audio)
    assert answer.content == AUDIO
    assert answer.headers["content-disposition"].startswith("inline; filename=")


def test_fitted_audio_is_the_full_quality_file_fitted(client: httpx.Client, audio: str) -> None:
    answer = client.get(audio, params=ASKED)
    samples, rate = samples_of(answer)
    assert rate == RATE
    assert np.array_equal(samples, fit(NOISE.T, RATE, Fitting(1.04, -2, 0.5, 0.8)))
    assert answer.headers["content-type"] == "audio/wav"
    assert answer.headers["content-disposition"] == 'attachment; filename="bass_Am_124bpm.wav"'


@pytest.mark.parametrize(("format", "kind", "near"), [
    ("flac", "audio/flac", 1e-6), ("mp3", "audio/mpeg", 0.05), ("ogg", "audio/ogg", 0.05),
])  # fmt: skip
def test_every_format_sounds_from_its_first_sample(
    client: httpx.Client, audio: str, format: str, kind: str, near: float
) -> None:
    answer = client.get(audio, params={**ASKED, "format": format, "rate": 48_000})
    assert answer.headers["content-type"] == kind
    samples, rate = samples_of(answer)
    assert rate == 48_000
    wanted = fit(NOISE.T, RATE, Fitting(1.04, -2, 0.5, 0.8, rate=48_000))
    assert abs(samples.shape[1] - wanted.shape[1]) <= (0 if format != "mp3" else 1152)
    # The lag at which the two agree best, of 5 ms either way: a codec's delay would show.
    lags = range(-240, 241)
    middle = wanted[0, 4800:-4800]
    agreed = [float(samples[0, 4800 + lag : 4800 + lag + len(middle)] @ middle) for lag in lags]
    assert abs(lags[int(np.argmax(agreed))]) <= 1
    if format == "flac":
        assert np.abs(samples - wanted).max() < near


@pytest.mark.parametrize(("headers", "status", "part"), [
    ({}, 200, slice(None)),
    ({"Range": "bytes=10-19"}, 206, slice(10, 20)),
    ({"Range": "bytes=99999999-"}, 416, None),
    ({"If-None-Match": 'W/TAG, "b"', "Range": "bytes=1-2"}, 304, slice(0, 0)),
    ({"If-Range": '"other"', "Range": "bytes=2-3"}, 200, slice(None)),
])  # fmt: skip
def test_fitted_audio_answers_conditions_ranges_and_head(
    client: httpx.Client, audio: str, headers: dict[str, str], status: int, part: slice | None
) -> None:
    whole = client.get(audio, params=ASKED)
    sent = {name: value.replace("TAG", whole.headers["etag"]) for name, value in headers.items()}
    answer = client.get(audio, params=ASKED, headers=sent)
    assert answer.status_code == status
    head = client.head(audio, params=ASKED, headers=sent)
    assert head.content == b""
    if part is None:
        problem_of(answer, 416, "range-not-satisfiable")
        return
    assert answer.content == whole.content[part]
    assert answer.headers["etag"] == head.headers["etag"] == whole.headers["etag"]
    if status == 206:
        first, last, _ = part.indices(len(whole.content))
        assert answer.headers["content-range"] == f"bytes {first}-{last - 1}/{len(whole.content)}"
    if not headers:
        assert head.headers["content-length"] == str(len(whole.content))


@pytest.mark.parametrize(("asked", "kind"), [
    ({"speed": 0}, "invalid-request"),
    ({"speed": "nan"}, "invalid-request"),
    ({"transpose": "inf"}, "invalid-request"),
    ({"start_s": 1e308}, "invalid-request"),
    ({"start_s": 3.0}, "start-beyond-end"),
    ({"duration_s": 0}, "invalid-request"),
    ({"duration_s": 86_400}, "fitted-too-long"),
    ({"duration_s": 86_400, "loop": True}, "fitted-too-long"),
    ({"start_s": -86_400}, "fitted-too-long"),
    ({"format": "aiff"}, "invalid-request"),
    ({"rate": 1}, "invalid-request"),
    ({"format": "mp3", "rate": 96_000}, "format-cannot-hold"),
])  # fmt: skip
def test_what_cannot_be_fitted_is_a_named_problem(
    client: httpx.Client, fitted: Path, audio: str, asked: dict[str, Any], kind: str
) -> None:
    before = sorted(os.listdir(fitted)) if fitted.exists() else []
    problem_of(client.get(audio, params=asked), 422, kind)
    assert (sorted(os.listdir(fitted)) if fitted.exists() else []) == before


def test_a_stem_that_is_not_there_is_no_audio(client: httpx.Client) -> None:
    problem_of(client.get("/stems/none/audio", params=ASKED), 404, "stem-not-found")


def test_a_loop_goes_on_for_as_long_as_asked(client: httpx.Client, audio: str) -> None:
    samples, _ = samples_of(client.get(audio, params={"duration_s": 7.5, "loop": True, "start_s": 1.0}))
    assert np.array_equal(samples, fit(NOISE.T, RATE, Fitting(start_s=1.0, duration_s=7.5, loop=True)))
    assert np.array_equal(samples[:, : 2 * RATE - 200], NOISE.T[:, RATE : 3 * RATE - 200])


def test_a_second_request_is_answered_from_the_disk(client: httpx.Client, fitted: Path, audio: str) -> None:
    asked = {**ASKED, "start_s": 0.75}
    first = client.get(audio, params=asked)
    (kept,) = [path for path in fitted.iterdir() if path.read_bytes() == first.content]
    marked = bytearray(first.content)
    marked[-4:] = b"mark"
    kept.write_bytes(marked)
    second = client.get(audio, params=asked)
    assert second.content == bytes(marked)
    assert second.headers["etag"] != first.headers["etag"]


def test_the_disk_holds_no_more_than_it_may_and_what_is_asked_for_stays(
    client: httpx.Client, fitted: Path, audio: str
) -> None:
    wanted = {"start_s": 0.1, "duration_s": 1.0}
    tag = client.head(audio, params=wanted).headers["etag"]
    for step in range(12):  # 350 kB each, of 3 MB
        client.get(audio, params={"start_s": 0.2, "duration_s": 1.0, "transpose": step - 6})
        assert client.head(audio, params=wanted).headers["etag"] == tag
    held = [path.stat().st_size for path in fitted.iterdir()]
    assert 2_000_000 < sum(held) <= 3_000_000
    assert not [path for path in fitted.iterdir() if path.name.startswith(".")]


def test_a_deleted_stem_leaves_no_fitted_audio(client: httpx.Client, fitted: Path) -> None:
    stem = add_stem(client, encode(NOISE[::-1], "WAV", RATE), title="gone/../../etc \u266f")
    answer = client.get(f"/stems/{stem}/audio", params=ASKED)
    name = answer.headers["content-disposition"]
    assert "/" not in name.replace("UTF-8''", "")
    assert name.endswith("%E2%99%AF.wav")
    sha256 = client.get(f"/stems/{stem}").json()["sha256"]
    assert [path for path in fitted.iterdir() if sha256 in path.name]
    assert client.delete(f"/stems/{stem}").status_code == 204
    problem_of(client.get(f"/stems/{stem}/audio", params=ASKED), 404, "stem-not-found")
    assert not [path for path in fitted.iterdir() if sha256 in path.name]


def test_a_full_disk_is_a_named_problem_and_leaves_no_half_file(client: httpx.Client, fitted: Path, audio: str) -> None:
    before = sorted(os.listdir(fitted))
    with full_disk(100_000):
        problem_of(client.get(audio, params={**ASKED, "start_s": 0.9}), 507, "no-room")
    assert sorted(os.listdir(fitted)) == before
    assert client.get(audio, params={**ASKED, "start_s": 0.9}).status_code == 200
