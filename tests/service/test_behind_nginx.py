"""The service below a path of a real nginx, configured as docs/settings.md says, and as many configure it."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from benchmarks.installation import free_port
from tests.installation import Installation, add_stem, encode, eventually, noise_bursts, retrieve, wait_ready

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:/opt/homebrew/bin")
PREFIX = "/music"
CONFIGURATION = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;
events {{}}
http {{
    access_log off; client_max_body_size 0;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location {prefix}/ {{ proxy_pass {service}/; {more} }}
    }}
}}
"""

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@pytest.fixture(scope="module")
def below(tmp_path_factory: pytest.TempPathFactory, small_checkpoint: Path) -> Iterator[Installation]:
    settings = {"PHALAR_CHECKPOINT": str(small_checkpoint), "PHALAR_ROOT_PATH": PREFIX}
    started = Installation(tmp_path_factory.mktemp("below"), settings).start()
    yield started
    started.stop()


@contextmanager
def nginx(folder: Path, service: str, more: str) -> Iterator[str]:
    """The URL of a proxy's path."""
    assert NGINX is not None
    port, file = free_port(), folder / "nginx.conf"
    file.write_text(CONFIGURATION.format(folder=folder, port=port, prefix=PREFIX, service=service, more=more))
    process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(file)])
    try:
        eventually(lambda: process.poll() is None and _answers(f"http://127.0.0.1:{port}"))
        yield f"http://127.0.0.1:{port}{PREFIX}"
    finally:
        process.terminate()
        process.wait(20)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 404
    except httpx.TransportError:
        return False


@pytest.fixture(
    scope="module", params=["", "proxy_set_header Host $http_host;"], ids=["as documented", "with its host"]
)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, below: Installation) -> Iterator[str]:
    with nginx(tmp_path_factory.mktemp("nginx"), below.url, request.param) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as opened:
        yield opened


def test_an_upload_a_search_and_their_links_work(client: httpx.Client, url: str) -> None:
    audio = encode(noise_bursts(1))
    answer = client.post("/stems", files={"files": ("stem.flac", audio)})
    assert answer.status_code == 202
    job = httpx.get(urljoin(url, answer.headers["location"]))
    assert job.json()["id"] == answer.json()["id"]
    stem_id = answer.json()["items"][0]["stem_id"]
    wait_ready(client, stem_id)
    hit = retrieve(client, audio)["hits"][0]
    assert hit["stem"]["id"] == stem_id
    heard = httpx.get(urljoin(url, hit["stem"]["audio_url"]), headers={"Range": "bytes=4-"})
    assert (heard.status_code, heard.content) == (206, audio[4:])
    assert client.delete(f"/stems/{stem_id}").status_code == 204


def test_a_redirect_stays_below_the_path(client: httpx.Client, url: str) -> None:
    stem_id = add_stem(client, encode(noise_bursts(2)))
    for path in ("/stems/", f"/stems/{stem_id}/", f"/stems/{stem_id}/audio/"):
        followed = client.get(path, follow_redirects=True)
        assert [answer.status_code for answer in (*followed.history, followed)] == [307, 200], path
        assert str(followed.url) == url + path.rstrip("/")
    above = httpx.get(url, follow_redirects=True)  # nginx's own
    assert str(above.url) == f"{url}/"


def test_the_page_and_the_docs_find_all_that_they_name(client: httpx.Client, url: str) -> None:
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.status_code == 200
        named = [part.split('"')[0] for part in page.text.replace('src="', 'href="').split('href="')[1:]]
        files = [name for name in named if name.endswith((".js", ".css", ".svg"))]
        assert files
        for name in files:
            assert httpx.get(urljoin(f"{url}{path}", name)).status_code == 200, name
    described = httpx.get(urljoin(f"{url}/docs", f"{PREFIX}/openapi.json")).json()
    assert described["servers"] == [{"url": PREFIX}]
