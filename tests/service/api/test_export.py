"""POST /export: what a DAW opens sounds like the mix with its stems, and nothing in it leads outside."""

import io
import json
import os
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import httpx
import numpy as np
import pytest
import rpp
import soundfile

from service.work.fitting import Fitting, fit
from tests.dawproject import METADATA, PROJECT, faults
from tests.installation import add_stem, encode
from tests.service.api.conftest import full_disk
from tests.service.api.test_api import problem_of

RATE = 44_100
RNG = np.random.default_rng(0)
MIX = (RNG.standard_normal((round(2.5 * RATE), 2)) * 0.1).astype(np.float32)
BASS = (RNG.standard_normal((4 * RATE, 2)) * 0.1).astype(np.float32)
LEAD = (RNG.standard_normal((2 * 48_000, 1)) * 0.1).astype(np.float32)
MIX_FILE = encode(MIX, "WAV", RATE, subtype="FLOAT")
UNHEARD = 1e-6  # of the energy: -60 dB


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    return {"max_clip_s": 5}


@pytest.fixture(scope="module")
def client(own: tuple[httpx.Client, Path]) -> httpx.Client:
    return own[0]


@pytest.fixture(scope="module")
def stems(client: httpx.Client) -> list[str]:
    return [
        add_stem(client, encode(BASS, "WAV", RATE, subtype="FLOAT"), title="bass", key="A minor", tempo_bpm=120),
        add_stem(client, encode(LEAD, "WAV", 48_000, subtype="FLOAT"), title="../../lead/\u266f", collection="demo"),
    ]


@pytest.fixture(scope="module")
def placed(stems: list[str]) -> list[dict[str, Any]]:
    return [
        {"stem_id": stems[0], "start_s": 0.7, "speed": 1.04, "transpose": -2, "gain_db": -3.5},
        {"stem_id": stems[1], "start_s": 0.25, "at_s": 0.8, "score": 1.25, "rank": 2},
    ]


def export(client: httpx.Client, placed: object, mix: bytes = MIX_FILE, **form: Any) -> httpx.Response:
    text = placed if isinstance(placed, str) else json.dumps(placed)
    return client.post("/export", files={"file": ("my mix.wav", mix)}, data={"placed": text, **form})


@pytest.fixture(scope="module")
def session(client: httpx.Client, placed: list[dict[str, Any]]) -> ZipFile:
    answer = export(client, placed, tempo_bpm=124.8)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == 'attachment; filename="my mix session.zip"'
    return ZipFile(io.BytesIO(answer.content))


def wav(zipped: ZipFile, name: str) -> tuple[np.ndarray, int]:
    samples, rate = soundfile.read(io.BytesIO(zipped.read(name)), dtype="float32", always_2d=True)
    return samples.T, rate


def test_every_file_begins_with_the_mix_and_ends_with_it(session: ZipFile) -> None:
    names = [name for name in session.namelist() if name.endswith(".wav")]
    assert names == ["audio/00 mix.wav", "audio/01 bass_Gm_124.8bpm.wav", "audio/02 lead-\u266f.wav"]
    read = [wav(session, name) for name in names]
    assert {(samples.shape[1], rate) for samples, rate in read} == {(len(MIX), RATE)}
    assert np.array_equal(read[0][0], MIX.T)
    assert not read[2][0][:, : round(0.8 * RATE)].any()
    assert read[2][0][:, round(0.8 * RATE) :].any()


def test_reaper_mixes_down_to_the_mix_and_its_stems(session: ZipFile) -> None:
    project = rpp.loads(session.read("my mix.rpp").decode())
    rate = int(next(child[1] for child in project.children if child[0] == "SAMPLERATE"))
    mixed = np.zeros((2, len(MIX)))
    for track in project.findall("TRACK"):
        item = track.find("ITEM")
        samples, file_rate = wav(session, item.find("SOURCE").find("FILE")[1])
        assert file_rate == rate
        volume = float(track.find("VOLPAN")[1]) * float(item.find("VOLPAN")[1])
        begin = round(float(item.find("POSITION")[1]) * rate)
        skip = round(float(item.find("SOFFS")[1]) * rate)
        length = round(float(item.find("LENGTH")[1]) * rate)
        mixed[:, begin : begin + length] += volume * samples[:, skip : skip + length]
    bass = fit(BASS.T, RATE, Fitting(1.04, -2, 0.7, 2.5)) * 10 ** (-3.5 / 20)
    lead = np.pad(fit(LEAD.T, 48_000, Fitting(1, 0, 0.25, 1.7, rate=RATE)), ((0, 0), (round(0.8 * RATE), 0)))
    wanted = MIX.T + bass + lead
    assert np.sum((mixed - wanted) ** 2) < UNHEARD * np.sum(wanted**2)


def test_the_dawproject_is_valid_and_holds_its_audio(session: ZipFile) -> None:
    inner = ZipFile(io.BytesIO(session.read("my mix.dawproject")))
    assert faults(inner.read("project.xml"), PROJECT, "Project") == []
    assert faults(inner.read("metadata.xml"), METADATA, "MetaData") == []
    for name in session.namelist():
        if name.endswith(".wav"):
            assert inner.read(name) == session.read(name)
            assert f'path="{name}"' in inner.read("project.xml").decode()
    assert b'value="124.8"' in inner.read("project.xml")


def test_the_text_names_source_and_licence(session: ZipFile) -> None:
    text = session.read("my mix.txt").decode()
    for said in ("tempo: 124.8 BPM", "key: G minor", "-2 semitones", "collection demo", "licence: not stated"):
        assert said in text


def test_no_name_leads_outside_the_archive(session: ZipFile) -> None:
    assert all(not name.startswith(("/", "\\")) and ".." not in name.split("/") for name in session.namelist())
    assert all(name.count("/") <= 1 and "\\" not in name for name in session.namelist())


def test_a_stem_may_enter_late_and_go_round(client: httpx.Client, stems: list[str]) -> None:
    answer = export(client, [{"stem_id": stems[1], "start_s": -0.5}, {"stem_id": stems[1], "loop": True}])
    zipped = ZipFile(io.BytesIO(answer.content))
    late, round_and_round = (wav(zipped, name)[0] for name in zipped.namelist()[1:3])
    assert np.abs(late[:, : RATE // 2 - 200]).max() < 1e-4  # a resampler rings for a moment before it
    assert np.abs(late[:, RATE // 2 :]).max() > 0.1
    assert np.abs(round_and_round[:, 2 * RATE + 100 :]).max() > 0.1


def test_a_loop_goes_round_from_where_it_is_placed(client: httpx.Client, stems: list[str]) -> None:
    looped = {"stem_id": stems[1], "loop": True, "at_s": 0.5}
    answer = export(client, [looped | {"start_s": second} for second in (0.5, -1.5, -5.5, 2.5)])
    assert answer.status_code == 200, answer.text
    zipped = ZipFile(io.BytesIO(answer.content))
    within, *others = (wav(zipped, name)[0] for name in zipped.namelist()[1:5])
    lead = fit(LEAD.T, 48_000, Fitting(1, 0, 0.5, 2.0, loop=True, rate=RATE))
    assert np.array_equal(within, np.pad(lead, ((0, 0), (RATE // 2, 0))))
    assert all(np.array_equal(other, within) for other in others)


@pytest.mark.parametrize(("asked", "status", "kind"), [
    ("{", 422, "bad-placed"),
    ("[]", 422, "bad-placed"),
    ("[" * 100_000, 422, "bad-placed"),
    ([{"stem_id": "ID"}] * 500, 422, "bad-placed"),
    ([{}], 422, "bad-placed"),
    ([{"stem_id": "ID", "speed": 0}], 422, "bad-placed"),
    ([{"stem_id": "ID", "transpose": 60}], 422, "bad-placed"),
    ('[{"stem_id": "ID", "gain_db": NaN}]', 422, "bad-placed"),
    ([{"stem_id": "ID", "at_s": 2.5}], 422, "bad-placed"),
    ([{"stem_id": "ID", "at_s": -1}], 422, "bad-placed"),
    ([{"stem_id": "ID", "start_s": 99}], 422, "start-beyond-end"),
    ([{"stem_id": "ID"}] * 32, 422, "fitted-too-long"),
    ([{"stem_id": "../etc"}], 404, "stem-not-found"),
])  # fmt: skip
def test_what_cannot_be_exported_is_a_named_problem(
    client: httpx.Client, fitted: Path, stems: list[str], asked: object, status: int, kind: str
) -> None:
    text = (asked if isinstance(asked, str) else json.dumps(asked)).replace("ID", stems[0])
    problem_of(export(client, text), status, kind)
    assert leftovers(fitted) == []


def test_a_mix_that_is_no_audio_is_a_named_problem(client: httpx.Client, placed: list[dict[str, Any]]) -> None:
    problem_of(export(client, placed, b"no audio at all, whatever it says"), 415, "unknown-format")


def test_a_stem_deleted_meanwhile_is_a_named_problem(client: httpx.Client, placed: list[dict[str, Any]]) -> None:
    gone = add_stem(client, encode(BASS[::-1], "WAV", RATE))
    assert client.delete(f"/stems/{gone}").status_code == 204
    problem_of(export(client, [*placed, {"stem_id": gone}]), 404, "stem-not-found")


def test_a_full_disk_leaves_nothing_behind(client: httpx.Client, fitted: Path, placed: list[dict[str, Any]]) -> None:
    with full_disk(1_000_000):  # the mix fits, the archive does not
        problem_of(export(client, placed), 507, "no-room")
    assert leftovers(fitted) == []
    assert export(client, placed).status_code == 200
    assert leftovers(fitted) == []


def leftovers(fitted: Path) -> list[str]:
    return os.listdir(fitted) if fitted.exists() else []
