"""Our own HTTP interface as a client sees it: what the command line asks of a running service."""

import errno
import hashlib
import json
import os
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from typing import Any, Self

import httpx

from model.errors import Told
from service.text import shown

PATIENCE_S = 120.0  # a service that restarts, or whose queue is full, is waited for this long
LONGEST_PAUSE_S = 30.0
LAST_PORT = 65535
NOT_OF_A_FILE = {401, 403, 404, 405, 429, 503}  # refusals that would meet any other file too
FILES_AT_ONCE = 4
JOBS_AHEAD = 8  # sent and not waited for: a worker must find more to do while the next files are on their way
FIRST_POLL_S, POLL_S = 0.05, 0.5
LARGEST = 2**31  # bytes of a file: what is longer than any clip need not be read to be refused

Body = dict[str, Any]


class ServiceUnreachable(Told):
    says = "no service answers at {url}; start one with `phalar serve`"
    url: str


class BadAddress(Told, ValueError):
    says = "{url!r} is not an address such as http://127.0.0.1:8000"
    url: str


class BadKey(Told, ValueError):
    says = "an API key has ASCII letters, digits and signs only"


class BadProxy(Told):
    says = "the proxy that the environment names cannot be used: {why}"
    why: str


class Refused(Exception):
    """The service answered with a problem."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        title, detail = problem.get("title", "refused"), problem.get("detail")
        super().__init__(f"{title}: {detail}" if detail else str(title))
        self.problem = problem


@dataclass(frozen=True)
class NewStem:
    """A file to be ingested, and what is said about it; `part`: of a stem file, the stream that is meant."""

    path: Path
    metadata: Mapping[str, Any]
    part: int | None = None

    @property
    def name(self) -> str:
        """What it is sent as."""
        return shown(self.path.name if self.part is None else f"{self.path.name}.{self.part}.m4a")

    @property
    def title(self) -> str:
        """What the service calls it."""
        return self.metadata.get("title") or self.name.rpartition(".")[0].strip() or self.name

    def read(self) -> bytes:
        """Its bytes. Raises OSError."""
        if self.part is None:
            return self.path.read_bytes()
        from model.audio import stem_of_file

        return stem_of_file(self.path, self.part)

    def sha256(self) -> str:
        """Of its bytes. Raises OSError."""
        if self.part is not None:
            return hashlib.sha256(self.read()).hexdigest()
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What became of one file: its stem, or the problem that kept it out. `known`: the bytes were there already.

    `sha256`: of its bytes; None: they could not be read.
    """

    file: NewStem
    stem_id: str | None
    problem: Mapping[str, Any] | None
    known: bool = False
    sha256: str | None = None


class Client:
    """A session with a service.

    Args:
        url: where it listens, a prefix of a proxy included.
        key: of the service, where it wants one.
        timeout_s: how long it may take to answer.
        patience_s: how long it is waited for where it restarts after it has answered, or says `Retry-After`.

    Raises (every method):
        ServiceUnreachable: nobody answers.
        Refused: the service said no.
    """

    def __init__(
        self, url: str, key: str | None = None, timeout_s: float = 120.0, patience_s: float = PATIENCE_S
    ) -> None:
        """Raises BadAddress, BadKey, BadProxy."""
        self.url, here = _address(url)
        if key and not re.fullmatch("[!-~]+", key):
            raise BadKey
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=not here)
        except (ImportError, ValueError) as error:  # socks5://, say, which needs one more package
            raise BadProxy(str(error)) from error
        self._patience_s = patience_s
        self._answered = False
        self.unsettled = 0  # files of an ingest that the service has taken, of which nothing was told yet

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def readiness(self) -> Body:
        """/readyz, whatever its status."""
        return _json(self._answer("GET", "/readyz", also=(503,)))

    def stem_with(self, sha256: str) -> Body | None:
        """The stem that has these bytes."""
        found = self._body("GET", "/stems", params={"sha256": sha256})["stems"]
        return found[0] if found else None

    def stems(self, filters: Mapping[str, Any], limit: int) -> Iterator[Body]:
        """The stems that pass the filters, oldest first, so many at most."""
        asked: Body = {name: value for name, value in filters.items() if value not in (None, [])}
        while limit > 0:
            page = self._body("GET", "/stems", params=asked | {"limit": min(limit, 500)})
            yield from page["stems"]
            limit -= len(page["stems"])
            if page["next_cursor"] is None:
                return
            asked["cursor"] = page["next_cursor"]

    def stem(self, stem_id: str) -> Body | None:
        """One stem; None: it was deleted."""
        answer = self._answer("GET", f"/stems/{stem_id}", also=(404,))
        return None if answer.status_code == 404 else _json(answer)

    def change(self, stem_id: str, said: Mapping[str, Any]) -> Body:
        """PATCH /stems/{id}."""
        return self._body("PATCH", f"/stems/{stem_id}", json=dict(said))

    def delete(self, stem_id: str) -> None:
        """Take a stem out; one that is gone already is no error."""
        try:
            self._answer("DELETE", f"/stems/{stem_id}")
        except Refused as error:
            if error.problem.get("status") != 404:
                raise

    def retrieve(self, mix: Path | None, form: Mapping[str, Any]) -> Body:
        """POST /retrieve. Raises OSError: the mix cannot be read."""
        return _json(self._with_mix("/retrieve", mix, form))

    def export(self, mix: Path, form: Mapping[str, Any]) -> bytes:
        """POST /export; the ZIP. Raises OSError: the mix cannot be read."""
        return self._with_mix("/export", mix, form).content

    def reindex(self, checkpoint: str | None, rank: int | None, index_type: str | None = None) -> Body:
        """POST /admin/reindex; the job."""
        wanted = {"checkpoint": checkpoint, "rank": rank, "index_type": index_type}
        return self._body("POST", "/admin/reindex", json=wanted)

    def roll_back(self) -> Body:
        """POST /admin/rollback. Never asked twice: the second time would undo the first."""
        return _json(self._answer("POST", "/admin/rollback", twice=False))

    def follow(self, job: Body, seen: Callable[[Body], None] = lambda _: None) -> Body:
        """Wait until a job has ended; `seen` is called with every state on the way."""
        pause = FIRST_POLL_S
        while job["state"] == "running":
            time.sleep(pause)
            pause = min(2 * pause, POLL_S)
            job = self._body("GET", f"/jobs/{job['id']}")
            seen(job)
        return job

    def ingest(self, files: Iterable[NewStem], *, wait: bool = True) -> Iterator[Outcome]:
        """Upload files, a few at a time, and tell what became of each, in order.

        Files whose bytes the service has already are not sent again, so an ingest that was cut off goes on where it
        stopped. A file that cannot be used keeps no other out.
        """
        jobs: deque[tuple[Sequence[tuple[NewStem, str]], Body]] = deque()
        left = iter(files)
        for group in iter(lambda: list(islice(left, FILES_AT_ONCE)), []):
            unknown: list[tuple[NewStem, str]] = []
            audio: list[bytes] = []
            for file in group:
                try:
                    if file.path.stat().st_size > LARGEST:
                        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
                    sha256 = file.sha256()
                    stem = self.stem_with(sha256)
                    if stem is None or stem["state"] == "failed":
                        audio.append(file.read())
                        unknown.append((file, sha256))
                        continue
                except OSError as error:
                    yield Outcome(file, None, {"title": error.strerror or str(error)})
                    continue
                yield Outcome(file, stem["id"], None, True, sha256)
            if unknown:
                jobs.append((unknown, self._upload([file for file, _ in unknown], audio)))
                self.unsettled += len(unknown)
            while jobs and (len(jobs) > JOBS_AHEAD or not wait):
                yield from self._outcomes(*jobs.popleft(), wait=wait)
        while jobs:
            yield from self._outcomes(*jobs.popleft(), wait=wait)

    def _upload(self, files: Sequence[NewStem], audio: Sequence[bytes]) -> Body:
        """One POST /stems. Where the service refuses them together, each is sent alone; what is refused alone is told
        as a job of one failed item."""
        parts = [("files", (file.name, sound)) for file, sound in zip(files, audio, strict=True)]
        said = json.dumps([dict(file.metadata) for file in files])
        try:
            return self._body("POST", "/stems", files=parts, data={"metadata": said})
        except Refused as error:
            if error.problem.get("status") in NOT_OF_A_FILE:
                raise
            if len(files) > 1:
                alone = [self._upload([file], [sound]) for file, sound in zip(files, audio, strict=True)]
                items = [item for job in alone for item in self._settled(job)["items"]]
            else:
                items = [{"stem_id": None, "state": "failed", "problem": error.problem}]
            return {"id": None, "state": "done", "items": items}

    def _settled(self, job: Body) -> Body:
        return job if job["id"] is None else self.follow(job)

    def _outcomes(self, files: Sequence[tuple[NewStem, str]], job: Body, *, wait: bool) -> Iterator[Outcome]:
        job = self._settled(job) if wait else job
        for (file, sha256), item in zip(files, job["items"], strict=True):
            self.unsettled -= 1
            yield Outcome(file, item["stem_id"], item["problem"] if item["state"] == "failed" else None, False, sha256)

    def _with_mix(self, path: str, mix: Path | None, form: Mapping[str, Any]) -> httpx.Response:
        """A POST whose mix is read while it is sent: it may be longer than memory is large. A pipe is read first."""
        if mix is None:
            return self._answer("POST", path, data=dict(form))
        with mix.open("rb") as file:
            audio = file if file.seekable() else file.read(LARGEST)
            return self._answer("POST", path, files={"file": (shown(mix.name), audio)}, data=dict(form))

    def _body(self, method: str, path: str, **request: Any) -> Body:
        return _json(self._answer(method, path, **request))

    def _answer(
        self, method: str, path: str, *, twice: bool = True, also: Collection[int] = (), **request: Any
    ) -> httpx.Response:
        """The answer, after waiting for a service that restarts or says when to come back.

        Args:
            twice: the request may be made again where nobody knows whether it was heard.
            also: statuses that are an answer, beside those of success.
        """
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                answer = self._http.request(method, path, **request)
            except httpx.TransportError as error:
                if not (twice and self._answered) or time.monotonic() > deadline:
                    raise ServiceUnreachable(self.url) from error
                pause = 1.0
            else:
                self._answered = True
                busy = answer.status_code == 429 or (answer.status_code == 503 and twice)
                if not busy or answer.status_code in also or time.monotonic() > deadline:
                    return answer if answer.status_code in also else _checked(answer)
                pause = _retry_after_s(answer)
            time.sleep(pause)


def _address(url: str) -> tuple[str, bool]:
    """It without a slash at its end; and whether it is this machine by plain HTTP, to which no proxy leads."""
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise BadAddress(url) from None
    if parts.scheme not in ("http", "https") or not parts.host or (parts.port or 0) > LAST_PORT:
        raise BadAddress(url)
    here = parts.host in ("localhost", "::1") or parts.host.startswith("127.")
    return url.rstrip("/"), here and parts.scheme == "http"


def _retry_after_s(answer: httpx.Response) -> float:
    """Retry-After, which is a number of seconds or a date; a second where it says neither."""
    said = answer.headers.get("retry-after", "")
    try:
        seconds = float(said) if not said[-1:].isalpha() else parsedate_to_datetime(said).timestamp() - time.time()
    except ValueError:
        seconds = 1.0
    return min(LONGEST_PAUSE_S, max(0.05, seconds))


def _told(answer: httpx.Response) -> Body | None:
    """What it says as JSON; None: nothing of this service."""
    try:
        body = answer.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _json(answer: httpx.Response) -> Body:
    if (body := _told(answer)) is None:
        raise Refused({"title": "What answers there is not Phalar Retrieval", "status": answer.status_code})
    return body


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    raise Refused({"status": answer.status_code, **(_told(answer) or {"title": f"HTTP {answer.status_code}"})})
