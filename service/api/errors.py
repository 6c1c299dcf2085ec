"""One table: error class -> HTTP status, problem type and title. Every error answers as application/problem+json."""

import logging
import math
from dataclasses import dataclass, replace
from http import HTTPStatus
from string import Formatter
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from indexer import (
    BadCursor,
    CatalogUnavailable,
    IndexUnavailable,
    JobNotFound,
    LiveMoved,
    NothingToRollBackTo,
    NulInText,
    QuotaExceeded,
    RankOutOfRange,
    SearchNotFound,
    StemNotFound,
    TooManySearches,
)
from model.audio import AudioError, SilentClip, UnknownFormat
from model.checkpoints import CheckpointError
from service.api.bodies import BodyTooLarge, BodyTooSlow
from service.api.ingest import NothingChosen
from service.api.keys import KeyMissing, KeyRefused, KeyUnknown
from service.api.metadata import BadMetadata
from service.api.mixes import MixNotFound, MixNotReady, NoMix
from service.api.orders import BadPlaced
from service.api.origins import CrossSite, UnknownHost
from service.api.placing import PlacedBeyondEnd
from service.api.ranges import RangeNotSatisfiable
from service.api.rates import TooManyRequests
from service.api.reindex import NoIndexTypes, RecallTooLow
from service.api.retrieval import QueryTimeout
from service.api.schemas import PROBLEM_TYPE, faults_of
from service.work.blobs import BlobMissing, BlobStoreUnavailable
from service.work.fitted import NoRoom
from service.work.jobs import EmbedFailed, FingerprintMismatch, KilledItsWorker, NoMemory, StemNotEmbedded, WorkersLost
from service.work.models import UnknownCheckpoint
from service.work.queue import EmbedTimeout
from service.work.streams import QueueFull, QueueUnavailable

log = logging.getLogger("phalar.http")


@dataclass(frozen=True)
class ProblemType:
    """How one kind of error looks on the wire."""

    status: int
    code: str
    title: str


# The first class of an error's line of descent that stands here decides.
TABLE: dict[type[Exception], ProblemType] = {
    UnknownFormat: ProblemType(415, "unknown-format", "Not audio that we can read"),
    SilentClip: ProblemType(422, "silent-clip", "The clip is silent"),
    AudioError: ProblemType(422, "unusable-audio", "The audio cannot be used"),
    StemNotFound: ProblemType(404, "stem-not-found", "No such stem"),
    JobNotFound: ProblemType(404, "job-not-found", "No such job"),
    SearchNotFound: ProblemType(404, "search-not-found", "No such saved search"),
    TooManySearches: ProblemType(409, "too-many-searches", "Too many saved searches"),
    NothingChosen: ProblemType(422, "nothing-chosen", "Which stems are to be changed?"),
    BadCursor: ProblemType(422, "bad-cursor", "Not a cursor of this service"),
    NulInText: ProblemType(422, "nul-in-text", "Text may not hold a NUL character"),
    NothingToRollBackTo: ProblemType(409, "nothing-to-roll-back-to", "No previous index"),
    LiveMoved: ProblemType(409, "live-moved", "Another index answers by now"),
    IndexUnavailable: ProblemType(503, "index-unavailable", "The index is not ready"),
    BlobMissing: ProblemType(503, "audio-missing", "The audio store does not hold this stem"),
    BlobStoreUnavailable: ProblemType(503, "audio-store-unavailable", "The audio store cannot be used now"),
    NoRoom: ProblemType(507, "no-room", "No room on the disk"),
    QueueFull: ProblemType(429, "queue-full", "Too much is waiting"),
    QueueUnavailable: ProblemType(503, "queue-unavailable", "The queue cannot be reached"),
    EmbedTimeout: ProblemType(503, "embedding-timed-out", "No worker answered in time"),
    EmbedFailed: ProblemType(500, "mix-not-embedded", "The mix could not be embedded"),
    NoMemory: ProblemType(503, "no-memory", "The device has no free memory"),
    WorkersLost: ProblemType(503, "workers-lost", "The workers that had the mix ended"),
    FingerprintMismatch: ProblemType(503, "fingerprint-mismatch", "No worker has the live model"),
    CheckpointError: ProblemType(422, "bad-checkpoint", "Not a checkpoint we can load"),
    KeyMissing: ProblemType(401, "key-missing", "An API key is needed"),
    KeyUnknown: ProblemType(401, "key-unknown", "Not a working API key"),
    KeyRefused: ProblemType(403, "key-refused", "This API key may not do that"),
    TooManyRequests: ProblemType(429, "too-many-requests", "Too many requests"),
    QuotaExceeded: ProblemType(413, "quota-exceeded", "The quota is used up"),
    NoMix: ProblemType(422, "no-mix", "A query needs one mix"),
    MixNotFound: ProblemType(404, "mix-not-found", "No such mix"),
    PlacedBeyondEnd: ProblemType(422, "placed-beyond-end", "Nothing is left there"),
    QueryTimeout: ProblemType(503, "query-timed-out", "The search took too long"),
    MixNotReady: ProblemType(409, "mix-not-ready", "A stem of the mix cannot be used"),
    BadPlaced: ProblemType(422, "bad-placed", "The placed stems cannot be used"),
    BadMetadata: ProblemType(422, "bad-metadata", "The metadata cannot be read"),
    RangeNotSatisfiable: ProblemType(416, "range-not-satisfiable", "No such bytes"),
    KilledItsWorker: ProblemType(500, "killed-its-worker", "The stem crashes the worker"),
    StemNotEmbedded: ProblemType(500, "embedding-failed", "The stem could not be embedded"),
    UnknownCheckpoint: ProblemType(422, "unknown-checkpoint", "No such checkpoint"),
    NoIndexTypes: ProblemType(422, "no-index-types", "This index has no types"),
    RankOutOfRange: ProblemType(422, "rank-out-of-range", "The model has no such rank"),
    RecallTooLow: ProblemType(500, "recall-too-low", "The new index misses too much"),
    UnknownHost: ProblemType(421, "unknown-host", "Not a name of this service"),
    CrossSite: ProblemType(403, "cross-site", "Sent by a page of another site"),
    BodyTooLarge: ProblemType(413, "body-too-large", "The request is too large"),
    BodyTooSlow: ProblemType(408, "body-too-slow", "The request took too long to come"),
    RequestValidationError: ProblemType(422, "invalid-request", "The request does not fit the API"),
    CatalogUnavailable: ProblemType(503, "catalog-unavailable", "The catalog cannot be reached"),
}
GONE = 499  # for our own counts: the client went before the answer
UNEXPECTED = ProblemType(500, "internal-error", "Something went wrong on our side")
TEXT_FOR_FILE = "Value error, Expected UploadFile"  # how the framework begins what it says of it
FRAMEWORK = (400, 404, 405)  # what it refuses itself: a body that cannot be read; a path, a method that there is not


def problem_type(error: Exception) -> ProblemType:
    """The row of the table for an error."""
    if isinstance(error, QueueFull) and error.kind == "queries":
        return replace(TABLE[QueueFull], status=503)
    return _row(type(error))


def all_problem_types() -> list[ProblemType]:
    """Every problem type the service can answer, by status."""
    rows = {*TABLE.values(), *map(_row, _family(AudioError)), *map(_of_status, FRAMEWORK), UNEXPECTED}
    return sorted(rows, key=lambda kind: (kind.status, kind.code))


def _row(kind: type[Exception]) -> ProblemType:
    """The nearest row in a class's line of descent; an AudioError keeps its row's status and brings its own code."""
    for ancestor in kind.__mro__:
        if ancestor in TABLE:
            found = TABLE[ancestor]
            return replace(found, code=kind.code) if issubclass(kind, AudioError) else found
    return UNEXPECTED


def _of_status(status: int) -> ProblemType:
    title = HTTPStatus(status).phrase
    return ProblemType(status, title.lower().replace(" ", "-"), title)


def _family(kind: type[AudioError]) -> list[type[AudioError]]:
    return [kind, *(member for child in kind.__subclasses__() for member in _family(child))]


def problem(error: Exception) -> dict[str, Any]:
    """What goes over the wire (RFC 9457): type, title and status, and what the error's class declares public.

    `public` of a class is a sentence with the names of its facts; both are shown. What a model's error says of a file
    is for whoever sent the file. Of all other errors only the kind is told: their text is for the log.
    """
    kind = problem_type(error)
    body = told(kind)
    if kind is UNEXPECTED:
        return body
    if isinstance(error, RequestValidationError):
        wrong = [{"at": at, "what": _plain(what)} for at, what in faults_of(error.errors())]
        detail = "; ".join(f"{fault['at']}: {fault['what']}" for fault in wrong)
        return body | {"detail": detail, "errors": wrong, "faults": len(error.errors())}
    if (sentence := getattr(type(error), "public", None)) is not None:
        facts = {name: getattr(error, name) for _, name, _, _ in Formatter().parse(sentence) if name}
        return facts | body | {"detail": sentence.format(**facts)}
    if isinstance(error, AudioError):
        return error.facts | body | {"detail": str(error)}
    return body


def _plain(said: str) -> str:
    is_text = said.startswith(TEXT_FOR_FILE)
    return "This is text: send a file, with its name (curl: @ before the path)" if is_text else said


def told(kind: ProblemType) -> dict[str, Any]:
    """What every problem of a type says."""
    return {"type": f"/problems/{kind.code}", "title": kind.title, "status": kind.status}


def problem_response(error: Exception) -> JSONResponse:
    body = problem(error)
    headers: dict[str, str] = dict(getattr(error, "headers", {}))
    if body["status"] in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(getattr(error, "retry_after_s", 2))))
    return JSONResponse(body, body["status"], headers, media_type=PROBLEM_TYPE)


def add_error_handlers(app: FastAPI) -> None:
    """Every error of every endpoint, and of the framework, goes through the table."""

    async def expected(_: Request, error: Exception) -> JSONResponse:
        if problem_type(error).status >= 500:
            log.warning("%s: %s", type(error).__name__, error)
        return problem_response(error)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem_response(error)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, OSError):  # a body that found no room on the disk is no fault of the client
            return await expected(request, BlobStoreUnavailable(str(error.__cause__)))
        body = told(_of_status(error.status_code)) | {"detail": str(error.detail)}
        return JSONResponse(body, error.status_code, dict(error.headers or {}), media_type=PROBLEM_TYPE)

    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=GONE)

    app.add_exception_handler(ClientDisconnect, gone)
    for kind in TABLE:
        app.add_exception_handler(kind, expected)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)
