"""`phalar ingest` of what people's disks hold, while what happens to services happens."""

import functools
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import httpx
import numpy as np

from model.audio import SAMPLE_RATE
from service.commands.client import Client, NewStem
from service.commands.folders import look_through
from service.local.valkey import EmbeddedValkey
from service.settings import Settings
from tests.installation import Installation, encode, eventually, serving
from tests.web import Asked, answered_by

GOOD = 36
MOST = 2  # faults of a kind
COMMAND = [sys.executable, "-m", "service.commands", "ingest"]


def tiny(seed: int) -> bytes:
    """A stem of its own, as short as one may be."""
    return encode(np.random.default_rng(seed).uniform(-0.5, 0.5, SAMPLE_RATE * 11 // 10).astype(np.float32))


def odd_names() -> list[bytes]:
    return [
        unicodedata.normalize("NFD", "Café.wav").encode(),
        "bass\u3000one\u00a0two.flac".encode(),
        "\U0001f468\u200d\U0001f469\u200d\U0001f467.wav".encode(),
        b"x" * 226 + b".wav",
        b"latin \xe9.wav",
        b"line\nbreak.wav",
        b"screen\x1b[2J\x1b]52;c;YQ==\x07.wav",
        b" spaces .wav",
        b".ogg",
        b'quote".WAV',
        b"-rf.wav",
        b"back\\slash.wav",
        b"[red]markup[/].wav",
    ]


def make_messy(folder: Path, good: int, first_seed: int) -> tuple[set[str], list[str]]:
    """Good stems, of which it tells the SHA-256, under every kind of name; and a word of each line that the rest must
    cost."""
    root = os.fsencode(folder)
    places = [b".", b"track", b"y" * 230, b"folder \xff\x1b[31m", unicodedata.normalize("NFD", "Stück").encode()]
    places += [b"deep/" * 60 + b"end", b"loops.wav"]
    found = set()
    for number in range(good):
        name = odd_names()[number] if number < len(odd_names()) else b"%d.flac" % number
        at = os.path.join(root, places[number % len(places)], name)
        os.makedirs(os.path.dirname(at), exist_ok=True)
        audio = tiny(first_seed + number)
        with open(at, "wb") as file:
            file.write(audio)
        found.add(hashlib.sha256(audio).hexdigest())
    (folder / "empty.wav").touch()
    (folder / "text.mp3").write_text("not audio")
    (folder / "cut.flac").write_bytes(tiny(0)[:2000])
    (folder / "short.wav").write_bytes(encode(np.ones(100, np.float32), "WAV"))
    os.mkfifo(folder / "pipe.wav")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(folder / "socket.wav"))
    with (folder / "long.wav").open("wb") as file:
        file.truncate(10 * 2**30)
    (folder / "gone.wav").symlink_to(folder / "nowhere.wav")
    (folder / "circle.wav").symlink_to(folder / "circle.wav")
    (folder / "above").symlink_to(folder)
    (folder / "notes.txt").write_text("notes")
    (folder / "cover.jpg").write_bytes(b"x")
    (folder / "README").write_text("read me")
    (folder / "._bass.wav").write_bytes(b"macOS")
    return found, [
        "empty.wav", "text.mp3", "cut.flac", "short.wav", "pipe.wav", "socket.wav", "gone.wav", "circle.wav", "above",
        "loops.wav", "long.wav",
    ]  # fmt: skip


def sent_once(running: Installation, wanted: set[str]) -> bool:
    """Every wanted stem is ready, and no bytes are there twice."""
    with Client(running.url) as client:
        held = list(client.stems({}, 10_000))
    known = [stem["sha256"] for stem in held]
    assert len(set(known)) == len(known)
    return {stem["sha256"] for stem in held if stem["state"] == "ready"} >= wanted


def ingest(url: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, str(folder), "--url", url, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_messy_folder_costs_a_line_for_each_bad_thing_and_no_good_stem(running: Installation, tmp_path: Path) -> None:
    wanted, bad = make_messy(tmp_path, GOOD, 1000)
    said = ingest(running.url, tmp_path)
    assert said.returncode == 1, said.stderr
    lines = [line for line in said.stderr.splitlines() if line.startswith(str(tmp_path))]
    assert sorted(line.split(": ")[0].rsplit("/", 1)[1] for line in lines) == sorted(bad), said.stderr
    assert f"{GOOD} ready, 0 known already, {len(bad)} failed" in said.stderr
    passed_over = said.stderr.partition("passed over, by their names' endings: ")[2].strip()
    assert sorted(passed_over.split("; ")) == ["1 .jpg", "1 .txt", "1 no ending"]
    assert "\x1b" not in said.stderr
    assert sent_once(running, wanted)


def test_a_file_that_vanishes_before_its_turn_costs_no_other(running: Installation, tmp_path: Path) -> None:
    for name, seed in (("stays.flac", 5000), ("goes.flac", 5001)):
        (tmp_path / name).write_bytes(tiny(seed))
    found = [NewStem(one.path, {}) for one in look_through([tmp_path], Counter())]
    (tmp_path / "goes.flac").unlink()
    with Client(running.url) as client:
        gone, stayed = client.ingest(found)
    assert (gone.file.path.name, gone.problem) == ("goes.flac", {"title": "No such file or directory"})
    assert (stayed.file.path.name, stayed.problem) == ("stays.flac", None)


def test_ctrl_c_says_what_was_done_and_the_same_command_goes_on(running: Installation, tmp_path: Path) -> None:
    wanted, _ = make_messy(tmp_path, GOOD, 2000)
    with Client(running.url) as client:
        before = len(list(client.stems({}, 500)))
        some = random.randrange(1, GOOD - 8)
        # Who started the tests in the background has them ignore Ctrl-C.
        heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        command = [*COMMAND, tmp_path, "--url", running.url]
        started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)
        eventually(lambda: len(list(client.stems({}, 500))) >= before + some, every=0.02)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 130, said
    assert "Start the same command again" in said
    assert "Traceback" not in said
    again = ingest(running.url, tmp_path)
    assert again.returncode == 1
    assert sent_once(running, wanted), again.stderr


def test_an_ingest_outlasts_dropped_connections_and_a_service_that_is_busy(
    running: Installation, tmp_path: Path
) -> None:
    sent = {tmp_path / f"{number}.flac": tiny(3000 + number) for number in range(12)}
    for path, audio in sent.items():
        path.write_bytes(audio)
    with faulty_proxy(running.url) as (url, faults):
        said = ingest(url, tmp_path)
    assert said.returncode == 0, said.stderr
    assert "12 ready, 0 known already, 0 failed" in said.stderr
    assert set(faults) == {("GET", "dropped"), ("GET", "busy"), ("POST", "dropped")}
    assert sent_once(running, {hashlib.sha256(audio).hexdigest() for audio in sent.values()})


@contextmanager
def faulty_proxy(url: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A way to the service on which it is now and then busy, or the answer is lost after the service has acted."""
    faults: list[tuple[str, str]] = []
    requests = count(1)

    def passed_on(asked: Asked) -> None:
        number = next(requests)
        if number % 5 == 2 and asked.command == "GET" and faults.count(("GET", "busy")) < MOST:
            faults.append((asked.command, "busy"))
            asked.respond(503, b"<html>", Retry_After="Thu, 01 Jan 1970 00:00:00 GMT", Content_Type="text/html")
            return
        body = asked.rfile.read(int(asked.headers.get("content-length", 0)))
        headers = {name: asked.headers[name] for name in ("content-type",) if name in asked.headers}
        answer = httpx.request(asked.command, url + asked.path, content=body, headers=headers, timeout=60)
        if number % 5 in (3, 4) and faults.count((asked.command, "dropped")) < MOST:
            faults.append((asked.command, "dropped"))
            asked.close_connection = True
            return
        asked.respond(answer.status_code, answer.content, Content_Type=answer.headers["content-type"])

    with answered_by(passed_on) as proxied:
        yield proxied, faults


def test_an_ingest_keeps_to_the_rates_that_it_is_told(tmp_path: Path, small_checkpoint: Path) -> None:
    folder = tmp_path / "stems"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.flac").write_bytes(tiny(4000 + number))
    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        limits = {"read_rate": 8, "read_burst": 1, "ingest_rate": 2, "ingest_burst": 1}
        chosen = Settings(data=tmp_path / "data", redis_url=valkey.url, checkpoint=small_checkpoint, **limits)
        with serving(chosen) as url:
            said = ingest(url, folder, "--no-wait")
    assert said.returncode == 0, said.stderr
    assert "8 accepted" in said.stderr
