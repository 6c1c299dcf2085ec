"""The catalog's tables. The queries stand in stems.py, embeddings.py, generations.py, jobs.py, keys.py and quotas.py.

A change here is a new file in `migrations/versions` too; a test compares the two on SQLite and PostgreSQL.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    func,
    text,
)
from sqlalchemy import String as AnyString
from sqlalchemy.types import TypeDecorator

from indexer.catalog.caseless import FILTERED
from indexer.catalog.records import NulInText

metadata = MetaData()


class String(TypeDecorator[str]):
    """Text in a column or compared with one. Raises NulInText for "\\0", which PostgreSQL cannot store: both databases
    refuse the same."""

    impl = AnyString
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is not None and "\0" in value:
            raise NulInText
        return value


clock = Table("clock", metadata, Column("id", Integer, primary_key=True), Column("value", Integer, nullable=False))

stems = Table(
    "stems",
    metadata,
    Column("row", Integer, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("sha256", String(64), unique=True),  # NULL once deleted, so the same bytes may come again
    Column("file_name", String, nullable=False),
    Column("title", String, nullable=False),
    Column("instrument", String, index=True),
    Column("track", String, index=True),
    Column("collection", String, index=True),
    Column("tempo_bpm", Float),
    Column("key", String),
    Column("format", String, nullable=False),
    Column("duration_s", Float, nullable=False),
    Column("sample_rate", Integer, nullable=False),
    Column("channels", Integer, nullable=False),
    Column("warnings", JSON(none_as_null=True), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("problem", JSON(none_as_null=True)),
    Column("windows", Integer, nullable=False, default=0),
    Column("created_at", Float, nullable=False),
    Column("seq", Integer, nullable=False, index=True),
    *(Column(f"{name}_caseless", String, index=True) for name in FILTERED),
    Column("kind", String(16)),  # loop, one-shot or piece
    Column("pitched", Boolean),  # plays notes; NULL until a worker has analysed it
    Column("sources", JSON(none_as_null=True)),  # of tempo_bpm, key and kind: said, tags, chunk, name or heard
    Column("sure", JSON(none_as_null=True)),  # of what was heard
    Column("said_beats", Float),  # beats of the whole clip
    Column("beat_bpm", Float, index=True),  # tempo of its grid, folded into one octave; NULL: no grid
    Column("beats_s", LargeBinary),  # float64: the grid
    Column("music_warnings", JSON(none_as_null=True)),  # the analysis's, which the next one replaces
    Column("chroma", LargeBinary),  # float32 (12,): how much of each pitch class sounds in it
    Column("words", String),  # that are searched, folded; NULL once deleted. SQLite's index is made in migration 0005
    Column("favourite", Boolean, index=True),  # NULL: no
    Column("rating", Integer, index=True),  # 0 to 5
    sqlite_autoincrement=True,  # a row number is never used twice: the index would take a new stem for a deleted one
)

Index(
    "ix_stems_words", func.array_to_tsvector(func.string_to_array(stems.c.words, text("' '"))), postgresql_using="gin"
).ddl_if("postgresql")

stem_tags = Table(
    "stem_tags",
    metadata,
    Column("stem_row", ForeignKey("stems.row", ondelete="CASCADE"), primary_key=True),
    Column("tag", String, primary_key=True),
    Column("caseless", String),
    Index("ix_stem_tags_tag", "tag"),
    Index("ix_stem_tags_caseless", "caseless"),
)

WINDOW_BYTES = 8  # of `windows`, for each

embeddings = Table(
    "embeddings",
    metadata,
    Column("stem_row", ForeignKey("stems.row", ondelete="CASCADE"), primary_key=True),
    Column("fingerprint", String(64), primary_key=True),
    Column("windows", LargeBinary, nullable=False),  # int64 (n,): which windows; silent ones are left out
    Column("starts_s", LargeBinary, nullable=False),  # float64 (n,)
    Column("embedding", LargeBinary, nullable=False),  # complex64 (n, D)
    Column("problem", JSON(none_as_null=True)),  # why this model could not; the three above are empty
    Column("beats", LargeBinary),  # float64 (n,): the beat that a window begins on, NaN in clock time; NULL: see `laid`
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("created_at", Float, nullable=False),
    Column("finished_at", Float),
    Column("request", JSON(none_as_null=True), nullable=False),
    Column("progress", JSON(none_as_null=True)),
    Column("result", JSON(none_as_null=True)),
    Column("problem", JSON(none_as_null=True)),
)

job_items = Table(
    "job_items",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("file_name", String, nullable=False),
    Column("stem_row", ForeignKey("stems.row")),
    Column("created", Integer, nullable=False),
    Column("problem", JSON(none_as_null=True)),
)

generations = Table(
    "generations",
    metadata,
    Column("generation", Integer, primary_key=True, autoincrement=True),
    Column("fingerprint", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    sqlite_autoincrement=True,
)

aliases = Table(
    "aliases",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("generation", ForeignKey("generations.generation"), nullable=False),
    Column("previous", ForeignKey("generations.generation")),
    Column("configured", String(64), nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("digest", String(64), nullable=False),  # SHA-256 of the token, hex
    Column("name", String(200), nullable=False),
    Column("scope", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("last_used_at", Float),
    Column("revoked_at", Float),  # a row stays, so that its id is never given again and its stems keep an owner
)

quota_usage = Table(
    "quota_usage",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("stems", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
)

quota_holdings = Table(
    "quota_holdings",
    metadata,
    Column("stem_row", ForeignKey("stems.row", ondelete="CASCADE"), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
)

searches = Table(
    "searches",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("name", String, primary_key=True),
    Column("wanted", JSON, nullable=False),
    Column("saved_at", Float, nullable=False),
)
