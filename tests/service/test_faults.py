"""kill -9 at bad moments: whatever was acknowledged becomes ready, or failed with a reason, exactly once."""

from pathlib import Path

import httpx
import pytest

from tests import servers
from tests.installation import Installation, add_stem, encode, eventually, noise_bursts

STEMS = 12  # in each test; all tests together stay below the 100 hits of one query


@pytest.fixture(scope="module")
def acknowledged() -> list[str]:
    """Ids of all stems that `running` has acknowledged so far: none may be lost by a later fault either."""
    return []


def upload_some(client: httpx.Client, acknowledged: list[str], count: int) -> None:
    """Put stems in that nobody has put in before."""
    for seed in range(len(acknowledged), len(acknowledged) + count):
        acknowledged.append(add_stem(client, encode(noise_bursts(seed)), f"{seed}.flac"))


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
def test_no_acknowledged_upload_is_lost_when_a_process_is_killed(
    running: Installation, acknowledged: list[str], victim: str
) -> None:
    with running.client() as client:
        upload_some(client, acknowledged, STEMS // 2)
        running.kill(victim)
        eventually(running.ready, 60)
        upload_some(client, acknowledged, STEMS // 2)
        the_books_balance(client, acknowledged)


def test_no_acknowledged_upload_is_lost_when_every_connection_is_cut(tmp_path: Path, small_checkpoint: Path) -> None:
    cut = Installation(tmp_path, {"PHALAR_CHECKPOINT": str(small_checkpoint)}, stores=servers.new_stores()).start()
    try:
        with cut.client() as client:
            acknowledged: list[str] = []
            for _ in range(STEMS):
                upload_some(client, acknowledged, 1)
                cut.cut_connections()
            the_books_balance(client, acknowledged)
    finally:
        cut.stop()


@pytest.mark.parametrize("fault", ["everything is killed", "the queue forgets"])
def test_no_acknowledged_upload_is_lost_when(running: Installation, acknowledged: list[str], fault: str) -> None:
    """The queue is filled again from the catalog."""
    with running.client() as client:
        upload_some(client, acknowledged, STEMS)
    if fault == "the queue forgets":
        running.forget_queue()
    else:
        running.kill_all()
        running.start()
    with running.client() as client:
        the_books_balance(client, acknowledged)


def test_a_second_start_finds_the_same_catalog(running: Installation, acknowledged: list[str]) -> None:
    with running.client() as client:
        upload_some(client, acknowledged, STEMS)
        the_books_balance(client, acknowledged)
        gone = acknowledged.pop()
        assert client.delete(f"/stems/{gone}").status_code == 204
    assert running.stop() == 0
    running.start()
    with running.client() as client:
        the_books_balance(client, acknowledged)
