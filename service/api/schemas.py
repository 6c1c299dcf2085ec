"""What goes over the wire, and how what comes in is read."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from fastapi import UploadFile
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from indexer import FactSource, Job, Kind, Stem, StemFilter, StemMetadata
from model.audio import compatible_keys
from model.audio.said import key_of_text
from service.api.placing import MOST_PLACED, Number, Placed
from service.search.retrieval import Wish
from service.text import LONGEST, BadText, said


def _said(text: str) -> str:
    try:
        return said(text)
    except BadText as error:
        raise PydanticCustomError("text", str(error)) from None


ShortText = Annotated[
    str, AfterValidator(_said), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": LONGEST})
]
Seconds = float
Milliseconds = float
ProblemBody = dict[str, Any]
PROBLEM_TYPE = "application/problem+json"
MOST_FAULTS, LONGEST_PLACE = 20, 200  # of one request that are told, and letters that say where


class Metadata(BaseModel):
    """What a person says about a stem; every field may be left out."""

    model_config = ConfigDict(extra="forbid")

    title: ShortText | None = None
    instrument: ShortText | None = None
    tags: list[ShortText] = Field(default_factory=list, max_length=50)
    track: ShortText | None = Field(None, description="the piece of music this stem belongs to")
    collection: ShortText | None = None
    tempo_bpm: float | None = Field(None, ge=1, le=1000, description="beats a minute")
    key: ShortText | None = Field(None, description="such as 'F# minor'")
    kind: Kind | None = None
    favourite: bool = False
    rating: int | None = Field(None, ge=0, le=5)

    def as_record(self) -> StemMetadata:
        return StemMetadata(**self.model_dump(exclude={"tags"}), tags=tuple(self.tags))


class Filters(BaseModel):
    """Which stems are meant; what is not given does not restrict."""

    q: ShortText | None = Field(
        None,
        description="words of the stem's title, file name, instrument, track, collection or tags, whatever their "
        "case and accents: all of them; of the last the beginning is enough",
    )
    instrument: list[ShortText] = Field(default_factory=list, max_length=1000, description="any of these")
    tag: list[ShortText] = Field(default_factory=list, max_length=50, description="all of these")
    track: list[ShortText] = Field(default_factory=list, max_length=1000, description="any of these")
    collection: list[ShortText] = Field(default_factory=list, max_length=1000, description="any of these")
    key: list[ShortText] = Field(default_factory=list, max_length=1000, description="any of these")
    key_match: Literal["exact", "compatible"] = Field(
        "exact", description="compatible: the relative key and those a fifth away too, Camelot's neighbours"
    )
    kind: list[Kind] = Field(default_factory=list, max_length=3, description="any of these")
    tempo_min: Number | None = Field(None, gt=0, description="beats a minute")
    tempo_max: Number | None = Field(None, gt=0, description="beats a minute")
    tempo_octaves: bool = Field(False, description="half and double of these tempi too")
    favourite: bool | None = Field(None, description="true: favourites alone; false: all others")
    rating_min: int | None = Field(None, ge=0, le=5, description="stems that are rated so, or better")

    def as_filter(self) -> StemFilter:
        return StemFilter(
            instruments=tuple(self.instrument),
            tags=tuple(self.tag),
            tracks=tuple(self.track),
            collections=tuple(self.collection),
            keys=tuple(self.key) if self.key_match == "exact" else _compatible(self.key),
            kinds=tuple(self.kind),
            tempo_min=self.tempo_min,
            tempo_max=self.tempo_max,
            tempo_octaves=self.tempo_octaves and (self.tempo_min, self.tempo_max) != (None, None),
            text=self.q,
            favourite=self.favourite,
            rating_min=self.rating_min,
        )


def _compatible(keys: Sequence[str]) -> tuple[str, ...]:
    """These, and those that mix with them; what is no key mixes with none."""
    found = dict.fromkeys(keys)
    for key in keys:
        with suppress(ValueError):
            found |= dict.fromkeys(compatible_keys(key_of_text(key) or ""))
    return tuple(found)


class ListIn(Filters):
    """A page of the catalog."""

    state: Literal["queued", "ready", "failed"] | None = None
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="the stem with these very bytes")
    limit: int = Field(50, ge=1, le=500)
    cursor: str | None = Field(None, max_length=40, description="`next_cursor` of the page before")


class SearchIn(Filters):
    """What is wanted of a retrieval, whatever the mix."""

    limit: int = Field(10, ge=1, le=100, description="hits wanted; with `complete`, alternatives of each")
    align: Literal["beats", "search", "grid"] = Field(
        "beats",
        description="beats: stems may be played at the mix's tempo and in keys nearby; search: all as recorded, the "
        "mix starting anywhere; grid: as recorded, the mix starting where the catalog's windows start",
    )
    tempo_bpm: Number | None = Field(None, ge=20, le=400, description="of the mix, beats a minute; none: heard")
    mix_key: ShortText | None = Field(None, description="key of the mix, such as 'F# minor'; none: heard")
    max_stretch: float = Field(
        0.12, ge=0, le=0.5, description="how far a stem's tempo may lie from the mix's, as a share of the faster one"
    )
    max_transpose: int = Field(
        2, ge=0, le=6, description="semitones that a stem may be moved, up or down; drums never are"
    )
    group_duplicates: bool = Field(
        True,
        description="of stems that are the same audio (at another rate or level, in another container) one is a hit, "
        "with its `copies`; false: each is one",
    )
    exclude: list[ShortText] = Field(default_factory=list, max_length=1000, description="ids of stems not wanted")
    exclude_track: list[ShortText] = Field(default_factory=list, max_length=1000, description="tracks not wanted")


class RetrieveIn(SearchIn):
    """A mix, and what is wanted: send either `file`, or `mix_id`, or `stem_id` once or more."""

    file: UploadFile | None = Field(None, description="the mix, in any common audio format")
    mix_id: ShortText | None = Field(None, description="of an answer: the same mix again, without another upload")
    stem_id: list[ShortText] = Field(
        default_factory=list, max_length=32, description="stems of the catalog that make up the mix; not returned"
    )
    placed: Json[list[Placed]] = Field(
        default_factory=list,
        max_length=MOST_PLACED,
        description="stems of the catalog that are mixed in before the search, which does not return them, as JSON",
    )
    complete: list[ShortText] = Field(
        default_factory=list,
        max_length=6,
        description="instruments, with commas between or repeated: the hits are then the best stem of each, and "
        "`band` has others",
    )
    saved: ShortText | None = Field(
        None, description="the name of a saved search of yours; each field that is sent stands before what it says"
    )

    @field_validator("complete", mode="before")
    @classmethod
    def _by_commas(cls, given: list[str]) -> list[str]:
        return [name for text in given for name in text.split(",")]

    @model_validator(mode="after")
    def _one_way_to_say_instruments(self) -> Self:
        if self.complete and self.instrument:
            raise PydanticCustomError("instruments", "`complete` names the instruments: leave out `instrument`")
        if len({name.casefold() for name in self.complete}) < len(self.complete):
            raise PydanticCustomError("instruments", "`complete` names an instrument twice")
        return self

    @property
    def waveforms(self) -> int:
        """How many waveforms as long as the mix the answer needs at a time."""
        return 2 if self.placed else 1

    def as_filter(self, mixed: Sequence[str] = ()) -> StemFilter:
        """The filters; a stem is never an answer to itself, nor one of the `mixed` ones, by their ids."""
        return replace(super().as_filter(), exclude=(*self.exclude, *mixed), exclude_tracks=tuple(self.exclude_track))

    def as_wish(self, mixed: tuple[int, ...] = ()) -> Wish:
        """What is asked beside the stems that may be answered. `mixed`: rows of those that make up the mix."""
        return Wish(
            limit=self.limit,
            align=self.align,
            tempo_bpm=self.tempo_bpm,
            key=self.mix_key,
            max_stretch=self.max_stretch,
            max_transpose=self.max_transpose,
            group_copies=self.group_duplicates,
            mixed=mixed,
        )


class OfStem(BaseModel):
    """What is told of a stem."""

    audio_url: str

    @classmethod
    def of(cls, stem: Stem, root_path: str) -> Self:
        return cls.model_validate({**vars(stem), "audio_url": f"{root_path}/stems/{stem.id}/audio"})


class StemOut(OfStem):
    """A stem of the catalog."""

    id: str
    file_name: str
    title: str
    instrument: str | None
    tags: list[str]
    track: str | None
    collection: str | None
    tempo_bpm: float | None
    key: str | None
    kind: Kind | None
    pitched: bool | None = Field(description="whether it plays notes; null until it was analysed")
    sources: dict[str, FactSource] = Field(
        description="where tempo_bpm, key and kind are from: said by a person, the file's tags, a chunk of it or its "
        "name, or heard"
    )
    sure: dict[str, bool] = Field(description="of what was heard, whether it is sure")
    beat_bpm: float | None = Field(description="tempo of its beats, from 84.85 to 169.7; null: none are known")
    favourite: bool
    rating: int | None = Field(description="0 to 5; null: nobody has rated it")
    duration_s: Seconds
    sample_rate: int
    channels: int
    format: str
    state: Literal["queued", "ready", "failed"]
    problem: ProblemBody | None = Field(description="why it failed")
    warnings: list[str]
    windows: int = Field(description="windows that can be found; silent ones cannot")
    sha256: str
    created_at: datetime


class StemPage(BaseModel):
    """Stems, oldest first."""

    stems: list[StemOut]
    next_cursor: str | None = Field(description="give it as `cursor` for the next page; null on the last")


class CatalogValues(BaseModel):
    """What the ready stems have in the fields that can be filtered by."""

    instruments: list[str]
    tags: list[str]
    tracks: list[str]
    collections: list[str]
    keys: list[str]
    kinds: list[Kind]
    tempo_min: float | None = Field(description="the slowest, beats a minute")
    tempo_max: float | None = Field(description="the fastest")


class JobItemOut(BaseModel):
    """One file of an ingest job."""

    model_config = ConfigDict(from_attributes=True)

    file_name: str
    stem_id: str | None
    state: Literal["queued", "ready", "failed", "deleted"]
    created: bool = Field(description="false: the same bytes were here already")
    problem: ProblemBody | None


class JobOut(BaseModel):
    """Work that outlives its request."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    kind: Literal["ingest", "reindex"]
    state: Literal["running", "done", "failed"]
    created_at: datetime
    finished_at: datetime | None
    progress: dict[str, Any] | None
    result: dict[str, Any] | None = Field(description="of a reindex; `refused`: how many files, where all were")
    problem: ProblemBody | None
    items: list[JobItemOut]

    @classmethod
    def of(cls, job: Job) -> Self:
        return cls.model_validate(job)


class WindowPair(BaseModel):
    """One window of the mix and the window of the stem that it was scored against."""

    model_config = ConfigDict(from_attributes=True)

    mix_s: Seconds = Field(description="where the mix's window starts")
    stem_s: Seconds = Field(description="where the stem's window starts")
    score: float


class CopyOut(OfStem):
    """A stem that is the same audio as a hit's."""

    id: str
    title: str
    file_name: str
    track: str | None
    collection: str | None
    format: str
    sample_rate: int
    channels: int


class HitOut(BaseModel):
    """One answer: this stem, from this second, this well."""

    rank: int
    score: float = Field(
        description="mean score of the windows below, less `cost`, `harmony_cost` and `length_cost`; of a stem in the "
        "mix's own tempo and key, the better of that and of its best place as recorded. Higher is better"
    )
    sureness: float | None = Field(
        description="of stems that score so, the share that belong to the mix, where half of all do; "
        "below 0.5 it fits no better than one drawn by chance. null: not taught, or one place was tried"
    )
    cost: float = Field(description="what playing the stem faster or slower, and in another key, took off its score")
    harmony_cost: float = Field(
        description="what its notes, all through it, took off for going badly with the mix's: 0 where both sound the "
        "same pitch classes as often, 3 where they have nothing to do with each other, up to 6 where one sounds what "
        "the other leaves out, 2.25 where it or the mix plays none"
    )
    length_cost: float = Field(
        description="what its length took off: of more places one fits better by luck. 0 for a single window, 0.28 for "
        "each doubling of windows"
    )
    speed: float = Field(description="how many times faster the stem is to be played; 1: as recorded")
    transpose: int = Field(description="semitones that it is to be moved up")
    start_s: Seconds = Field(
        description="the second of the stem that sounds together with second 0 of the mix; "
        "negative: the stem enters `-start_s / speed` after the mix has begun, but for a loop, which goes round"
    )
    stem: StemOut
    copies: list[CopyOut] = Field(description="stems that pass the filters and are the same audio, best first")
    windows: list[WindowPair]


class MixOut(BaseModel):
    """What was searched with."""

    duration_s: Seconds
    tempo_bpm: float | None = Field(description="beats a minute, half and double being the same; null: none is steady")
    first_beat_s: Seconds | None = Field(description="where a beat falls")
    key: str | None
    sources: dict[str, str] = Field(description="of tempo and key: said, or heard")
    sure: dict[str, bool] = Field(description="of what was heard: whether it is likely to be right")
    searched_from_s: Seconds
    searched_to_s: Seconds
    warnings: list[str]


class AlignOut(BaseModel):
    """Which delays of the mix against the stems' windows were tried."""

    mode: Literal["beats", "search", "grid"] = Field(description="search, where beats were asked and the mix has none")
    shift_s: Seconds = Field(description="step between the tried delays; with beats a beat")
    shifts: int = Field(description="how many were tried")
    range_s: Seconds = Field(description="the longest one; a full search reaches nearly a stride")


class IndexOut(BaseModel):
    """The index generation that answered."""

    model_config = ConfigDict(from_attributes=True)

    generation: int
    stems: int
    windows: int


class ModelOut(BaseModel):
    """The model that answered."""

    fingerprint: str
    trained: bool
    note: str | None = Field(None, description="what a user must know of it")


class SlotOut(BaseModel):
    """An instrument that was to be found, and what was."""

    instrument: str
    rank: int | None = Field(description="of the hit that plays it; null: none does")
    alternatives: list[HitOut] = Field(description="others of this instrument, best first")
    note: str | None = Field(description="why there is none")


class BandOut(BaseModel):
    """One stem of each instrument that was asked for; they are the hits."""

    slots: list[SlotOut]


class RetrieveOut(BaseModel):
    """The stems that fit, best first; with `complete` one for each instrument, in the order asked."""

    hits: list[HitOut]
    band: BandOut | None = Field(None, description="where `complete` was asked")
    mix_id: str | None = Field(
        description="to search with this mix again, for an hour from the last time (a setting); null: it is not kept"
    )
    mix: MixOut
    align: AlignOut
    exact: bool = Field(description="proven: no other stem of the catalog scores higher on the tried delays")
    index: IndexOut
    model: ModelOut
    timing_ms: dict[str, Milliseconds]


class ProblemOut(BaseModel):
    """RFC 9457; further fields hold the facts."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str | None = None


def faults_of(errors: Sequence[Any]) -> list[tuple[str, str]]:
    """The first of pydantic's errors, as where and what: a client that sends thousands need not read them all."""
    return [(".".join(map(str, e["loc"]))[:LONGEST_PLACE], e["msg"]) for e in errors[:MOST_FAULTS]]
