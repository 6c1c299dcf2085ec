"""What the catalog gives and takes: stems, their embeddings, filters, jobs; and the errors it raises."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.exc import DontWrapMixin

from model.errors import Told

StemState = Literal["queued", "ready", "failed", "deleted"]
JobState = Literal["running", "done", "failed"]
Problem = Mapping[str, Any]
Kind = Literal["loop", "one-shot", "piece"]
FactSource = Literal["said", "tags", "chunk", "name", "heard"]
"""Where a stem's tempo, key or kind is from; the first of these that knows it is believed."""


class CatalogError(Told):
    """Something asked of the catalog cannot be. What a client may read of it, its class says in `public`."""


class StemNotFound(CatalogError):
    public = "No stem has the id {stem_id!r}."
    stem_id: str


class JobNotFound(CatalogError):
    public = "No job has the id {job_id!r}."
    job_id: str


class ApiKeyNotFound(CatalogError):
    says = "no API key has the id {key_id!r}"
    key_id: str


class SearchNotFound(CatalogError):
    public = "You have saved no search named {name!r}."
    name: str


class TooManySearches(CatalogError):
    public = "You have saved {maximum} searches, which is all you may: delete one first."
    maximum: int


class NothingToRollBackTo(CatalogError):
    public = "There is no previous index to go back to."


class LiveMoved(CatalogError):
    public = "Generation {generation} answers by now, not {instead_of}, which the new index was to replace."
    generation: int
    instead_of: int


class BadCursor(CatalogError):
    public = "{cursor!r} is not a cursor of this service."
    cursor: str


class NulInText(CatalogError, DontWrapMixin):
    """A NUL character, which no text of the catalog can hold."""

    public = "Text may not hold a NUL character."


class CatalogUnavailable(CatalogError):
    """The database does not answer or take changes, although it was tried again for a few seconds.

    `full`: its disk is.
    """

    says = "the catalog cannot be reached"
    reason: str  # for the log: it may name hosts
    full: bool = False


class UnsupportedDatabase(CatalogError):
    says = "a catalog lies in a file, sqlite+aiosqlite:///..., or on a server, postgresql+asyncpg://..., not in {found}"
    found: str


class NewerSchema(CatalogError):
    says = (
        "the catalog has schema {found} and this release knows schemas up to {known}: "
        "run the release that made it, or a newer one"
    )
    found: str
    known: str


class ForeignTables(CatalogError):
    tables: tuple[str, ...]

    def __str__(self) -> str:
        return f"the database holds tables of something else ({', '.join(self.tables)}); give the catalog its own"


@dataclass(frozen=True)
class StemMetadata:
    """What a person says about a stem. All of it can be changed later and is used for filters."""

    title: str | None = None
    instrument: str | None = None
    tags: tuple[str, ...] = ()
    track: str | None = None
    collection: str | None = None
    tempo_bpm: float | None = None
    key: str | None = None
    kind: Kind | None = None
    favourite: bool = False
    rating: int | None = None


@dataclass(frozen=True)
class ClipFacts:
    """What decoding an upload showed."""

    format: str
    duration_s: float
    sample_rate: int
    channels: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class SaidMusic:
    """What was said of a stem's music before anybody listened: by its uploader, its file, its name.

    sources: of tempo_bpm, key and kind, see FactSource. `beats`: of the whole clip. `warnings`: of what cannot be read,
    and of contradictions.
    """

    tempo_bpm: float | None = None
    key: str | None = None
    kind: str | None = None
    beats: float | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stem:
    """One stem of the catalog, as it is shown."""

    row: int
    id: str
    sha256: str
    file_name: str
    title: str
    instrument: str | None
    tags: tuple[str, ...]
    track: str | None
    collection: str | None
    tempo_bpm: float | None
    key: str | None
    kind: str | None
    pitched: bool | None
    sources: Mapping[str, str]
    sure: Mapping[str, bool]
    beat_bpm: float | None
    favourite: bool
    rating: int | None
    format: str
    duration_s: float
    sample_rate: int
    channels: int
    warnings: tuple[str, ...]
    state: StemState
    problem: Problem | None
    windows: int
    created_at: float


@dataclass(frozen=True)
class StemJob:
    """What a worker needs to know of a stem before it embeds it.

    Facts whose source is "heard" are of an analysis before this one.
    """

    row: int
    id: str
    sha256: str
    state: StemState
    duration_s: float
    track: str | None
    tempo_bpm: float | None
    key: str | None
    kind: str | None
    sources: Mapping[str, str]
    said_beats: float | None


@dataclass(frozen=True, eq=False)
class StemMusic:
    """What is known of a stem's music once it was analysed.

    sources: of tempo_bpm, key and kind, see FactSource; sure: of what was heard. beats_s: float64 seconds of its grid,
    whose tempo is folded into one octave, and beat_bpm that tempo; None: it has no beat time. `warnings` are beside
    those of decoding. chroma: float32 (12,), how much of each pitch class sounds in all of it, see `harmony.chroma_of`;
    None: it plays no notes, or was analysed before that was kept.
    """

    kind: str
    pitched: bool
    tempo_bpm: float | None
    key: str | None
    sources: Mapping[str, str]
    sure: Mapping[str, bool]
    beats_s: NDArray[np.float64] | None
    beat_bpm: float | None
    warnings: tuple[str, ...] = ()
    chroma: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class StemEmbeddings:
    """A stem's embedded windows under one fingerprint.

    windows: int64 (n,), ascending; starts_s: float64 (n,), seconds; beats: float64 (n,), the beat of the stem's grid on
    which each begins, NaN for one in clock time; embedding: complex64 (n, D), unit norm; chroma: of the stem, see
    StemMusic.
    """

    windows: NDArray[np.int64]
    starts_s: NDArray[np.float64]
    beats: NDArray[np.float64]
    embedding: NDArray[np.complex64]
    chroma: NDArray[np.float32] | None = None

    @classmethod
    def in_clock_time(
        cls, windows: NDArray[np.int64], starts_s: NDArray[np.float64], embedding: NDArray[np.complex64]
    ) -> Self:
        """Of a stem without beats."""
        return cls(windows, starts_s, np.full(len(windows), np.nan), embedding)

    def some(self, which: Any) -> Self:
        """The same stem with these of its windows: a mask, or positions."""
        windows, starts_s, beats = self.windows[which], self.starts_s[which], self.beats[which]
        return replace(self, windows=windows, starts_s=starts_s, beats=beats, embedding=self.embedding[which])


@dataclass(frozen=True)
class Changes:
    """What happened after some clock value: stems to put in (or again), stems to take out, and up to which value."""

    upserted: dict[int, StemEmbeddings]
    removed: frozenset[int]
    seq: int


@dataclass(frozen=True)
class StemFilter:
    """Which stems may be answered. Empty fields do not restrict; several values of one field are alternatives,
    except tags, which must all be there."""

    instruments: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    tracks: tuple[str, ...] = ()
    collections: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    tempo_min: float | None = None
    tempo_max: float | None = None
    tempo_octaves: bool = False  # half and double tempo are meant too
    kinds: tuple[str, ...] = ()
    beat_bpm: tuple[float, float] | None = None  # from, to; around the octave's end where `to` is the lower
    as_recorded_bpm: tuple[float, float] | None = None  # the same, of stems that have one
    in_beat_time: bool | None = None  # whether it has a beat grid
    text: str | None = None  # all of its words are in the stem's names, instrument, track, collection or tags
    favourite: bool | None = None
    rating_min: int | None = None
    exclude: tuple[str, ...] = ()
    exclude_tracks: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return self == StemFilter()


@dataclass(frozen=True)
class JobItem:
    """One file of an ingest job; its state is its stem's."""

    file_name: str
    stem_id: str | None
    state: StemState
    created: bool
    problem: Problem | None


@dataclass(frozen=True)
class Job:
    """A piece of work that outlives its request."""

    id: str
    kind: Literal["ingest", "reindex"]
    state: JobState
    created_at: float
    finished_at: float | None
    request: Mapping[str, Any]
    progress: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    problem: Problem | None
    items: tuple[JobItem, ...] = ()


@dataclass(frozen=True)
class Alias:
    """Which generation answers, which one did before, and which fingerprint the settings asked for at that time."""

    generation: int
    fingerprint: str
    previous: int | None
    previous_fingerprint: str | None
    configured: str


@dataclass(frozen=True)
class Upload:
    """One accepted file of POST /stems."""

    sha256: str
    file_name: str
    metadata: StemMetadata
    facts: ClipFacts | None  # None: a stem has these bytes already
    music: SaidMusic | None = None  # of its metadata and its file; None: the metadata says all


@dataclass(frozen=True)
class Rejected:
    """One refused file of POST /stems."""

    file_name: str
    problem: Problem
