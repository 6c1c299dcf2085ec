"""The door: whom it answers, what it takes, how long it waits, and what it says of itself."""

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model.audio import SAMPLE_RATE
from service.api.connections import LINGER_S, LINGERING
from service.api.metadata import most_bytes
from service.api.routes.stems import MAX_FILES
from tests.installation import add_stem, encode, noise_bursts, serving
from tests.service.api.conftest import Fresh
from tests.service.api.test_api import problem_of

AUDIO = encode(noise_bursts(0, 3.0))
FOREIGN = ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil", "[::2]", "192.168.0.7", "")
OURS = ("127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8000", "phalar.localhost", "127.8.9.1")
ELSEWHERE: tuple[dict[str, str], ...] = (
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
)


@pytest.fixture(scope="module")
def keyless(own: tuple[httpx.Client, Path]) -> httpx.Client:
    return own[0]


def asking(client: httpx.Client, headers: dict[str, str]) -> list[httpx.Response]:
    """One request of each kind that changes or costs something."""
    return [
        client.post("/stems", files={"files": ("a.flac", AUDIO)}, headers=headers),
        client.post("/retrieve", data={"stem_id": "x"}, headers=headers),
        client.patch("/stems/x", json={}, headers=headers),
        client.delete("/stems/x", headers=headers),
        client.post("/admin/reindex", headers=headers),
        client.post("/admin/rollback", headers=headers),
        client.get("/stems", headers=headers),
    ]


# Who is answered.


def test_without_keys_only_names_of_this_machine_are_answered(keyless: httpx.Client) -> None:
    for host in FOREIGN:
        for answer in asking(keyless, {"Host": host}):
            problem_of(answer, 421, "unknown-host")
        assert keyless.get("/livez", headers={"Host": host}).status_code == 421
    for host in OURS:
        assert keyless.get("/stems", headers={"Host": host}).status_code == 200
    assert keyless.get("/stems").json()["stems"] == []


def test_other_names_are_answered_where_they_are_allowed(fresh: Fresh) -> None:
    with serving(fresh(allowed_hosts="music.example, *.studio.example")) as url:
        for host, status in {
            "music.example": 200,
            "Music.Example:8443": 200,
            "a.studio.example": 200,
            "studio.example": 421,
            "amusic.example": 421,
            "localhost": 200,
        }.items():
            assert httpx.get(f"{url}/stems", headers={"Host": host}).status_code == status, host


def test_with_keys_any_name_is_answered_until_some_are_named(fresh: Fresh) -> None:
    with serving(fresh(admin_key="administrator")) as url:
        bearer = {"Authorization": "Bearer administrator"}
        assert httpx.get(f"{url}/stems", headers=bearer | {"Host": "music.example"}).status_code == 200
        for elsewhere in ELSEWHERE:
            assert httpx.delete(f"{url}/stems/x", headers=bearer | elsewhere).status_code == 404
            problem_of(httpx.delete(f"{url}/stems/x", headers=elsewhere), 403, "cross-site")


def test_a_page_of_another_site_is_refused_and_our_own_is_not(keyless: httpx.Client) -> None:
    for elsewhere in ELSEWHERE:
        for answer in asking(keyless, elsewhere):
            problem_of(answer, 403, "cross-site")
    assert keyless.get("/stems").json()["stems"] == []
    here = f"{keyless.base_url.host}:{keyless.base_url.port}"
    for own in ({"Sec-Fetch-Site": "same-origin"}, {"Origin": f"http://{here}"}, {}, {"Sec-Fetch-Site": "none"}):
        assert keyless.delete("/stems/x", headers=own).status_code == 404
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert keyless.get("/", headers=followed).status_code == 200  # a link to the page
    problem_of(keyless.get("/", headers=followed | {"Sec-Fetch-Dest": "object"}), 403, "cross-site")
    problem_of(keyless.post("/admin/rollback", headers=followed), 403, "cross-site")


# What is taken.


def test_json_is_small_and_at_most_20_faults_are_told(keyless: httpx.Client) -> None:
    big = json.dumps({"title": "x" * 70_000})
    sent = {"content": big, "headers": {"Content-Type": "application/json"}}
    problem_of(keyless.patch("/stems/x", **sent), 413, "body-too-large")  # type: ignore[arg-type]
    problem_of(keyless.post("/admin/reindex", **sent), 413, "body-too-large")  # type: ignore[arg-type]

    def pieces() -> Iterator[bytes]:
        yield from (big[at : at + 1000].encode() for at in range(0, len(big), 1000))

    chunked = keyless.patch("/stems/x", content=pieces(), headers={"Content-Type": "application/json"})
    problem_of(chunked, 413, "body-too-large")
    answer = keyless.patch("/stems/x", json={f"unknown {n}": 1 for n in range(1000)})
    body = problem_of(answer, 422, "invalid-request")
    assert len(body["errors"]) == 20
    assert body["faults"] == 1000
    assert len(answer.content) < 10_000


def test_every_list_of_a_query_may_be_as_long_as_it_says(keyless: httpx.Client) -> None:
    lists = ("instrument", "track", "collection", "key", "exclude", "exclude_track")
    names = [f"{number:032x}" for number in range(1000)]
    asked = {"stem_id": "x", "limit": "5", **dict.fromkeys(lists, names)}
    problem_of(keyless.post("/retrieve", data=asked, files={"unread": b""}), 404, "stem-not-found")
    problem_of(keyless.post("/retrieve", data={**asked, "exclude": [*names, "x"]}), 413, "body-too-large")
    one_more = keyless.post("/retrieve", data={**asked, "exclude": [*names, "x"]}, files={"unread": b""})
    assert [fault["at"] for fault in problem_of(one_more, 422, "invalid-request")["errors"]] == ["body.exclude"]


def test_the_metadata_of_as_many_files_as_a_request_takes_may_be_as_long_as_it_says(keyless: httpx.Client) -> None:
    files = [("files", (f"{number}.wav", b"no audio")) for number in range(MAX_FILES)]
    metadata = {"metadata": "{}".ljust(most_bytes(MAX_FILES))}
    assert keyless.post("/stems", files=files, data=metadata).status_code == 202


def test_text_in_the_place_of_a_file_is_told_how_to_send_one(keyless: httpx.Client) -> None:
    for path, field in (("/stems", "files"), ("/retrieve", "file"), ("/export", "file")):
        answer = keyless.post(path, data={field: "mix.wav", "placed": "[]"}, files={"unread": b""})
        assert "send a file" in problem_of(answer, 422, "invalid-request")["detail"]


def test_metadata_may_be_as_long_as_its_files_need_and_no_longer(keyless: httpx.Client) -> None:
    files = [("files", ("a.flac", b"no audio"))] * 2
    long = json.dumps([{"title": "x" * 80_000}, {}])
    body = problem_of(keyless.post("/stems", files=files, data={"metadata": long}), 422, "bad-metadata")
    assert body["maximum_bytes"] < len(long)
    unknown = json.dumps([{f"unknown {n}": 1 for n in range(2000)}, {}])
    answer = keyless.post("/stems", files=files, data={"metadata": unknown})
    problem_of(answer, 422, "bad-metadata")
    assert len(answer.content) < 10_000


# What it says of itself.

LABELS = {
    "method": r"GET|HEAD|POST|PATCH|PUT|DELETE|OPTIONS|other",
    "route": r"/[a-z0-9_/{}]*|unmatched",
    "status": r"[1-5]\d\d",
    "le": r"[\d.e+-]+|\+Inf",
    "stage": r"[a-z]+",
    "kind": r"uploads|queries",
    "state": r"queued|ready|failed",
    "what": r"generation|windows|fresh_windows",
    "why": r"[a-z-]+",
    "worker": r".*",  # of our own, by the queue, which is trusted
    "device": r".*",
    "driver": r".*",
    "figure": r"[a-z_]+",
}


def test_labels_of_metrics_are_of_closed_sets(keyless: httpx.Client) -> None:
    for n in range(20):
        for method in (f"M{n}", "X" * (100 + n), "PROPFIND"):
            keyless.request(method, f"/nowhere-{n}")
            keyless.request(method, "/stems")
        keyless.get(f"/stems/x{n}")
        keyless.get(f"/static/{n}.js")
        keyless.get("/livez", headers={"Host": f"{n}.example"})
    text = keyless.get("/metrics").text
    assert not re.search(r"nowhere|M1|XXX|PROPFIND|\.example", text)
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    for sample in samples:
        for label, value in sample.labels.items():
            assert re.fullmatch(LABELS[label], value), sample
    methods = {sample.labels["method"] for sample in samples if "method" in sample.labels}
    assert "other" in methods


def test_every_answer_carries_the_headers_that_guard_a_browser(keyless: httpx.Client) -> None:
    stem = add_stem(keyless, AUDIO)
    paths = ("/", "/static/app.js", "/docs", "/openapi.json", "/livez", "/stems", f"/stems/{stem}/audio", "/nowhere")
    for path in paths:
        answer = keyless.get(path)
        assert answer.status_code == (404 if path == "/nowhere" else 200)
        headers = answer.headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert "frame-ancestors 'none'" in headers["content-security-policy"], path
        source = "self" if path == "/" else "(self|none)"
        assert re.search(f"default-src '{source}'", headers["content-security-policy"])
    refused = keyless.get("/livez", headers={"Host": "evil.example"})
    assert "content-security-policy" in refused.headers
    assert "'unsafe-inline'" not in keyless.get("/docs").headers["content-security-policy"].split("style-src")[0]
    keyless.delete(f"/stems/{stem}")


# How long it waits, and for how many.


def connect(url: str, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), 30, (source, 0))


def ended_after(connection: socket.socket, seconds: float) -> float:
    """When the other end closed, seconds from now; fails when it did not."""
    begun = time.monotonic()
    connection.settimeout(seconds)
    try:
        while connection.recv(65_536):
            pass
    except ConnectionError:
        pass
    return time.monotonic() - begun


UNFINISHED = (
    b"",
    b"GET /livez HT",
    b"GET /livez HTTP/1.1\r\nHost: localhost\r\n",
    b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET /livez",
    b"POST /retrieve HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf",
    b"POST /stems HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    b"Content-Length: 99\r\n\r\n--x\r\n",
    b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\nnever read",
)


def test_whoever_does_not_finish_a_request_is_not_waited_for(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.connections.HEAD_S", 1.0)
    monkeypatch.setattr("service.api.bodies.PAUSE_S", 1.0)
    with serving(fresh()) as url, ExitStack() as stack:
        connections = [stack.enter_context(connect(url)) for _ in UNFINISHED]
        for connection, begun in zip(connections, UNFINISHED, strict=True):
            connection.sendall(begun)
        for connection in connections:
            assert ended_after(connection, 20) < 15


def test_a_body_that_trickles_in_is_refused_and_a_slow_one_is_not(
    fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.bodies.PAUSE_S", 1.0)
    monkeypatch.setattr("service.api.bodies.SLOWEST_BYTES_S", 2000)
    with serving(fresh()) as url:

        def slowly(size: int, pause_s: float) -> Iterator[bytes]:
            body = b'{"title": "' + b"x" * 8000 + b'"}'
            for at in range(0, len(body), size):
                yield body[at : at + size]
                time.sleep(pause_s)

        headers = {"Content-Type": "application/json"}
        answer = httpx.patch(f"{url}/stems/x", content=slowly(2000, 0.3), headers=headers, timeout=30)
        problem_of(answer, 422, "invalid-request")  # read to its end
        begun = time.monotonic()
        try:
            late = httpx.patch(f"{url}/stems/x", content=slowly(40, 0.3), headers=headers, timeout=30)
            problem_of(late, 408, "body-too-slow")
        except httpx.WriteError:  # it was still sending
            pass
        assert time.monotonic() - begun < 20, "at 40 bytes each 0.3 s all of it takes a minute"


def is_open(connection: socket.socket) -> bool:
    """Whether the other end has not closed."""
    connection.setblocking(False)
    try:
        return connection.recv(4096) != b"" and is_open(connection)
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def test_connections_are_bounded_in_all_and_by_address(fresh: Fresh) -> None:
    with serving(fresh(max_connections=40)) as url, ExitStack() as stack:
        greedy = [stack.enter_context(connect(url, "127.0.0.2")) for _ in range(200)]
        assert httpx.get(f"{url}/livez", timeout=10).status_code == 200
        assert sum(map(is_open, greedy)) <= 10, "a quarter of all"
        sources = [f"127.0.0.{n}" for n in range(3, 60)]
        crowd = [stack.enter_context(connect(url, source)) for source in sources for _ in range(4)]
        for _ in range(5):
            assert httpx.get(f"{url}/livez", timeout=10).status_code == 200, "the longest silent one has made room"
        assert sum(map(is_open, [*greedy, *crowd])) <= 40


def test_who_is_turned_away_is_told_so_later_and_comes_less_often(fresh: Fresh) -> None:
    greedy = httpx.HTTPTransport(local_address="127.0.0.2")
    with serving(fresh(max_connections=4)) as url, ExitStack() as stack:
        busy = stack.enter_context(connect(url, "127.0.0.2"))  # all that one address may have
        busy.sendall(UNFINISHED[-2])
        time.sleep(0.5)
        with httpx.Client(base_url=url, transport=greedy, timeout=10) as client:
            begun = time.monotonic()
            for _ in range(2):
                answer = client.post("/stems", files={"files": ("a.flac", AUDIO)})
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
            assert time.monotonic() - begun >= 2 * LINGER_S
        crowd = [stack.enter_context(connect(url, "127.0.0.2")) for _ in range(LINGERING + 1)]
        assert ended_after(crowd[0], LINGER_S / 2) < LINGER_S / 2, "no more may wait for their answers"
        assert all(map(is_open, crowd[1:]))
        assert httpx.get(f"{url}/livez", timeout=10).status_code == 200


def test_an_answer_that_is_not_read_is_not_kept_for_ever(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.connections.UNREAD_S", 1.0)
    noise = np.random.default_rng(0).uniform(-1, 1, 200 * SAMPLE_RATE).astype(np.float32)
    audio = encode(noise, "WAV", subtype="DOUBLE")
    with serving(fresh()) as url, httpx.Client(base_url=url, timeout=120) as client:
        path = f"/stems/{add_stem(client, audio)}/audio"
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((urlsplit(url).hostname, urlsplit(url).port))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            time.sleep(5)
            received = 0
            with suppress(ConnectionError):
                while piece := connection.recv(65_536):
                    received += len(piece)
            assert received < len(audio), "what was left in the buffers"
        assert client.get(path).content == audio
