"""The next index beside the live one: no query fails, none is answered from two generations, and back again."""

import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.installation import (
    Installation,
    add_stem,
    encode,
    eventually,
    free_port,
    noise_bursts,
    save_small_checkpoint,
    wait_ready,
)

STEMS = 8


@pytest.fixture(scope="module")
def running(running: Installation) -> Installation:
    """Each test leaves the model and the stems that it found, and perhaps another generation."""
    with running.client() as client:
        wait_ready(client, *[add_stem(client, encode(noise_bursts(seed)), f"{seed}.flac") for seed in range(STEMS)])
    return running


def finished(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    done = eventually(lambda: (j := client.get(f"/jobs/{job['id']}").json())["state"] != "running" and j)
    assert done["state"] == "done", done
    result: dict[str, Any] = done["result"]
    return result


class Asking:
    """Queries without a pause from another thread, for as long as the context lasts."""

    def __init__(self, running: Installation) -> None:
        self._running = running
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.failures: list[str] = []
        self.answers: Counter[tuple[int, str]] = Counter()

    def _ask(self) -> None:
        mix = encode(noise_bursts(3))
        with self._running.client() as client:
            while not self._stop.is_set():
                answer = client.post("/retrieve", files={"file": ("m.flac", mix)}, data={"align": "grid", "limit": 1})
                if answer.status_code != 200 or answer.json()["hits"][0]["stem"]["title"] != "3":
                    self.failures.append(answer.text)
                else:
                    body = answer.json()
                    self.answers[body["index"]["generation"], body["model"]["fingerprint"]] += 1

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_queries_never_notice_a_reindex_or_a_rollback(running: Installation) -> None:
    with running.client() as client, Asking(running) as asking:
        before = client.get("/readyz").json()
        result = finished(client, client.post("/admin/reindex").json())
        assert result["recall"] == 1.0
        assert result["stems"] == before["stems"]["ready"] >= STEMS
        assert (result["index_type"], result["recall_rescored"], result["recall_deep"]) == ("flat", 1.0, 1.0)
        assert result["reason"].startswith("the most exact type that fits")
        eventually(lambda: any(generation == result["generation"] for generation, _ in asking.answers))
        back = client.post("/admin/rollback").json()
        assert (back["generation"], back["previous"]) == (before["index"]["generation"], result["generation"])
        asked = sum(asking.answers.values())
        eventually(lambda: sum(asking.answers.values()) > asked + 2)
    assert asking.failures == []
    assert {generation for generation, _ in asking.answers} == {before["index"]["generation"], result["generation"]}


def test_a_new_checkpoint_embeds_again_while_the_old_one_answers(running: Installation, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    fingerprint = save_small_checkpoint(other, seed=1)
    with running.client() as client, Asking(running) as asking:
        old = client.get("/readyz").json()["model"]["fingerprint"]
        shutil.copy(other, running.folder / "data" / "checkpoints" / "other.safetensors")
        job = client.post("/admin/reindex", json={"checkpoint": "other.safetensors"}).json()
        late = add_stem(client, encode(noise_bursts(50)), "late.flac")
        result = finished(client, job)
        assert result["fingerprint"] == fingerprint != old
        wait_ready(client, late)
        eventually(lambda: any(by == fingerprint for _, by in asking.answers))
        assert client.post("/admin/rollback").json()["fingerprint"] == old
        wait_ready(client, late)
        assert client.get("/readyz").json()["model"]["fingerprint"] == old
    assert asking.failures == []
    by_generation: dict[int, set[str]] = {}
    for generation, by in asking.answers:
        by_generation.setdefault(generation, set()).add(by)
    assert all(len(models) == 1 for models in by_generation.values()), "a generation answered under two models"


def test_a_truncated_rank_states_its_bound_and_still_answers_exactly(running: Installation) -> None:
    with running.client() as client:
        full = client.post("/retrieve", files={"file": ("m.flac", encode(noise_bursts(2)))}).json()
        result = finished(client, client.post("/admin/reindex", json={"rank": 127, "index_type": "fp16"}).json())
        assert (result["rank"], round(result["bound"], 6)) == (127, 1.0)  # W = I: every eigenvalue is 1
        assert (result["index_type"], result["reason"].split(";")[0]) == ("fp16", "fp16 was asked for")
        truncated = client.post("/retrieve", files={"file": ("m.flac", encode(noise_bursts(2)))}).json()

    def shown(answer: dict[str, Any]) -> list[tuple[str, float]]:
        return [(hit["stem"]["id"], round(hit["score"], 5)) for hit in answer["hits"]]

    assert shown(truncated) == shown(full)


def test_a_corrupt_index_is_noticed_at_start_and_rebuilt(running: Installation) -> None:
    with running.client() as client:
        finished(client, client.post("/admin/reindex").json())
        ask = {"files": {"file": ("m.flac", encode(noise_bursts(4)))}, "data": {"limit": 3}}
        before = client.post("/retrieve", **ask).json()  # type: ignore[arg-type]
        generation = before["index"]["generation"]
        running.stop()
        keys = running.folder / "data" / "index" / f"generation-{generation:06d}" / "keys.faiss"
        damaged = bytearray(keys.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        keys.write_bytes(damaged)
        running.start()
        after = client.post("/retrieve", **ask).json()  # type: ignore[arg-type]
    assert "rebuilding the index" in running.log
    assert after["hits"] == before["hits"]


def test_a_rank_that_the_model_does_not_have_is_named_and_the_live_index_stays(running: Installation) -> None:
    with running.client() as client:
        before = client.get("/readyz").json()
        job = client.post("/admin/reindex", json={"rank": 500}).json()
        failed = eventually(lambda: (j := client.get(f"/jobs/{job['id']}").json())["state"] != "running" and j)
        assert (failed["state"], failed["problem"]["type"]) == ("failed", "/problems/rank-out-of-range")
        assert failed["problem"]["detail"].startswith("The rank 500 is not between 1 and ")
        assert client.get("/readyz").json()["index"] == before["index"]


def test_an_index_server_that_is_down_is_named_and_nothing_else_fails(tmp_path: Path, small_checkpoint: Path) -> None:
    server = f"http://127.0.0.1:{free_port()}"
    started = Installation(
        tmp_path, {"PHALAR_CHECKPOINT": str(small_checkpoint), "PHALAR_INDEX_URL": server, "PHALAR_WORKERS": "0"}
    ).start(wait=False)
    try:
        with started.client() as client:

            def unreachable() -> bool:
                try:
                    return bool(client.get("/readyz").json()["status"] == "unreachable")
                except httpx.TransportError:
                    return False

            eventually(unreachable, 240)
            assert client.get("/readyz").status_code == 503
            assert client.get("/livez").status_code == 200
            add_stem(client, encode(noise_bursts(1)))
            answer = client.post("/retrieve", files={"file": ("m.flac", encode(noise_bursts(1)))})
            assert (answer.status_code, answer.json()["type"]) == (503, "/problems/index-unavailable")
            assert answer.json()["status"] == 503
            assert int(answer.headers["Retry-After"]) >= 1
            refused = client.post("/admin/reindex", json={"index_type": "sq8"})
            assert (refused.status_code, refused.json()["type"]) == (422, "/problems/no-index-types")
    finally:
        assert started.stop() == 0
    assert "Qdrant cannot be reached" in started.log
