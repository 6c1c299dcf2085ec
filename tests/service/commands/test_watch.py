"""`phalar ingest --watch`: the catalog follows folders in which files are added, changed, renamed and removed."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest

from service.commands import console, watch
from service.commands.client import Client, Outcome
from service.commands.tracks import stems_of
from service.commands.watch import Watched
from tests.command import phalar
from tests.installation import Installation, encode, eventually, noise_bursts
from tests.web import Asked, answered_by

SECONDS = 1.5
DROPPED = 20
AWAY = 6  # answers until a service that was away says something


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are whole, and gone, sooner than a person would have it."""
    monkeypatch.setattr(watch, "WHOLE_S", 0.4)
    monkeypatch.setattr(watch, "GONE_S", 1.0)
    monkeypatch.setattr(watch, "LOOK_MS", 100)


@pytest.fixture
def folder(tmp_path: Path, client: httpx.Client) -> Iterator[Path]:
    (tmp_path / "watched").mkdir()
    yield tmp_path / "watched"
    for stem in stems(client):
        client.delete(f"/stems/{stem['id']}")


@contextmanager
def watching(installation: Installation, folder: Path, *, mirror: bool = False) -> Iterator[list[Outcome]]:
    """What was sent or known already while the context lasts."""
    outcomes: list[Outcome] = []
    stop, failed = Event(), []

    def follow() -> None:
        try:
            with Client(installation.url) as client:
                said = partial(stems_of, {"collection": "watched"})
                watched = Watched(client, [folder], said, mirror=mirror, told=outcomes.append, noted=print)
                watched.follow(stop)
        except Exception as error:
            failed.append(error)

    thread = Thread(target=follow)
    thread.start()
    try:
        yield outcomes
    finally:
        stop.set()
        thread.join()
    assert not failed, failed


def put(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encode(noise_bursts(seed, SECONDS)))


def stems(client: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/stems", params={"collection": "watched", "limit": 500}).json()["stems"]
    return found


def named(client: httpx.Client) -> dict[str, str | None]:
    return {stem["title"]: stem["track"] for stem in stems(client) if stem["state"] == "ready"}


def test_a_renamed_file_is_the_same_stem_by_its_new_name_and_is_not_sent_again(
    installation: Installation, client: httpx.Client, folder: Path
) -> None:
    with watching(installation, folder, mirror=True) as outcomes:
        put(folder / "song" / "one.flac", 600)
        put(folder / "song" / "kept.flac", 601)
        eventually(lambda: named(client) == {"one": "song", "kept": "song"})
        before = {stem["id"] for stem in stems(client)}
        (kept,) = (stem for stem in stems(client) if stem["title"] == "kept")
        client.patch(f"/stems/{kept['id']}", json={"title": "my own name"})
        (folder / "song").rename(folder / "tune")
        (folder / "tune" / "one.flac").rename(folder / "tune" / "two.flac")
        eventually(lambda: named(client) == {"two": "tune", "my own name": "tune"})
        assert {stem["id"] for stem in stems(client)} == before
        assert [outcome.known for outcome in outcomes] == [False, False, True, True]


def test_a_changed_file_is_another_stem_and_a_removed_one_is_none_where_the_folder_is_mirrored(
    installation: Installation, client: httpx.Client, folder: Path
) -> None:
    put(folder / "a.flac", 602)
    put(folder / "b.flac", 603)
    with watching(installation, folder, mirror=True):
        eventually(lambda: named(client).keys() == {"a", "b"})
        first = {stem["title"]: stem["id"] for stem in stems(client)}
        put(folder / "a.flac", 604)
        eventually(lambda: {stem["title"]: stem["id"] for stem in stems(client)}["a"] != first["a"])
        eventually(lambda: len(stems(client)) == 2)
        (folder / "b.flac").unlink()
        eventually(lambda: named(client).keys() == {"a"})
        folder.rename(folder.with_name("elsewhere"))  # as a disk that is taken out
        time.sleep(2 * watch.GONE_S)
        assert named(client).keys() == {"a"}
        folder.with_name("elsewhere").rename(folder)


def test_a_removed_file_leaves_its_stem_where_nobody_asked_for_more(
    installation: Installation, client: httpx.Client, folder: Path
) -> None:
    with watching(installation, folder):
        put(folder / "a.flac", 605)
        eventually(lambda: named(client).keys() == {"a"})
        (folder / "a.flac").unlink()
        put(folder / "b.flac", 606)
        eventually(lambda: named(client).keys() == {"a", "b"})
        time.sleep(2 * watch.GONE_S)
    assert named(client).keys() == {"a", "b"}


def test_a_file_is_taken_when_it_is_whole(installation: Installation, client: httpx.Client, folder: Path) -> None:
    audio = encode(noise_bursts(607, SECONDS))
    with watching(installation, folder) as outcomes:
        with (folder / "slow.flac").open("wb") as file:
            for piece in range(0, len(audio), len(audio) // 10):
                file.write(audio[piece : piece + len(audio) // 10])
                file.flush()
                time.sleep(watch.WHOLE_S / 3)
        eventually(lambda: named(client).keys() == {"slow"})
    (outcome,) = outcomes
    assert outcome.problem is None
    assert stems(client)[0]["warnings"] == []


def test_many_files_dropped_at_once_are_followed(
    installation: Installation, client: httpx.Client, folder: Path
) -> None:
    with watching(installation, folder) as outcomes:
        (folder / "broken.wav").write_text("not audio")
        for n in range(DROPPED):
            put(folder / f"track {n % 4}" / f"{n}.flac", 610 + n)
        eventually(lambda: len(outcomes) == DROPPED + 1)
    assert named(client) == {str(n): f"track {n % 4}" for n in range(DROPPED)}
    assert [outcome.file.path.name for outcome in outcomes if outcome.problem] == ["broken.wav"]


def test_the_command_watches_until_it_is_interrupted(installation: Installation, folder: Path) -> None:
    asked = ["ingest", str(folder), "--watch", "--collection", "watched", "--url", installation.url]
    command = subprocess.Popen(
        [sys.executable, "-m", "service.commands", *asked],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A shell's background job is born ignoring it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert command.stderr is not None
    try:
        assert "watching" in command.stderr.readline()
        put(folder / "a.flac", 640)
        assert "a.flac: ready" in command.stderr.readline()
        command.send_signal(signal.SIGINT)
        _, told = command.communicate(timeout=30)
    finally:
        command.kill()
    assert command.returncode == 130
    assert "1 ready, 0 known already, 0 failed" in told
    assert phalar("ingest", folder, "--mirror").exit_code == 2


def test_a_watch_waits_for_a_service_that_is_away_for_longer_than_others_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PATIENCE_S", 0.0)
    (tmp_path / "a.flac").write_bytes(encode(noise_bursts(1, SECONDS)))
    asked: list[str] = []

    def answer(request: Asked) -> None:
        asked.append(request.path)
        if request.path == "/readyz":
            request.respond(200, b"{}")
        elif len(asked) < AWAY:
            request.respond(503, b"{}", Retry_After="0.01")
        else:
            request.respond(401, b"{}")  # which nobody waits for

    with answered_by(answer) as url:
        ended = phalar("ingest", tmp_path, "--watch", "--url", url)
    assert len(asked) == AWAY
    assert ended.exit_code != 0
