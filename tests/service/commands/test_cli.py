"""The `phalar` command, as a person or a script runs it."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from numpy.typing import NDArray

from model.audio import SAMPLE_RATE
from service.commands.console import out
from tests.command import phalar, phalar_alone
from tests.installation import Installation, add_stem, encode, free_port, noise_bursts, wait_ready
from tests.web import answered_by


@pytest.fixture
def mix(tmp_path: Path) -> Path:
    """What the stem "4" of the shared installation sounds like."""
    (tmp_path / "mix.flac").write_bytes(encode(noise_bursts(4)))
    return tmp_path / "mix.flac"


@pytest.fixture
def own_stems(tmp_path: Path) -> Path:
    """Two tracks of one stem each, and a file that is none."""
    for number in (200, 201):
        folder = tmp_path / "stems" / f"track {number}"
        folder.mkdir(parents=True)
        (folder / f"{number}.flac").write_bytes(encode(noise_bursts(number)))
    (tmp_path / "stems" / "broken.wav").write_text("not audio")
    return tmp_path / "stems"


def test_help_names_every_command() -> None:
    said = phalar_alone("--help")
    assert said.returncode == 0
    names = "serve, worker, ingest, retrieve, export, embed, reindex, rollback, demo, checkpoint, keys"
    for command in names.split(", "):
        assert command in said.stdout


def test_ingest_skips_what_is_there_and_names_each_failed_file(installation: Installation, own_stems: Path) -> None:
    first = phalar("ingest", own_stems, "--url", installation.url, "--collection", "cli")
    assert first.exit_code == 1
    assert "broken.wav: Not audio that we can read" in first.stderr
    assert "2 ready, 0 known already, 1 failed" in first.stderr
    second = phalar("ingest", own_stems, "--url", installation.url, "--collection", "cli")
    assert "0 ready, 2 known already, 1 failed" in second.stderr
    with installation.client() as client:
        stems = client.get("/stems", params={"collection": "cli"}).json()["stems"]
        assert {stem["track"] for stem in stems} == {"track 200", "track 201"}
        for stem in stems:
            client.delete(f"/stems/{stem['id']}")


def test_retrieve_prints_a_table_or_the_answer_itself(installation: Installation, mix: Path) -> None:
    told = phalar("retrieve", mix, "--url", installation.url, "--limit", "2", "--json", "--collection", "shared")
    assert told.exit_code == 0, told.stderr
    hits = json.loads(told.stdout)["hits"]
    assert hits[0]["stem"]["title"] == "4"
    assert len(hits) == 2
    shown = phalar("retrieve", mix, "--url", installation.url, "--limit", "1", "--align", "grid")
    assert "track 2" in shown.stdout
    assert "from 0:00.00" in shown.stdout
    assert "as recorded" in shown.stdout


def test_retrieve_reads_a_mix_from_a_pipe(installation: Installation, mix: Path, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "mix.wav")
    with ThreadPoolExecutor(1) as writer:
        written = writer.submit(pipe.write_bytes, mix.read_bytes())
        told = phalar("retrieve", pipe, "--url", installation.url, "--json", "--collection", "shared")
        written.result(timeout=10)
    whole = phalar("retrieve", mix, "--url", installation.url, "--json", "--collection", "shared")
    assert json.loads(told.stdout)["hits"] == json.loads(whole.stdout)["hits"]


def test_retrieve_builds_on_the_mix_of_an_answer(installation: Installation, mix: Path) -> None:
    common = ("--url", installation.url, "--align", "grid")
    first = json.loads(phalar("retrieve", mix, *common, "--collection", "shared", "--json").stdout)
    bass = next(hit["stem"] for hit in first["hits"] if hit["stem"]["instrument"] == "bass")
    again = ("retrieve", "--mix-id", first["mix_id"], *common)
    told = phalar(*again, "--place", f"{bass['id']}:1.5:1.04:-2:-6", "--place", bass["id"], "--json")
    assert told.exit_code == 0, told.stderr
    assert bass["id"] not in {hit["stem"]["id"] for hit in json.loads(told.stdout)["hits"]}
    shown = phalar(*again, "--complete", "bass,theremin", "--limit", "1")
    assert "bass: or " in shown.stdout
    assert "theremin: No stem" in shown.stdout
    assert f"--mix-id {first['mix_id']}" in shown.stdout
    assert phalar("retrieve", "--mix-id", "0" * 32, *common).exit_code == 4


def eighths(tempo_bpm: float, beats: int = 20) -> NDArray[np.float32]:
    """A tune in eighths, the same notes at any tempo."""
    rng = np.random.default_rng(7)
    note = round(30 / tempo_bpm * SAMPLE_RATE)
    share = np.arange(note) / note
    tune = [np.exp(-5 * share) * np.sin(2 * np.pi * hertz / SAMPLE_RATE * np.arange(note))
            for hertz in 220 * 2 ** (rng.integers(0, 24, 2 * beats) / 12)]  # fmt: skip
    return (0.5 * np.concatenate(tune)).astype(np.float32)


def test_retrieve_says_the_mix_and_how_a_hit_is_played(installation: Installation, tmp_path: Path) -> None:
    mix = tmp_path / "mix.flac"
    mix.write_bytes(encode(eighths(124.8)))
    with installation.client() as client:
        stem = add_stem(client, encode(eighths(120)), collection="played", tempo_bpm=120)
        wait_ready(client, stem)
    try:
        asked = ("retrieve", mix, "--url", installation.url, "--collection", "played", "--tempo", "124.8")
        shown = phalar(*asked, "--mix-key", "F# minor")
        assert shown.exit_code == 0, shown.stderr
        assert shown.stdout.startswith("mix: 124.8 BPM (said), F# minor (said)\n")
        assert "…" not in shown.stdout, "in a pipe no word is cut"
        assert "+4.0 %" in shown.stdout
        close = phalar(*asked, "--max-stretch", "0.01", "--max-transpose", "0", COLUMNS="300")
        assert "as recorded" in close.stdout
        assert "+4.0 %" not in close.stdout
    finally:
        with installation.client() as client:
            client.delete(f"/stems/{stem}")


def test_retrieve_filters_as_the_service_does(installation: Installation, mix: Path) -> None:

    def titles(*filters: str) -> set[str]:
        told = phalar("retrieve", mix, "--url", installation.url, "--align", "grid", "--json", *filters)
        assert told.exit_code == 0, told.stderr
        return {hit["stem"]["title"] for hit in json.loads(told.stdout)["hits"]}

    twice = ("--tempo-min", "203.9", "--tempo-max", "204.1", "--collection", "shared")  # of 102
    assert titles(*twice) == set()
    assert titles(*twice, "--tempo-octaves") == {"2"}
    assert titles("--musical-key", "8A", "--key-match", "compatible", "--kind", "one-shot") == set()


def test_embed_writes_what_the_service_would_index_or_nothing(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = noise_bursts(7)
    clip[5 * SAMPLE_RATE :] = 0
    file, broken, target = tmp_path / "a.flac", tmp_path / "b.wav", tmp_path / "x.npz"
    file.write_bytes(encode(clip))
    broken.write_text("no")
    said = phalar("embed", file, broken, "--out", target, "--checkpoint", small_checkpoint)
    assert said.exit_code == 1
    assert "b.wav: This is not audio" in said.stderr
    with np.load(target) as arrays:
        assert set(arrays) == {"embedding", "start_s", "file", "fingerprint"}
        assert arrays["start_s"].tolist() == [0.0, 2.5, 4.0]
        assert set(arrays["file"].tolist()) == {str(file)}
        assert arrays["embedding"].dtype == np.complex64
        np.testing.assert_allclose(np.linalg.norm(arrays["embedding"], axis=1), 1, atol=1e-5)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = target.read_bytes()
    monkeypatch.setattr("numpy.lib.format.write_array", full)
    said = phalar("embed", file, "--out", target, "--checkpoint", small_checkpoint)
    assert said.exit_code == 1
    assert said.stderr.endswith("\nphalar: No space left on device\n")
    assert {path.name for path in tmp_path.iterdir()} == {file.name, broken.name, target.name}
    assert target.read_bytes() == before


def test_analyse_shows_names_as_they_are_and_sends_a_terminal_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out, "width", 200)  # so that no cell is folded
    odd, broken = tmp_path / "[red]one \x1b[2J 125bpm.wav", tmp_path / "\x1b[2J.wav"
    odd.write_bytes(encode(noise_bursts(7), "WAV"))
    broken.write_text("not audio")
    shown = phalar("analyse", odd, broken)
    assert shown.exit_code == 1
    assert "[red]one \\x1b[2J 125bpm.wav" in shown.stdout
    assert "/\\x1b[2J.wav: " in shown.stderr
    assert "\x1b[2J" not in shown.output


def test_checkpoints_are_shown_converted_and_averaged(small_checkpoint: Path, tmp_path: Path) -> None:
    shown = json.loads(phalar("checkpoint", "show", small_checkpoint).stdout)
    target = tmp_path / "again.safetensors"
    assert phalar("checkpoint", "convert", small_checkpoint, target).exit_code == 0
    again = json.loads(phalar("checkpoint", "show", target).stdout)
    assert again["fingerprint"] == shown["fingerprint"]
    mean = tmp_path / "mean.safetensors"
    assert phalar("checkpoint", "average", small_checkpoint, target, "--out", mean).exit_code == 0
    assert json.loads(phalar("checkpoint", "show", mean).stdout)["fingerprint"] == shown["fingerprint"]
    assert "needs two" in phalar("checkpoint", "average", target, "--out", mean).stderr
    (tmp_path / "text.ckpt").write_text("hello")
    refused = phalar("checkpoint", "show", tmp_path / "text.ckpt")
    assert refused.exit_code == 1
    assert "Traceback" not in refused.stderr


def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    data = {"PHALAR_DATA": str(tmp_path)}
    made = phalar("keys", "create", "--scope", "ingest", "--name", "daw", "--expires", "90d", **data)
    assert made.exit_code == 0, made.stderr
    token = made.stdout.strip()
    assert token.startswith("phalar_")
    assert "PHALAR_REQUIRE_KEYS" in made.stderr
    listed = phalar("keys", "list", COLUMNS="200", **data)
    key_id = token.split("_")[1]
    assert key_id in listed.stdout
    assert "until" in listed.stdout
    assert token not in listed.stdout
    assert phalar("keys", "revoke", key_id, **data).exit_code == 0
    assert "revoked" in phalar("keys", "list", COLUMNS="200", **data).stdout
    assert phalar("keys", "revoke", "nobody", **data).exit_code == 1
    assert phalar("keys", "create", "--scope", "read", "--name", "x", "--expires", "soon", **data).exit_code == 2


def test_exit_codes_tell_scripts_what_happened(installation: Installation, tmp_path: Path) -> None:
    mix = tmp_path / "mix.wav"
    mix.write_text("not audio")
    nobody = phalar("retrieve", mix, "--url", f"http://127.0.0.1:{free_port()}")
    assert nobody.exit_code == 3
    assert "phalar serve" in nobody.stderr
    assert phalar("retrieve", mix, "--url", installation.url).exit_code == 4
    assert phalar("retrieve").exit_code == 2
    assert phalar("retrieve", tmp_path / "missing.wav").exit_code == 2


def test_a_mix_that_is_longer_than_memory_is_refused_by_the_service(installation: Installation, tmp_path: Path) -> None:
    with (tmp_path / "long.wav").open("wb") as long:
        long.truncate(3 * 2**30)
    command = [sys.executable, "-m", "service.commands", "retrieve", long.name, "--url", installation.url]
    most = partial(resource.setrlimit, resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))
    said = subprocess.run(command, capture_output=True, text=True, preexec_fn=most, timeout=120, check=False)
    assert (said.returncode, said.stderr.count("\n")) == (4, 1), said.stderr


@pytest.mark.parametrize("arguments", [
    ("retrieve",),
    ("retrieve", "missing.wav"),
    ("retrieve", "."),
    *(("retrieve", "--stem-id", "x", *wrong) for wrong in [
        ("--limit", "0"), ("--limit", "many"), ("--align", "loosely"), ("--no-such-option",),
        ("--url", "http://[::1"), ("--url", "localhost:8000"), ("--url", "http://a:99999999"),
        ("--key", "schl\u00fcssel"), ("--key", "two words"), ("--tag", ""), ("--track", "a\x1b[2J"),
        ("--tempo-min", "-1"), ("--kind", "song"), ("--key-match", "near"), ("--tempo", "5"),
        ("--max-stretch", "4"), ("--max-transpose", "7"), ("--mix-id", "y"),
        ("--place", "y:soon"), ("--place", "y:1:1:0.5"), ("--place", "y:1:1:1:1:1"),
    ]),
    ("ingest",),
    ("ingest", "missing.wav"),
    ("ingest", __file__, "missing.wav", "--watch"),
    ("ingest", ".", "--collection", "x" * 300),
    ("ingest", ".", "--track", "a\udcff"),
    ("serve", "--port", "99999"),
    ("serve", "--workers", "-1"),
    ("keys", "create", "--scope", "all", "--name", "x"),
    ("keys", "create", "--scope", "read", "--name", "a\nb"),
    ("embed", __file__, "--out", "/no such folder/x.npz"),
    ("embed", __file__, "--out", "x.npz", "--window", "0.5"),
    ("embed", __file__, "--out", "x.npz", "--stride", "0"),
    ("checkpoint", "convert", __file__, "/no such folder/x"),
    ("checkpoint", "average", __file__, "--out", "/no such folder/x"),
    ("evaluate", "catalog", "--stems", ".", "--learn-sureness", "/no such folder/x"),
    ("no-such-command",),
], ids=" ".join)  # fmt: skip
def test_every_wrong_argument_is_one_line_and_code_2(installation: Installation, arguments: tuple[str, ...]) -> None:
    said = phalar(*arguments, PHALAR_URL=installation.url)
    assert (said.exit_code, said.stdout) == (2, "")
    line = said.stderr.removesuffix("\n")
    assert line.startswith("phalar: ")
    assert line.isprintable(), line


def test_a_wrong_setting_is_one_line_and_code_2(tmp_path: Path) -> None:
    evaluate = (("evaluate", what, "--stems", tmp_path) for what in ("catalog", "band"))
    for command in (("keys", "list"), ("doctor",), ("api",), ("worker",), ("serve",), *evaluate):
        said = phalar(*command, PHALAR_PORT="many")
        assert said.exit_code == 2, said.stderr
        assert said.stderr.startswith("phalar: port: ")
        assert said.stderr.count("\n") == 1


def test_what_others_wrote_never_reaches_a_terminal_as_commands() -> None:
    """A service of an earlier release, or one that was taken over, may send anything."""
    evil = "bass\x1b]52;c;YQ==\x07\x1b[2J\x9b31m[red]"
    place = {"rank": 1, "score": 1.0, "start_s": 0.0, "speed": 1.0, "transpose": 0, "windows": [], "copies": []}
    stem = {"title": evil, "instrument": evil, "track": evil, "id": "x"}
    mix = {"tempo_bpm": None, "key": evil, "sources": {"key": evil}, "sure": {}}
    answer = {"hits": [place | {"stem": stem}], "mix": mix | {"warnings": [evil]}, "model": {"note": evil}}
    with answering(200, answer) as url:
        shown = phalar("retrieve", "--stem-id", "x", "--url", url, COLUMNS="300")
    assert "bass\\x1b]52" in shown.stdout
    with answering(400, {"title": evil, "detail": evil}) as url:
        refused = phalar("retrieve", "--stem-id", "x", "--url", url)
    assert refused.exit_code == 4
    for text in (shown.stdout, shown.stderr, refused.stderr):
        assert all(line.isprintable() for line in text.splitlines()), text


@pytest.mark.parametrize(
    ("kind", "start_s", "shown"),
    [("piece", -9.0, "enters at 0:07.20"), ("piece", 59.998, "from 1:00.00"), ("loop", -9.0, "from 0:03.00")],
)
def test_where_a_hit_begins_is_told_of_loops_as_they_sound(kind: str, start_s: float, shown: str) -> None:
    hit = {"rank": 1, "score": 1.0, "start_s": start_s, "speed": 1.25, "transpose": 0, "windows": [], "copies": []}
    stem = {"title": "a", "instrument": None, "track": None, "id": "x", "kind": kind, "duration_s": 4.0}
    mix = {"tempo_bpm": None, "key": None, "sources": {}, "sure": {}, "warnings": []}
    with answering(200, {"hits": [hit | {"stem": stem}], "mix": mix, "model": {"note": None}}) as url:
        assert shown in phalar("retrieve", "--stem-id", "x", "--url", url, COLUMNS="300").stdout


@contextmanager
def answering(status: int, body: object) -> Iterator[str]:
    """A server that answers every request with this."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    with answered_by(lambda asked: asked.respond(status, text)) as url:
        yield url


def test_an_answer_of_something_else_is_a_refusal() -> None:
    with answering(200, b"<html>") as url:
        said = phalar("rollback", "--url", url)
    assert said.exit_code == 4
    assert said.stderr.count("\n") == 1


def test_no_proxy_is_asked_for_this_machine_and_one_that_cannot_be_used_is_named() -> None:
    nowhere = {"HTTP_PROXY": f"http://127.0.0.1:{free_port()}", "ALL_PROXY": "nonsense://a", "NO_PROXY": ""}
    with answering(200, {"stems": [], "next_cursor": None}) as url:
        assert phalar("stems", "--url", url, **nowhere).exit_code == 0
    said = phalar("stems", "--url", "http://192.0.2.1", **nowhere)
    assert (said.exit_code, said.stderr.count("\n")) == (2, 1)
    assert "proxy" in said.stderr


def test_a_table_cut_by_a_pipe_ends_quietly(installation: Installation, mix: Path) -> None:
    for options in ((), ("--json",)):
        command = [sys.executable, "-m", "service.commands", "retrieve", mix, "--url", installation.url, *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
            assert started.stdout is not None
            assert started.stderr is not None
            started.stdout.close()
            assert started.stderr.read() == b""
        assert started.returncode == 1


def test_an_answer_that_a_full_disk_does_not_take_is_one_line() -> None:
    command = [sys.executable, "-m", "service.commands", "--version"]
    with open("/dev/full", "w") as full:
        said = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (said.returncode, said.stderr) == (1, "phalar: No space left on device\n")


def test_export_writes_the_hits_that_were_chosen(installation: Installation, mix: Path, tmp_path: Path) -> None:
    answer = phalar("retrieve", mix, "--json", "--align", "grid", "--limit", "3", "--url", installation.url)
    hits, out = tmp_path / "hits.json", tmp_path / "session.zip"
    hits.write_text(answer.stdout, encoding="utf-16")  # as PowerShell redirects it
    said = phalar("export", mix, "--hits", hits, "--rank", "1", "--out", out, "--url", installation.url)
    assert said.exit_code == 0, said.stderr
    assert "the mix and 1 stem" in said.stderr
    with ZipFile(out) as session:
        names = [name for name in session.namelist() if name.endswith(".wav")]
        assert [name.split()[0] for name in names] == ["audio/00", "audio/01"]
        assert {"mix.rpp", "mix.dawproject", "mix.txt"} <= {*session.namelist()}
    wrong = phalar("export", mix, "--hits", mix, "--url", installation.url)
    assert wrong.exit_code != 0
    assert phalar("export", mix, "--hits", hits, "--rank", "99", "--url", installation.url).exit_code == 2
    hits.write_text('[{"stem_id": "none"}]')
    refused = phalar("export", mix, "--hits", hits, "--out", tmp_path / "no.zip", "--url", installation.url)
    assert (refused.exit_code, (tmp_path / "no.zip").exists()) == (4, False)
