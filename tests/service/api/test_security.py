"""Keys, rates and quotas as a client meets them, and an interface that no input breaks."""

import asyncio
import json
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import service.text
from indexer import ApiKeys, Catalog
from service.api.keys import new_api_key
from service.settings import Scope, Settings
from service.text import LONGEST
from tests.installation import add_stem, encode, noise_bursts, serving
from tests.servers import Authority, RedisServer
from tests.service.api.conftest import Fresh
from tests.service.api.test_api import problem_of

EXAMPLES = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
AUDIO = encode(noise_bursts(0, 3.0))
INJECTED = "x-injected"
PATIENCE_S = 30.0  # with Valkey on a busy machine; a process that gives up counts alone for a while


def keys_of(chosen: dict[str, Any], *scopes: Scope) -> list[str]:
    """Make keys as `phalar keys create` does; their tokens."""
    made = [new_api_key(scope, scope, None) for scope in scopes]
    chosen["data"].mkdir(parents=True, exist_ok=True)

    async def store() -> None:
        catalog = await Catalog.open(Settings(**chosen).resolved_database_url)
        for _, key in made:
            await ApiKeys(catalog.database).add(key)
        await catalog.close()

    asyncio.run(store())
    return [token for token, _ in made]


def revoke(chosen: dict[str, Any], token: str) -> None:
    async def end() -> None:
        catalog = await Catalog.open(Settings(**chosen).resolved_database_url)
        await ApiKeys(catalog.database).revoke(token.split("_")[1], time.time())
        await catalog.close()

    asyncio.run(end())


def client(url: str, key: str | None = None) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=120)


def test_made_keys_let_in_by_scope_until_revoked_on_every_api_process(chosen: dict[str, Any]) -> None:
    chosen |= {"require_keys": True}
    reader, ingester = keys_of(chosen, "read", "ingest")
    with serving(Settings(**chosen)) as one, serving(Settings(**chosen)) as other:
        with client(one) as nobody:
            answer = nobody.get("/stems")
            problem_of(answer, 401, "key-missing")
            assert answer.headers["www-authenticate"] == 'Bearer realm="phalar"'
        with client(one, reader) as reading:
            assert reading.get("/stems").status_code == 200
            answer = reading.delete("/stems/0")
            problem_of(answer, 403, "key-refused")
            assert answer.headers["www-authenticate"].endswith('error="insufficient_scope", scope="ingest"')
        with client(other, ingester) as ingesting:
            stem_id = add_stem(ingesting, AUDIO)
            problem_of(ingesting.post("/admin/rollback"), 403, "key-refused")
            revoke(chosen, ingester)
            answer = ingesting.get(f"/stems/{stem_id}")
            problem_of(answer, 401, "key-unknown")
            assert answer.headers["www-authenticate"].endswith('error="invalid_token"')
        with client(one, ingester) as ingesting:
            problem_of(ingesting.get("/stems"), 401, "key-unknown")
        announced = 100_000_000  # and not a byte of it sent
        head = [(b"Content-Type", b"multipart/form-data; boundary=x"), (b"Content-Length", str(announced).encode())]
        assert Answer.to(one, b"POST", b"/stems", head).status == 401


def test_rate_holds_over_processes_by_key_and_never_for_livez(
    chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.rates.ANSWER_S", PATIENCE_S)
    chosen |= {"require_keys": True, "read_rate": 0.001, "read_burst": 4}
    first, second = keys_of(chosen, "read", "read")
    with serving(Settings(**chosen)) as one, serving(Settings(**chosen)) as other:
        with client(one, first) as here, client(other, first) as there:
            statuses = [sender.get("/stems").status_code for sender in (here, there) * 4]
            assert statuses == [200] * 4 + [429] * 4
            answer = there.get("/stems")
            problem_of(answer, 429, "too-many-requests")
            assert int(answer.headers["retry-after"]) > 100
            assert answer.headers["ratelimit"].startswith('"read";r=0;t=')
            assert {there.get("/livez").status_code for _ in range(10)} == {200}
        with client(one, second) as unhurried:
            answer = unhurried.get("/stems")
            assert answer.status_code == 200
            assert answer.headers["ratelimit-policy"] == '"read";q=4;w=4000'
            assert answer.headers["ratelimit"].startswith('"read";r=3;t=')
        with client(one) as guessing:
            statuses = [guessing.get("/stems", headers={"Authorization": f"Bearer {n}"}).status_code for n in range(9)]
            assert set(statuses) == {401, 429}
            assert statuses[-1] == 429


def test_a_forwarded_address_is_believed_of_a_trusted_proxy_alone(
    chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.rates.ANSWER_S", PATIENCE_S)
    chosen |= {"require_keys": True, "read_rate": 0.001, "read_burst": 4}

    def guesses(url: str) -> list[int]:
        with client(url) as guessing:
            return [
                guessing.get(
                    "/stems", headers={"X-Forwarded-For": f"10.0.0.{n}", "Authorization": "Bearer x"}
                ).status_code
                for n in range(9)
            ]

    with serving(Settings(**chosen)) as url:
        assert guesses(url)[4:] == [429] * 5  # whoever asked whether it is ready has spent some of the first ones
    chosen["redis_prefix"] += "-trusting"  # where nobody has spent anything yet
    with serving(Settings(**chosen, trusted_proxies="10.9.9.9, 127.0.0.0/8")) as url:
        assert guesses(url) == [401] * 9


def test_rates_hold_over_processes_by_a_redis_with_tls_and_an_authority_of_its_own(
    chosen: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on this machine: TLS was NOT tested")
    monkeypatch.setattr("service.api.rates.ANSWER_S", PATIENCE_S)
    authority = Authority(tmp_path)
    options = authority.issue("server", "127.0.0.1") | {"tls-auth-clients": "no"}
    with RedisServer(tmp_path / "redis", options, scheme="rediss") as server:
        chosen |= {"redis_url": server.url, "redis_ca": authority.ca, "read_rate": 0.001, "read_burst": 4}
        with (
            serving(Settings(**chosen)) as one,
            serving(Settings(**chosen)) as other,
            client(one) as here,
            client(other) as there,
        ):
            taken = [sender.get("/stems").status_code for sender in (here, there) * 4]
    assert taken.count(200) <= 4, "also those that ask whether it is ready count"
    assert taken[-1] == 429


def test_stems_are_not_counted_each_time_that_somebody_asks_whether_it_is_ready(
    chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, counts = 0, Catalog.counts

    async def counting(self: Catalog) -> dict[str, int]:
        nonlocal counted
        counted += 1
        return await counts(self)

    monkeypatch.setattr(Catalog, "counts", counting)
    with serving(Settings(**chosen)) as url, client(url) as asking:
        begun, counted = time.monotonic(), 0
        for _ in range(60):
            assert asking.get("/readyz").json()["stems"]["queued"] == 0
        assert counted <= 2 + (time.monotonic() - begun)
        add_stem(asking, AUDIO)
        assert asking.get("/readyz").json()["stems"]["queued"] == 1, "what is changed here is seen at once"


def test_quota_is_refused_by_name_and_given_back(chosen: dict[str, Any]) -> None:
    chosen |= {"quota_key_stems": 1, "quota_bytes": 10 * len(AUDIO)}
    more = encode(noise_bursts(1, 3.0))
    with serving(Settings(**chosen)) as url, client(url) as open_to_all:
        stem_id = add_stem(open_to_all, AUDIO)
        assert add_stem(open_to_all, AUDIO) == stem_id
        body = problem_of(open_to_all.post("/stems", files={"files": ("b.flac", more)}), 413, "quota-exceeded")
        assert (body["whose"], body["what"], body["used"], body["quota"]) == ("key", "stems", 1, 1)
        kept = [path for path in (chosen["data"] / "audio").rglob("*") if path.is_file()]
        assert len(kept) == 1
        assert open_to_all.delete(f"/stems/{stem_id}").status_code == 204
        add_stem(open_to_all, more)


# Whatever is sent: a success or a problem, never a 500, no header of the sender's making, no file outside the folder.


class Answer:
    """An answer as its bytes came, to a request as its bytes went: a client library would mend both."""

    def __init__(self, received: bytes) -> None:
        head, _, self.body = received.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(status.split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @classmethod
    def to(
        cls, url: str, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]] | None = None, body: bytes = b""
    ) -> "Answer":
        lines = [method + b" " + target + b" HTTP/1.1", b"Host: localhost", b"Connection: close"]
        lines += [name + b": " + value for name, value in headers or []]
        if body:
            lines.append(b"Content-Length: " + str(len(body)).encode())
        with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=120) as connection:
            connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            received = b""
            while piece := connection.recv(65_536):
                received += piece
        return cls(received)

    def check(self) -> "Answer":
        """The promise that every answer keeps."""
        assert self.status < 500, (self.status, self.body)
        assert INJECTED not in self.headers
        if self.status >= 400 and self.body != b"Invalid HTTP request received.":  # the server's, before our code
            assert self.headers["content-type"] == "application/problem+json", self.body
            assert {"type", "title", "status"} <= json.loads(self.body).keys()
        return self


@pytest.fixture(scope="module")
def limits() -> dict[str, int]:
    return {"max_body_bytes": 2**20}


@pytest.fixture(scope="module")
def api(own: tuple[httpx.Client, Path]) -> tuple[str, Path, str]:
    """An API that needs no key: its URL, its data folder, and the path of the audio of a stem that it holds."""
    return str(own[0].base_url), own[1], f"/stems/{add_stem(own[0], AUDIO)}/audio"


HOSTILE_TEXT = st.one_of(
    st.text(max_size=60),
    st.sampled_from([
        "../../../../etc/passwd", "..\\..\\catalog.sqlite", "/etc/passwd", "a\0b", "\0", "%00", ".", "..", "~root",
        f"a\r\n{INJECTED}: 1", f"\r\n\r\n{INJECTED}: 1", "a" * 5000, "\u202egpj.exe", "\ufeff", "é" * 300, "'; --",
        "file:///etc/passwd", "con", "$(id)", "{{7*7}}", "-1", "9" * 400,
    ]),
)  # fmt: skip
HOSTILE_BYTES = st.one_of(st.binary(max_size=60), HOSTILE_TEXT.map(lambda text: text.encode()))
HEADER_BYTES = HOSTILE_BYTES.map(lambda value: re.sub(rb"[\r\n\0]", b" ", value))
"""What HTTP lets a header's value hold; the rest ends the header, whoever sends it."""


@EXAMPLES
@given(
    method=st.sampled_from([b"GET", b"HEAD", b"DELETE", b"PATCH", b"PUT"]),
    place=st.sampled_from(["/stems/{}", "/stems/{}/audio", "/jobs/{}", "/problems/{}", "/static/{}", "/{}"]),
    part=HOSTILE_BYTES,
    slashes=st.booleans(),
)
def test_no_id_or_path_breaks_an_answer_or_leaves_the_folder(
    api: tuple[str, Path, str], method: bytes, place: str, part: bytes, slashes: bool
) -> None:
    target = place.format(quote_from_bytes(part, safe="/" if slashes else ""))
    answer = Answer.to(api[0], method, target.encode()).check() if method != b"HEAD" else None
    assert answer is None or (b"root:" not in answer.body and b"SQLite format" not in answer.body)
    if method == b"HEAD":
        assert Answer.to(api[0], method, target.encode()).status < 500


RANGES = st.one_of(
    st.builds(lambda first, last: f"bytes={first}-{last}".encode(), *[st.integers(0, 2 * len(AUDIO))] * 2),
    st.builds(lambda first: f"bytes={first}-".encode(), st.integers(0, 2**80)),
    st.builds(lambda last: f"bytes=-{last}".encode(), st.integers(0, 2**80)),
    st.sampled_from([b"bytes=", b"bytes=-", b"bytes=0-0,2-3", b"bytes=5-2", b"chunks=0-1", b"bytes=\xb2-\xb3"]),
    HEADER_BYTES,
)


@EXAMPLES
@given(asked=RANGES, known=st.one_of(st.none(), HEADER_BYTES))
def test_any_range_gets_bytes_of_the_audio_or_a_problem(
    api: tuple[str, Path, str], asked: bytes, known: bytes | None
) -> None:
    headers = [(b"Range", asked), *([(b"If-None-Match", known)] if known is not None else [])]
    answer = Answer.to(api[0], b"GET", api[2].encode(), headers).check()
    if answer.status in (200, 206):
        assert answer.body in AUDIO
        assert len(answer.body) == int(answer.headers["content-length"])
        assert answer.status == 206 or answer.body == AUDIO
    else:
        assert answer.status in (400, 416)


@EXAMPLES
@given(file_name=HOSTILE_TEXT, said=st.one_of(st.none(), HOSTILE_TEXT), field=HOSTILE_TEXT)
def test_no_file_name_or_metadata_leaves_the_folder(
    api: tuple[str, Path, str], file_name: str, said: str | None, field: str
) -> None:
    title = {} if said is None else {"metadata": json.dumps({"title": said, "tags": [field]})}
    with client(api[0]) as sender:
        files = [("files", (file_name, AUDIO)), ("files", ("b.wav", b"no audio"))]
        uploaded = sender.post("/stems", files=files, data=title)
    assert uploaded.status_code in (202, 400, 422), uploaded.text
    if uploaded.status_code == 202:
        shown = uploaded.json()["items"][0]["file_name"]
        assert 0 < len(shown) <= LONGEST
        assert shown == service.text.shown(shown)
        assert "/" not in shown
    else:
        assert uploaded.headers["content-type"] == "application/problem+json"
    kept = [path.relative_to(api[1]).as_posix() for path in (api[1] / "audio").rglob("*") if path.is_file()]
    assert all(re.fullmatch(r"audio/[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{64}", path) for path in kept)
    assert {path.name for path in api[1].iterdir()} <= {
        "audio", "index", "checkpoints", "catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm",
        "catalog.sqlite-names",
    }  # fmt: skip
    assert [path.name for path in api[1].parent.iterdir()] == ["data"]


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(), max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(st.characters(), max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
LONE_SURROGATES = [{"title": "\ud800"}, {"\ud800": 1}, {"tags": ["\udfff"]}, {"title": None, "\udc80": {"\ud83d": []}}]


@EXAMPLES
@given(body=st.one_of(JSON, st.sampled_from(LONE_SURROGATES)), metadata=st.booleans())
def test_no_json_breaks_an_answer(api: tuple[str, Path, str], body: object, metadata: bool) -> None:
    text = json.dumps(body)
    if metadata:
        parts = f'--x\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n{text}\r\n'
        parts += '--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nno audio\r\n--x--\r\n'
        head = (b"Content-Type", b"multipart/form-data; boundary=x")
        Answer.to(api[0], b"POST", b"/stems", [head], parts.encode()).check()
    else:
        path = api[2].removesuffix("/audio").encode()
        Answer.to(api[0], b"PATCH", path, [(b"Content-Type", b"application/json")], text.encode()).check()


CONTENT_TYPES = st.one_of(
    HEADER_BYTES,
    HEADER_BYTES.map(lambda value: b"multipart/form-data; boundary=" + value),
    HEADER_BYTES.map(lambda value: b"multipart/form-data; boundary=x; charset=" + value),
    HEADER_BYTES.map(lambda value: b"application/json; charset=" + value),
)
PARTS = HOSTILE_BYTES.map(
    lambda value: b"--x\r\nContent-Disposition: form-data; name=files; filename=" + value + b"\r\n\r\na\r\n--x--\r\n"
)


@EXAMPLES
@given(
    path=st.sampled_from([b"/stems", b"/retrieve", b"/admin/reindex"]),
    content_type=CONTENT_TYPES,
    body=st.one_of(HOSTILE_BYTES, PARTS),
)
def test_no_content_type_or_body_breaks_an_answer(
    api: tuple[str, Path, str], path: bytes, content_type: bytes, body: bytes
) -> None:
    Answer.to(api[0], b"POST", path, [(b"Content-Type", content_type)], body).check()


@pytest.fixture(scope="module")
def locked(fresh: Fresh) -> Iterator[tuple[str, str]]:
    """An API that needs keys, and one that works."""
    chosen = fresh(require_keys=True, read_key="réad").model_dump(exclude_unset=True)
    (token,) = keys_of(chosen, "read")
    with serving(Settings(**chosen)) as url:
        yield url, token


@EXAMPLES
@given(value=HEADER_BYTES, scheme=st.sampled_from([b"", b"Bearer ", b"bearer ", b"Basic ", b"Bearer phalar_"]))
def test_no_authorization_but_a_key_lets_in(locked: tuple[str, str], value: bytes, scheme: bytes) -> None:
    answer = Answer.to(locked[0], b"GET", b"/stems", [(b"Authorization", scheme + value)]).check()
    assert answer.status in (400, 401)
    right = Answer.to(locked[0], b"GET", b"/stems", [(b"Authorization", b"Bearer " + locked[1].encode())])
    assert right.check().status == 200
