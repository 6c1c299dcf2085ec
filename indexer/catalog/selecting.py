"""Which stems a filter means, and stems as they are shown, each with its tags."""

import math
from collections.abc import Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any

from sqlalchemy import Row, Select, and_, exists, or_, select
from sqlalchemy.sql.elements import ColumnElement

from indexer.catalog.caseless import caseless
from indexer.catalog.records import Stem, StemFilter
from indexer.catalog.tables import stem_tags, stems
from indexer.catalog.words import holds_words, stem_words

WRITTEN_BPM = 0.005  # tempi are written to two decimals, and a loop's length tells more of them
STEM_FIELDS = {field.name for field in fields(Stem)} - {"tags"}
_SHOWN = [stems.c[name] for name in (*sorted(STEM_FIELDS), "music_warnings")]


def tagged(where: ColumnElement[bool], limit: int | None = None, row: ColumnElement[int] = stems.c.row) -> Select[Any]:
    """Stems that were not deleted, by ascending `row`, each once for each of its tags, or once without one."""
    some = select(*_SHOWN).where(where, stems.c.state != "deleted").order_by(row).limit(limit).subquery()
    joined = some.join(stem_tags, stem_tags.c.stem_row == some.c.row, isouter=True)
    return select(some, stem_tags.c.tag).select_from(joined).order_by(some.c.row)


def stems_of(records: Sequence[Row[Any]]) -> list[Stem]:
    """The stems of what `tagged` found."""
    return [_stem(list(group)) for _, group in groupby(records, key=lambda record: int(record.row))]


def _stem(records: Sequence[Row[Any]]) -> Stem:
    """A stem from its row, once for each of its tags."""
    shown = {name: value for name, value in records[0]._mapping.items() if name in STEM_FIELDS}
    shown["warnings"] = (*shown["warnings"], *(records[0].music_warnings or ()))
    shown |= {name: shown[name] or {} for name in ("sources", "sure")}
    shown["favourite"] = bool(shown["favourite"])
    return Stem(**shown, tags=tuple(sorted(record.tag for record in records if record.tag is not None)))


def fast_order(wanted: StemFilter, *, postgresql: bool) -> ColumnElement[int]:
    """The row by which a page of these stems is ordered and cut: in SQLite a search for words ends after a page by its
    own rows only."""
    return stem_words.c.rowid if wanted.text is not None and not postgresql else stems.c.row


def conditions(wanted: StemFilter, *, postgresql: bool) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = []
    for column, values in (
        (stems.c.instrument_caseless, wanted.instruments),
        (stems.c.track_caseless, wanted.tracks),
        (stems.c.collection_caseless, wanted.collections),
        (stems.c.key_caseless, wanted.keys),
    ):
        if values:
            where.append(column.in_(map(caseless, values)))
    if wanted.kinds:
        where.append(stems.c.kind.in_(wanted.kinds))
    for tag in wanted.tags:
        where.append(exists().where(stem_tags.c.stem_row == stems.c.row, stem_tags.c.caseless == caseless(tag)))
    if wanted.tempo_min is not None or wanted.tempo_max is not None:
        slowest = (wanted.tempo_min or 0.0) - WRITTEN_BPM
        fastest = (math.inf if wanted.tempo_max is None else wanted.tempo_max) + WRITTEN_BPM
        octaves = (0.5, 1.0, 2.0) if wanted.tempo_octaves else (1.0,)
        where.append(or_(*(stems.c.tempo_bpm.between(slowest * by, fastest * by) for by in octaves)))
    if wanted.beat_bpm is not None:
        where.append(_within(wanted.beat_bpm))
    if wanted.as_recorded_bpm is not None:
        where.append(or_(stems.c.beat_bpm.is_(None), _within(wanted.as_recorded_bpm)))
    if wanted.in_beat_time is not None:
        where.append(stems.c.beat_bpm.is_not(None) if wanted.in_beat_time else stems.c.beat_bpm.is_(None))
    if wanted.text is not None:
        where.append(holds_words(wanted.text, postgresql=postgresql))
    if wanted.favourite is not None:
        where.append(stems.c.favourite.is_(True) if wanted.favourite else stems.c.favourite.is_not(True))
    if wanted.rating_min is not None:
        where.append(stems.c.rating >= wanted.rating_min)
    if wanted.exclude:
        where.append(stems.c.id.not_in(wanted.exclude))
    if wanted.exclude_tracks:
        unwanted = [caseless(track) for track in wanted.exclude_tracks]
        where.append(or_(stems.c.track_caseless.is_(None), stems.c.track_caseless.not_in(unwanted)))
    return where


def _within(tempi: tuple[float, float]) -> ColumnElement[bool]:
    first, last = tempi
    both = and_ if first <= last else or_
    return both(stems.c.beat_bpm >= first, stems.c.beat_bpm <= last)
