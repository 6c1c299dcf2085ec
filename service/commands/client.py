"""Our own HTTP interface as a client sees it: what the command line asks of a running service."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

PATIENCE_S = 120.0  # a service that restarts, or whose queue is full, is waited for this long
FILES_AT_ONCE = 4
JOBS_AHEAD = 8  # sent and not waited for: a worker must find more to do while the next files are on their way
FIRST_POLL_S, POLL_S = 0.05, 0.5

Body = dict[str, Any]


class ServiceUnreachable(Exception):
    """Nobody answers at the URL."""

    def __init__(self, url: str) -> None:
        super().__init__(f"no service answers at {url}; start one with `phalar serve`")
        self.url = url


class Refused(Exception):
    """The service answered with a problem."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        title, detail = problem.get("title", "refused"), problem.get("detail")
        super().__init__(f"{title}: {detail}" if detail else str(title))
        self.problem = problem


@dataclass(frozen=True)
class NewStem:
    """A file to be ingested, and what is said about it."""

    path: Path
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of one file: its stem, or the problem that kept it out. `known`: the bytes were there already."""

    path: Path
    stem_id: str | None
    problem: Mapping[str, Any] | None
    known: bool = False


class Client:
    """A session with a service.

    Raises (every method):
        ServiceUnreachable: nobody answers, after some patience where waiting can help.
        Refused: the service said no.
    """

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 120.0) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def readiness(self) -> Body:
        """/readyz, whatever its status."""
        return self._once("GET", "/readyz").json()  # type: ignore[no-any-return]

    def stem_with(self, sha256: str) -> Body | None:
        """The stem that has these bytes."""
        found = self._body("GET", "/stems", params={"sha256": sha256})["stems"]
        return found[0] if found else None

    def retrieve(self, mix: Path | None, form: Mapping[str, Any]) -> Body:
        """POST /retrieve."""
        if mix is None:
            return self._body("POST", "/retrieve", data=dict(form))
        with mix.open("rb") as file:
            return self._body("POST", "/retrieve", files={"file": (mix.name, file)}, data=dict(form))

    def reindex(self, checkpoint: str | None, rank: int | None, index_type: str | None = None) -> Body:
        """POST /admin/reindex; the job."""
        wanted = {"checkpoint": checkpoint, "rank": rank, "index_type": index_type}
        return self._body("POST", "/admin/reindex", json=wanted)

    def roll_back(self) -> Body:
        """POST /admin/rollback."""
        return self._body("POST", "/admin/rollback")

    def follow(self, job: Body, seen: Callable[[Body], None] = lambda _: None) -> Body:
        """Wait until a job has ended; `seen` is called with every state on the way."""
        pause = FIRST_POLL_S
        while job["state"] == "running":
            time.sleep(pause)
            pause = min(2 * pause, POLL_S)
            job = self._patiently("GET", f"/jobs/{job['id']}").json()
            seen(job)
        return job

    def ingest(self, files: Iterable[NewStem], *, wait: bool = True) -> Iterator[Outcome]:
        """Upload files, a few at a time, and tell what became of each, in order.

        Files whose bytes the service has already are not sent again, so an ingest that was cut off goes on where it
        stopped. A file that cannot be used keeps no other out.
        """
        jobs: list[tuple[Sequence[NewStem], Body]] = []
        for group in _groups(files, FILES_AT_ONCE):
            unknown = []
            for file in group:
                try:
                    stem = self.stem_with(_sha256(file.path))
                except OSError as error:
                    yield Outcome(file.path, None, {"title": "Cannot be read", "detail": str(error)})
                    continue
                if stem is not None and stem["state"] != "failed":
                    yield Outcome(file.path, stem["id"], None, known=True)
                else:
                    unknown.append(file)
            if unknown:
                jobs.append((unknown, self._upload(unknown)))
            while jobs and (len(jobs) > JOBS_AHEAD or not wait):
                yield from self._outcomes(*jobs.pop(0), wait=wait)
        for job in jobs:
            yield from self._outcomes(*job, wait=wait)

    def _upload(self, files: Sequence[NewStem]) -> Body:
        """One POST /stems; a single bad file, which is refused outright, is told as a job of one failed item."""
        parts = [("files", (file.path.name, file.path.read_bytes())) for file in files]
        said = json.dumps([dict(file.metadata) for file in files])
        try:
            answer = self._patiently("POST", "/stems", files=parts, data={"metadata": said})
        except Refused as error:
            if len(files) > 1 and error.problem.get("status") == 413:
                items = [item for file in files for item in self._upload([file])["items"]]
            elif len(files) == 1 and error.problem.get("status") in (413, 415, 422):
                items = [{"stem_id": None, "state": "failed", "problem": error.problem}]
            else:
                raise
            return {"id": None, "state": "done", "items": items}
        return answer.json()  # type: ignore[no-any-return]

    def _outcomes(self, files: Sequence[NewStem], job: Body, *, wait: bool) -> Iterator[Outcome]:
        if wait and job["id"] is not None:
            job = self.follow(job)
        for file, item in zip(files, job["items"], strict=True):
            yield Outcome(file.path, item["stem_id"], item["problem"] if item["state"] == "failed" else None)

    def _body(self, method: str, path: str, **request: Any) -> Body:
        return _checked(self._once(method, path, **request)).json()  # type: ignore[no-any-return]

    def _once(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **request)
        except httpx.TransportError as error:
            raise ServiceUnreachable(self.url) from error

    def _patiently(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The answer, after waiting for a service that restarts or says `Retry-After`."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = self._once(method, path, **request)
            except ServiceUnreachable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)
                continue
            if answer.status_code not in (429, 503) or time.monotonic() > deadline:
                return _checked(answer)
            time.sleep(min(30.0, float(answer.headers.get("retry-after", 1))))


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    try:
        problem = answer.json()
    except ValueError:
        problem = {"title": f"HTTP {answer.status_code}", "status": answer.status_code}
    raise Refused(problem if isinstance(problem, dict) else {"title": str(problem)})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _groups(files: Iterable[NewStem], size: int) -> Iterator[list[NewStem]]:
    group: list[NewStem] = []
    for file in files:
        group.append(file)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
