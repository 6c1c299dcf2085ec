"""What HTTP promises beyond GET and 200: conditions, ranges, HEAD, OPTIONS, and a proxy in front."""

from pathlib import Path

import httpx
import pytest

from tests.installation import add_stem, encode, noise_bursts
from tests.service.api.test_api import problem_of

AUDIO = encode(noise_bursts(0, 3.0))
SIZE = len(AUDIO)


@pytest.fixture(scope="module")
def limits() -> dict[str, str]:
    return {"root_path": "/music"}


@pytest.fixture(scope="module")
def url(own: tuple[httpx.Client, Path]) -> str:
    """A service below /music of a proxy, asked as the proxy asks it; it has one stem."""
    return str(own[0].base_url).rstrip("/")


@pytest.fixture(scope="module")
def stem_id(own: tuple[httpx.Client, Path]) -> str:
    return add_stem(own[0], AUDIO)


@pytest.fixture
def audio(url: str, stem_id: str) -> str:
    return f"{url}/stems/{stem_id}/audio"


@pytest.mark.parametrize(("asked", "status", "part"), [
    (None, 200, slice(None)),
    ("bytes=0-", 206, slice(None)),
    ("Bytes=10-19", 206, slice(10, 20)),
    ("bytes=-5", 206, slice(-5, None)),
    (f"bytes=-{SIZE + 9}", 206, slice(None)),
    (f"bytes={SIZE - 1}-{SIZE + 9}", 206, slice(-1, None)),
    ("bytes=0-0", 206, slice(0, 1)),
    ("bytes=0-1,5-6", 200, slice(None)),
    ("bytes=5-2", 200, slice(None)),
    ("bytes=-", 200, slice(None)),
    ("bytes=x", 200, slice(None)),
    ("seconds=0-1", 200, slice(None)),
    (f"bytes={SIZE}-", 416, None),
    ("bytes=-0", 416, None),
])  # fmt: skip
def test_a_range_gets_what_rfc_9110_says(audio: str, asked: str | None, status: int, part: slice | None) -> None:
    answer = httpx.get(audio, headers={"Range": asked} if asked else {})
    assert answer.status_code == status
    if part is None:
        problem_of(answer, 416, "range-not-satisfiable")
        assert answer.headers["content-range"] == f"bytes */{SIZE}"
        return
    assert answer.content == AUDIO[part]
    first, last, _ = part.indices(SIZE)
    assert answer.headers.get("content-range") == (f"bytes {first}-{last - 1}/{SIZE}" if status == 206 else None)
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["content-type"] == "audio/flac"


@pytest.mark.parametrize(("header", "status"), [
    ('TAG', 304), ('W/TAG', 304), ('"other", TAG', 304), ('"a",W/TAG , "b"', 304), ("*", 304), ('"other"', 200),
    ('W/"other"', 200), ("", 200),
])  # fmt: skip
def test_if_none_match_knows_lists_weak_tags_and_the_star(audio: str, header: str, status: int) -> None:
    tag = httpx.head(audio).headers["etag"]
    answer = httpx.get(audio, headers={"If-None-Match": header.replace("TAG", tag), "Range": "bytes=0-"})
    assert answer.status_code == (304 if status == 304 else 206)
    assert answer.headers["etag"] == tag


@pytest.mark.parametrize(("header", "status"), [
    ("TAG", 206), ("W/TAG", 200), ('"other"', 200), ("Sat, 01 Jan 2000 00:00:00 GMT", 200), ("*", 200),
])  # fmt: skip
def test_a_range_of_other_bytes_gets_the_whole(audio: str, header: str, status: int) -> None:
    tag = httpx.head(audio).headers["etag"]
    answer = httpx.get(audio, headers={"If-Range": header.replace("TAG", tag), "Range": "bytes=2-3"})
    assert answer.status_code == status
    assert answer.content == (AUDIO[2:4] if status == 206 else AUDIO)


@pytest.mark.parametrize(("name", "said"), [
    ("bass;1, 2.flac", 'filename="bass;1, 2.flac"'),
    ("B\u00e4sse & 50%.flac", "filename=\"Basse & 50%.flac\"; filename*=UTF-8''B%C3%A4sse%20%26%2050%25.flac"),
])  # fmt: skip
def test_audio_is_saved_by_the_name_it_came_with(url: str, name: str, said: str) -> None:
    audio = encode(noise_bursts(len(name), 2.0))
    with httpx.Client(base_url=url) as client:
        answer = client.head(f"/stems/{add_stem(client, audio, name)}/audio")
    assert answer.headers["content-disposition"] == f"inline; {said}"


@pytest.mark.parametrize("path", [
    "/", "/static/app.js", "/docs", "/openapi.json", "/livez", "/readyz", "/metrics", "/problems", "/stems", "/catalog",
    "/stems/ID", "/stems/ID/audio", "/jobs/none", "/stems/none",
])  # fmt: skip
def test_head_is_get_without_a_body(url: str, stem_id: str, path: str) -> None:
    address = url + path.replace("ID", stem_id)
    head, got = httpx.head(address), httpx.get(address)
    assert (head.status_code, head.content) == (got.status_code, b"")
    for name in ("content-type", "content-length", "etag", "content-security-policy"):
        if path != "/metrics" or name != "content-length":
            assert head.headers.get(name) == got.headers.get(name), name


@pytest.mark.parametrize(("path", "allowed"), [
    ("/stems", "GET, HEAD, OPTIONS, PATCH, POST"),
    ("/stems/x", "DELETE, GET, HEAD, OPTIONS, PATCH"),
    ("/stems/x/audio", "GET, HEAD, OPTIONS"),
    ("/retrieve", "OPTIONS, POST"),
    ("/", "GET, HEAD, OPTIONS"),
    ("/static/app.js", "GET, HEAD, OPTIONS"),
])  # fmt: skip
def test_allow_names_every_method(url: str, path: str, allowed: str) -> None:
    asked = httpx.options(url + path)
    assert (asked.status_code, asked.headers["allow"], asked.content) == (204, allowed, b"")
    refused = httpx.put(url + path)
    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)
    assert httpx.options(f"{url}/nothing").status_code == 404


def test_below_a_prefix_every_link_has_it(url: str, stem_id: str) -> None:
    with httpx.Client(base_url=url) as client:
        sent = client.post("/stems", files={"files": ("a.flac", AUDIO)})
        assert sent.headers["location"] == f"/music/jobs/{sent.json()['id']}"
        assert client.get(f"/stems/{stem_id}").json()["audio_url"] == f"/music/stems/{stem_id}/audio"
        assert client.get("/stems").json()["stems"][0]["audio_url"].startswith("/music/")
        docs = client.get("/docs").text
        for name in ("/music/openapi.json", "/music/static-offline-docs/swagger-ui.css", "/music/static/icon.svg"):
            assert name in docs
            assert client.get(name.removeprefix("/music")).status_code == 200
        assert client.get("/openapi.json").json()["servers"] == [{"url": "/music"}]
        assert client.get("/stems/?limit=2").headers["location"] == "/music/stems?limit=2"
        assert client.get("/livez").status_code == 200
