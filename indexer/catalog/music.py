"""What is known of stems' music: said of them, or heard by a worker that analysed them."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from sqlalchemy import BindParameter, Row, bindparam, select

from indexer.catalog.database import OnDatabase, retried
from indexer.catalog.records import Stem, StemMusic
from indexer.catalog.tables import stems

FACTS = ("tempo_bpm", "key", "kind")
SAME_LENGTH_S = 0.05
"""Stems of one track that differ by less in length were cut together, so their beats are the same."""
MOST_SIBLINGS = 15
"""That are heard together with a stem: each is decoded for it."""
UNCHANGED_TEMPO = 1e-4
"""An analysis works with seconds of its own; what it makes of a said tempo may be off in the last digits."""


class Music(OnDatabase):
    """What an analysis stored, and what a search needs of it."""

    @retried
    async def music_of(self, rows: Collection[int]) -> dict[int, StemMusic]:
        """What is known of these stems' music; those that no worker has analysed are left out."""
        return {record.row: _music(record) for record in await self._of_each(_MUSIC, rows)}

    @retried
    async def siblings(self, row: int) -> list[str]:
        """The SHA-256 of the other stems of the same track and length, which begin with this one; MOST_SIBLINGS at
        most."""
        this = stems.alias("this")
        query = (
            select(stems.c.sha256)
            .join(this, this.c.track_caseless == stems.c.track_caseless)
            .where(
                this.c.row == row,
                stems.c.row != row,
                stems.c.state.in_(("queued", "ready")),
                stems.c.duration_s.between(this.c.duration_s - SAME_LENGTH_S, this.c.duration_s + SAME_LENGTH_S),
            )
            .order_by(stems.c.row)
            .limit(MOST_SIBLINGS)
        )
        return [found.sha256 for found in await self._database.rows(query)]


def analysed(stem: Row[Any], music: StemMusic) -> dict[str, Any] | None:
    """The columns that an analysis fills; what was said since it began stays.

    Args:
        stem: as it is now.

    Returns:
        None: it was made with a tempo that is not said any more, or with a fact that is to be heard now.
    """
    values: dict[str, Any] = {name: getattr(music, name) for name in FACTS}
    sources, sure = dict(music.sources), dict(music.sure)
    for name in FACTS:
        now, then = _is_said(stem.sources, name), _is_said(sources, name)
        if then and not now:
            return None
        if now:
            values[name], sources[name] = getattr(stem, name), stem.sources[name]
            sure.pop(name, None)
    said = _is_said(stem.sources, "tempo_bpm")
    if said and not (music.tempo_bpm and math.isclose(stem.tempo_bpm, music.tempo_bpm, rel_tol=UNCHANGED_TEMPO)):
        return None
    return values | {
        "pitched": music.pitched,
        "sources": sources,
        "sure": sure,
        "beats_s": None if music.beats_s is None else np.asarray(music.beats_s, dtype=np.float64).tobytes(),
        "beat_bpm": music.beat_bpm,
        "music_warnings": list(music.warnings),
        "chroma": None if music.chroma is None else music.chroma.astype(np.float32).tobytes(),
    }


def said_anew(stem: Stem, changed: Mapping[str, Any], beats: float | None) -> dict[str, Any]:
    """The columns that change where a person says tempo, key or kind, or takes it back (None).

    Another tempo, or a fact that is to be heard now, lets nothing stand that was heard, and sends a ready stem to be
    analysed and embedded again: `state` is among the columns.

    Args:
        stem: as it is now.
        changed: by the names of StemMetadata's fields.
        beats: of the whole clip at the tempo in `changed`, where it is a whole number of them long.
    """
    named = [name for name in FACTS if name in changed]
    if not named:
        return {}
    sources, sure = dict(stem.sources or {}), dict(stem.sure or {})
    for name in named:
        sure.pop(name, None)
        sources[name] = "said"
        if changed[name] is None:
            del sources[name]
    columns: dict[str, Any] = {"sources": sources, "sure": sure}
    again = any(changed[name] is None and getattr(stem, name) is not None for name in named)
    if "tempo_bpm" in changed:
        columns["said_beats"] = beats
        tempo = changed["tempo_bpm"] or 0.0
        again = again or not math.isclose(tempo, stem.tempo_bpm or 0.0, rel_tol=UNCHANGED_TEMPO)
    if again:
        columns |= {name: None for name in FACTS if sources.get(name) == "heard"}
        columns["sources"] = {name: source for name, source in sources.items() if source != "heard"}
        columns |= {"sure": {}} | dict.fromkeys(("pitched", "beat_bpm", "beats_s", "music_warnings", "chroma"))
        if stem.state == "ready":
            columns |= {"state": "queued", "windows": 0}
    return columns


def _is_said(sources: Mapping[str, str] | None, name: str) -> bool:
    return (sources or {}).get(name, "heard") != "heard"


def _music(record: Row[Any]) -> StemMusic:
    return StemMusic(
        kind=record.kind,
        pitched=record.pitched,
        tempo_bpm=record.tempo_bpm,
        key=record.key,
        sources=record.sources or {},
        sure=record.sure or {},
        beats_s=None if record.beats_s is None else np.frombuffer(record.beats_s, dtype=np.float64),
        beat_bpm=record.beat_bpm,
        warnings=tuple(record.music_warnings or ()),
        chroma=None if record.chroma is None else np.frombuffer(record.chroma, dtype=np.float32),
    )


_SOME: BindParameter[Any] = bindparam("some", expanding=True)
_HEARD = ("pitched", "sources", "sure", "beats_s", "beat_bpm", "music_warnings", "chroma")
_MUSIC = select(stems.c.row, *(stems.c[name] for name in (*FACTS, *_HEARD))).where(
    stems.c.row.in_(_SOME), stems.c.pitched.is_not(None)
)
