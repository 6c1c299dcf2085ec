"""What one client may take of a service that others use: memory, decoders, workers, rows."""

import asyncio
import io
import socket
import sqlite3
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from fastapi import UploadFile
from numpy.typing import NDArray

from indexer import IndexUnavailable
from model.audio import Clip
from model.phalar import PhalarConfig
from service.api.backend import Backend
from service.api.keys import Caller
from service.api.schemas import RetrieveIn
from service.settings import Settings
from service.work.jobs import QueryJob
from service.work.queue import TICKET_S, Share, open_queue
from service.work.uploads import UPLOAD_NICE, Decoder
from tests.installation import add_stem, encode, eventually, free_port, noise_bursts, serving
from tests.service.api.test_api import problem_of

AUDIO = encode(noise_bursts(0, 9.0))
EMBED_S = 0.25  # what a query takes the worker of these tests, whatever it asks


class Decoded:
    """What decoders were asked for."""

    def __init__(self) -> None:
        self.times = 0
        self.going_on = 0
        self.nices: list[int] = []
        self.alive = 0
        self.most_alive = 0

    def hold(self, waveform: NDArray[np.float32]) -> None:
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(waveform, self.forget)

    def forget(self) -> None:
        self.alive -= 1


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    """Counts how often a file is decoded, and how many waveforms are held at a time; it decodes all the same."""
    seen, decode, look = Decoded(), Decoder.decode, Decoder.look

    async def counted(self: Decoder, source: Any, **options: Any) -> Clip:
        seen.times += 1
        seen.going_on += 1
        try:
            clip = await decode(self, source, **options)
        finally:
            seen.going_on -= 1
        seen.hold(clip.waveform)
        return clip

    async def looked(self: Decoder, source: Any, **options: Any) -> tuple[Any, Any, NDArray[np.float32] | None]:
        seen.times += 1
        seen.nices.append(options["nice"])
        facts, said, waveform = await look(self, source, **options)
        if waveform is not None:
            seen.hold(waveform)
        return facts, said, waveform

    monkeypatch.setattr(Decoder, "decode", counted)
    monkeypatch.setattr(Decoder, "look", looked)
    return seen


def client(url: str, source: str = "127.0.0.1") -> httpx.Client:
    return httpx.Client(base_url=url, timeout=120, transport=httpx.HTTPTransport(local_address=source))


def constant(value: float, seconds: float = 300.0) -> bytes:
    """A clip of a few hundred bytes that is large once decoded."""
    return encode(np.full(round(seconds * 16_000), value, np.float32))


def test_equal_bytes_are_decoded_once_and_known_ones_never(chosen: dict[str, Any], decoded: Decoded) -> None:
    audio = constant(0.5)
    assert len(audio) < 100_000
    with serving(Settings(**chosen)) as url, client(url) as sender:
        answer = sender.post("/stems", files=[("files", (f"{n}.flac", audio)) for n in range(30)])
        assert answer.status_code == 202
        assert len({item["stem_id"] for item in answer.json()["items"]}) == 1
        assert (decoded.times, decoded.nices) == (1, [0]), "a single one does not step back"
        again = sender.post("/stems", files={"files": ("again.flac", audio)})
        assert [item["created"] for item in again.json()["items"]] == [False]
        assert decoded.times == 1
        (stem,) = sender.get("/stems").json()["stems"]
        assert sender.delete(f"/stems/{stem['id']}").status_code == 204
        assert sender.post("/stems", files={"files": ("new.flac", audio)}).json()["items"][0]["created"]
        assert decoded.times == 2


def test_memory_of_an_upload_does_not_grow_with_its_files(chosen: dict[str, Any], decoded: Decoded) -> None:
    one, room = 4 * 59 * 16_000, 2  # what is decoded lives on while a slow queue takes it
    files = [("files", (f"{n}.flac", constant(0.1 + n / 100, 59.0))) for n in range(12)]
    with serving(Settings(**chosen, decoders=4, decoded_bytes=room * one)) as url, client(url) as sender:
        assert sender.post("/stems", files=files).status_code == 202
        assert decoded.times == 12
        assert set(decoded.nices) == {UPLOAD_NICE}, "many files step back behind searches"
        assert 1 <= decoded.most_alive <= room


def test_samples_of_a_long_upload_stay_with_its_decoder(chosen: dict[str, Any], decoded: Decoded) -> None:
    with serving(Settings(**chosen)) as url, client(url) as sender:
        long = sender.post("/stems", files={"files": ("long.flac", constant(0.5, 61.0))}).json()["items"][0]
        assert decoded.times == 1
        assert decoded.most_alive == 0
        assert sender.get(f"/stems/{long['stem_id']}").json()["duration_s"] == pytest.approx(61.0)


def test_a_stem_named_often_is_decoded_once_and_many_are_summed_one_by_one(
    chosen: dict[str, Any], decoded: Decoded
) -> None:
    with serving(Settings(**chosen)) as url, client(url) as sender, worker(chosen):
        ids = [add_stem(sender, constant(0.1 + n / 100)) for n in range(6)]
        begun = decoded.times
        assert sender.post("/retrieve", data={"stem_id": ids[:1] * 32, "align": "grid"}).status_code == 200
        assert decoded.times == begun + 1
        decoded.most_alive = 0
        assert sender.post("/retrieve", data={"stem_id": ids, "align": "grid"}).status_code == 200
        assert decoded.times == begun + 7
        assert decoded.most_alive <= 2


# What nobody waits for.


@contextmanager
def worker(chosen: dict[str, Any]) -> Iterator[None]:
    """Takes queries from the queue as a worker does, one at a time, and is slow: its embeddings are random."""
    ending = Event()

    async def work() -> None:
        queue, rng = open_queue(Settings(**chosen), "slow"), np.random.default_rng(0)
        while not ending.is_set():
            for job in await queue.take(1, 200, uploads=False):
                assert isinstance(job, QueryJob)
                await asyncio.sleep(EMBED_S)
                laid = job.laid
                inner = 1 if laid.inner is None else 1 + int(laid.lengths[0] - laid.inner) // PhalarConfig().step
                embedding = rng.standard_normal((len(laid), inner * 128, 2)) @ [1, 1j]
                embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
                await queue.reply(job, embedding.astype(np.complex64))
        await queue.aclose()

    thread = Thread(target=lambda: asyncio.run(work()))
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def send(url: str, path: str, files: list[tuple[str, tuple[str, bytes]]]) -> socket.socket:
    """A connection that has sent a whole request and reads nothing."""
    request = httpx.Request("POST", f"{url}{path}", files=files)
    body = request.read()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    head += f"Content-Type: {request.headers['content-type']}\r\n\r\n"
    connection = socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=30)
    connection.sendall(head.encode() + body)
    return connection


def queries(sender: httpx.Client) -> int:
    found: int = sender.get("/readyz").json()["queue"]["queries"]
    return found


def test_a_search_that_nobody_waits_for_leaves_the_queue(chosen: dict[str, Any]) -> None:
    with serving(Settings(**chosen)) as url, client(url) as sender:
        searches = [send(url, "/retrieve", [("file", ("a.flac", AUDIO))]) for _ in range(8)]
        eventually(lambda: queries(sender) > 0)
        for connection in searches:
            connection.close()
        eventually(lambda: queries(sender) == 0, 10)
        with worker(chosen):
            begun = time.monotonic()
            assert sender.post("/retrieve", files={"file": ("a.flac", AUDIO)}).status_code == 200
            assert time.monotonic() - begun < 20 * EMBED_S, "the others are not computed first"


def test_an_upload_that_nobody_waits_for_is_decoded_no_further(chosen: dict[str, Any], decoded: Decoded) -> None:
    files = [("files", (f"{n}.flac", constant(0.1 + n / 100))) for n in range(40)]
    with serving(Settings(**chosen, decoders=1)) as url, client(url) as sender:
        connection = send(url, "/stems", files)
        eventually(lambda: decoded.times > 0)
        connection.close()
        time.sleep(1.0)
        begun = decoded.times
        time.sleep(2.0)
        assert decoded.times == begun < len(files)
        add_stem(sender, AUDIO)
        assert len(sender.get("/stems").json()["stems"]) == 1


def test_a_search_that_is_refused_for_want_of_an_index_is_decoded_no_further(
    chosen: dict[str, Any], decoded: Decoded
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"

    async def search() -> None:
        async with Backend.open(Settings(**chosen, index_url=nobody)) as backend:
            model = backend.models.configured_fingerprint
            assert await backend.catalog.go_live(await backend.catalog.new_generation(model), configured=model)
            backend.live._status = "ready"  # as it was before the index's server went
            for _ in range(5):
                query = RetrieveIn(file=UploadFile(io.BytesIO(AUDIO), size=len(AUDIO)))
                with pytest.raises(IndexUnavailable):
                    await backend.retrieval.answer(query, Caller(None, "read"))
                assert decoded.going_on == 0, "its turn is over"

    asyncio.run(search())
    assert decoded.times > 0


def test_a_query_never_takes_longer_than_its_time_however_many_wait(chosen: dict[str, Any]) -> None:
    timeout_s = 2.0
    with (
        serving(Settings(**chosen, query_timeout_s=timeout_s)) as url,
        worker(chosen),
        ThreadPoolExecutor(16) as pool,
        client(url) as sender,
    ):

        def search(_: int) -> tuple[httpx.Response, float]:
            begun = time.monotonic()
            answer = sender.post("/retrieve", files={"file": ("a.flac", AUDIO)})
            return answer, time.monotonic() - begun

        answers = list(pool.map(search, range(16)))
        assert max(seconds for _, seconds in answers) < timeout_s + 3
        late = [answer for answer, _ in answers if answer.status_code != 200]
        assert late
        for answer in late:
            problem_of(answer, 503, "query-timed-out")


def test_a_flood_over_two_api_processes_does_not_keep_a_client_of_either_waiting(chosen: dict[str, Any]) -> None:
    """Each of them lets so many searches go on; what is between them, the workers' queue, has the caller's share."""
    with (
        serving(Settings(**chosen)) as one,
        serving(Settings(**chosen)) as other,
        worker(chosen),
        ThreadPoolExecutor(16) as pool,
        ExitStack() as clients,
    ):
        honest, greedy, also_greedy = (
            clients.enter_context(client(url, source))
            for url, source in ((one, "127.0.0.1"), (one, "127.0.0.2"), (other, "127.0.0.2"))
        )

        def search(sender: httpx.Client) -> float:
            begun = time.monotonic()
            answer = sender.post("/retrieve", files={"file": ("a.flac", AUDIO)}, data={"align": "grid"})
            assert answer.status_code == 200
            return time.monotonic() - begun

        search(honest)
        flood = [pool.submit(search, sender) for _ in range(8) for sender in (greedy, also_greedy)]
        most = 0
        while sum(done.done() for done in flood) < 4:
            most = max(most, queries(honest))
        assert most == 1, "of one caller, while another has come lately"
        search(honest)
        assert sum(done.done() for done in flood) < 12, "the flood still waits"
        for done in flood:
            done.result()


def test_a_callers_share_is_free_again_soon_after_its_process_is_killed(chosen: dict[str, Any]) -> None:
    async def ask() -> None:
        dying, living = open_queue(Settings(**chosen)), open_queue(Settings(**chosen))
        for who in ("greedy", "another"):
            await dying._may(Share(who, 1), f"{who}'s first")
        assert not await living._may(Share("greedy", 1), "second")
        assert await living._may(Share("greedy", 2), "second")
        begun = time.monotonic()
        while not await living._may(Share("greedy", 1), "third"):  # noqa: ASYNC110 - it is Valkey that changes
            await asyncio.sleep(0.1)
        assert time.monotonic() - begun < TICKET_S + 3
        await dying.aclose()
        await living.aclose()

    asyncio.run(ask())


# What is kept.


def rows(folder: Path, table: str) -> int:
    with sqlite3.connect(folder / "catalog.sqlite") as database:
        return int(database.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])


def test_a_request_of_refused_files_keeps_their_number_and_no_row_for_each(chosen: dict[str, Any]) -> None:
    with serving(Settings(**chosen)) as url, client(url) as sender:
        files = [("files", (f"{n}.flac", b"")) for n in range(300)]
        answer = sender.post("/stems", files=files)
        assert answer.status_code == 202
        assert [item["problem"]["type"] for item in answer.json()["items"]] == ["/problems/empty-file"] * 300
        job = sender.get(answer.headers["location"]).json()
        assert (job["state"], job["items"], job["result"]) == ("done", [], {"refused": 300})
    assert (rows(chosen["data"], "jobs"), rows(chosen["data"], "job_items")) == (1, 0)
