"""GET /explain: why a stem of the catalog fits a mix that was searched with."""

import asyncio
import math

import numpy as np
from pydantic import BaseModel, Field

from indexer import Stem
from model.audio import SAMPLE_RATE, Waveform, is_silent
from service.api.keys import Caller
from service.api.placing import Number, PlacedBeyondEnd, Seconds
from service.api.retrieval import Retrieval
from service.api.schemas import RetrieveIn, ShortText
from service.metrics import Stopwatch
from service.search.explaining import Explanation, explain
from service.search.mix import HEARD_S, hear_mix
from service.search.placing import laid
from service.work.fitting import Fitting


class ExplainIn(BaseModel):
    """A mix that is kept, a stem, and how it is played there: as a hit says."""

    mix_id: ShortText
    stem_id: ShortText
    start_s: Seconds = 0.0
    speed: Number = Field(1.0, ge=0.5, le=2.0)
    transpose: int = Field(0, ge=-12, le=12)
    tempo_bpm: Number | None = Field(None, ge=20, le=999, description="of the mix; else it is heard")


class InKey(BaseModel):
    """The score in another key."""

    transpose: int = Field(description="semitones up from how it is played")
    score: float


class BesideBeat(BaseModel):
    """The score elsewhere."""

    beats: float = Field(description="late; negative: early")
    score: float


class OfOctave(BaseModel):
    """What an octave of frequencies brings."""

    low_hz: float
    lost: float = Field(description="of the score without it; negative: it stands in the way")


class OfPart(BaseModel):
    """What one beat brings."""

    from_s: float = Field(description="second of the mix")
    lost: float = Field(description="of the score without it")


class ExplainOut(BaseModel):
    """What the score of one window is made of: where mix and stem are loudest together."""

    score: float = Field(description="of this window, with nothing taken off for how it is played")
    from_s: float
    to_s: float
    pitch: float = Field(description="how much higher it scores in its key than in the mean of the others")
    rhythm: float = Field(description="how much higher it scores on its beat than in the mean of the places beside it")
    keys: list[InKey]
    shifts: list[BesideBeat]
    octaves: list[OfOctave]
    parts: list[OfPart]

    @classmethod
    def of(cls, why: Explanation, begin_s: float) -> "ExplainOut":
        """What goes out of an explanation of a stretch of the mix that begins at this second."""
        return cls(
            score=why.score,
            from_s=begin_s + why.from_s,
            to_s=begin_s + why.to_s,
            pitch=why.pitch,
            rhythm=why.rhythm,
            keys=[InKey(transpose=key, score=score) for key, score in why.keys.items()],
            shifts=[BesideBeat(beats=beats, score=score) for beats, score in why.shifts.items()],
            octaves=[OfOctave(low_hz=hz, lost=lost) for hz, lost in why.octaves.items()],
            parts=[OfPart(from_s=begin_s + at, lost=lost) for at, lost in why.parts.items()],
        )


async def explained(retrieval: Retrieval, asked: ExplainIn, caller: Caller) -> ExplainOut:
    """Why a stem fits, of the minute of the mix that begins where it enters, for a caller who takes turns with others.

    Raises:
        MixNotFound, StemNotFound, AudioError: as a search.
        PlacedBeyondEnd: nothing of the stem sounds there.
        QueryTimeout, IndexUnavailable, QueueError: not now.
    """
    async with retrieval.turn(caller):
        watch = Stopwatch(retrieval.metrics)
        mix = await retrieval.mixes.of(RetrieveIn(mix_id=asked.mix_id), caller.owner, watch)
        stem = await retrieval.catalog.stem(asked.stem_id)
        begin, sound = await _sounding(retrieval, mix.waveform, stem, asked)
        waveform = mix.waveform[begin : begin + len(sound)]
        heard = await asyncio.to_thread(hear_mix, waveform, asked.tempo_bpm)
        index = await retrieval.live.current()
        why = await explain(
            index.fold,
            index.fingerprint,
            retrieval.embedder(caller.who),
            waveform,
            sound,
            heard.grids[0] if heard.grids else None,
            retrieval.settings.query_timeout_s,
        )
        return ExplainOut.of(why, begin / SAMPLE_RATE)


async def _sounding(retrieval: Retrieval, mix: Waveform, stem: Stem, asked: ExplainIn) -> tuple[int, Waveform]:
    """The minute of a mix that is looked at: its first sample, and the stem as it sounds in it. It begins where the
    stem enters, or earlier where the mix ends too soon after; while one of both is silent in it, the next is taken.
    """
    length = min(len(mix), HEARD_S * SAMPLE_RATE)
    enters, whole = _laid(stem, asked, len(mix))
    left_s = math.inf if whole.loop else (stem.duration_s - whole.start_s) / asked.speed
    last, ends = len(mix) - length, math.ceil(min(len(mix), enters + left_s * SAMPLE_RATE))
    sound = np.zeros(length, np.float32)
    for begin in range(min(enters, last), ends, length):
        begin = min(begin, last)
        at, fitting = _laid(stem, asked, length, -begin / SAMPLE_RATE)
        sound[:at], sound[at:] = 0, await retrieval.mixes.fitted(stem, fitting)
        if not is_silent(sound) and not is_silent(mix[begin : begin + length]):
            break
    return begin, sound


def _laid(stem: Stem, asked: ExplainIn, samples: int, at_s: float = 0.0) -> tuple[int, Fitting]:
    try:
        return laid(asked, samples, stem.duration_s, stem.kind == "loop", at_s)
    except ValueError:
        raise PlacedBeyondEnd(stem.id) from None
