"""kill -9 at bad moments: whatever was acknowledged becomes ready, or failed with a reason, exactly once."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import servers
from tests.installation import Installation, add_stem, encode, eventually, noise_bursts

STEMS = 12


@pytest.fixture
def running(tmp_path: Path, small_checkpoint: Path) -> Iterator[Installation]:
    started = Installation(tmp_path, {"PHALAR_CHECKPOINT": str(small_checkpoint)}).start()
    yield started
    started.stop()


def upload_some(client: httpx.Client, seeds: range) -> list[str]:
    return [add_stem(client, encode(noise_bursts(seed)), f"{seed}.flac") for seed in seeds]


def the_books_balance(client: httpx.Client, acknowledged: list[str]) -> None:
    """Every acknowledged stem is ready, the index holds each of them once, and nothing else."""

    def settled() -> bool:
        try:
            report = client.get("/readyz")
        except httpx.TransportError:
            return False
        return report.status_code == 200 and report.json()["stems"]["queued"] == 0

    eventually(settled, 90)
    stems = client.get("/stems", params={"limit": 500}).json()["stems"]
    assert sorted(stem["id"] for stem in stems) == sorted(acknowledged)
    assert {stem["state"] for stem in stems} == {"ready"}, [stem["problem"] for stem in stems]
    answer = client.post(
        "/retrieve", files={"file": ("m.flac", encode(noise_bursts(5)))}, data={"limit": 100, "align": "grid"}
    ).json()
    assert sorted(hit["stem"]["id"] for hit in answer["hits"]) == sorted(acknowledged)
    assert answer["hits"][0]["stem"]["title"] == "5"
    assert answer["index"]["windows"] == sum(stem["windows"] for stem in stems)


@pytest.mark.parametrize("victim", ["worker", "api", *([] if servers.wanted() else ["valkey"])])
def test_no_acknowledged_upload_is_lost_when_a_process_is_killed(running: Installation, victim: str) -> None:
    with running.client() as client:
        acknowledged = upload_some(client, range(STEMS // 2))
        running.kill(victim)
        eventually(running.ready, 60)
        acknowledged += upload_some(client, range(STEMS // 2, STEMS))
        the_books_balance(client, acknowledged)


def test_no_acknowledged_upload_is_lost_when_every_connection_is_cut(tmp_path: Path, small_checkpoint: Path) -> None:
    running = Installation(tmp_path, {"PHALAR_CHECKPOINT": str(small_checkpoint)}, stores=servers.new_stores()).start()
    try:
        with running.client() as client:
            acknowledged: list[str] = []
            for seed in range(STEMS):
                acknowledged += upload_some(client, range(seed, seed + 1))
                running.cut_connections()
            the_books_balance(client, acknowledged)
    finally:
        running.stop()


def test_no_acknowledged_upload_is_lost_when_everything_is_killed(running: Installation) -> None:
    with running.client() as client:
        acknowledged = upload_some(client, range(STEMS))
    running.kill_all()
    running.start()
    with running.client() as client:
        the_books_balance(client, acknowledged)


def test_a_queue_that_forgot_everything_is_filled_again_from_the_catalog(running: Installation) -> None:
    with running.client() as client:
        acknowledged = upload_some(client, range(STEMS))
        running.forget_queue()
        the_books_balance(client, acknowledged)


def test_a_second_start_finds_the_same_catalog(running: Installation) -> None:
    with running.client() as client:
        acknowledged = upload_some(client, range(STEMS))
        the_books_balance(client, acknowledged)
        gone = acknowledged.pop()
        assert client.delete(f"/stems/{gone}").status_code == 204
    assert running.stop() == 0
    running.start()
    with running.client() as client:
        the_books_balance(client, acknowledged)
