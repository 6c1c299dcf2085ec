"""GET /explain: why a stem of the catalog fits a mix that was searched with."""

import asyncio
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field

from model.audio import SAMPLE_RATE
from service.api.keys import Caller
from service.api.placing import PlacedBeyondEnd
from service.api.retrieval import Retrieval
from service.api.schemas import RetrieveIn, ShortText
from service.metrics import Stopwatch
from service.search.explaining import Explanation, explain
from service.search.mix import HEARD_S, hear_mix
from service.search.placing import laid

Number = Annotated[float, Field(allow_inf_nan=False)]


class ExplainIn(BaseModel):
    """A mix that is kept, a stem, and how it is played there: as a hit says."""

    mix_id: ShortText
    stem_id: ShortText
    start_s: Number = Field(0.0, ge=-86_400, le=86_400)
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
    def of(cls, why: Explanation) -> "ExplainOut":
        """What goes out of an explanation."""
        return cls(
            score=why.score,
            from_s=why.from_s,
            to_s=why.to_s,
            pitch=why.pitch,
            rhythm=why.rhythm,
            keys=[InKey(transpose=key, score=score) for key, score in why.keys.items()],
            shifts=[BesideBeat(beats=beats, score=score) for beats, score in why.shifts.items()],
            octaves=[OfOctave(low_hz=hz, lost=lost) for hz, lost in why.octaves.items()],
            parts=[OfPart(from_s=at, lost=lost) for at, lost in why.parts.items()],
        )


async def explained(retrieval: Retrieval, asked: ExplainIn, caller: Caller) -> ExplainOut:
    """Why a stem fits, of the first minute of the mix, for a caller who takes turns with others.

    Raises:
        MixNotFound, StemNotFound, AudioError: as a search.
        PlacedBeyondEnd: nothing of the stem sounds there.
        QueryTimeout, IndexUnavailable, QueueError: not now.
    """
    async with retrieval.turn(caller):
        watch = Stopwatch(retrieval.metrics)
        mix = await retrieval.mixes.of(RetrieveIn(mix_id=asked.mix_id), caller.owner, watch)
        waveform = mix.waveform[: HEARD_S * SAMPLE_RATE]
        stem = await retrieval.catalog.stem(asked.stem_id)
        try:
            at, fitting = laid(asked, len(waveform), stem.duration_s, stem.kind == "loop")
        except ValueError:
            raise PlacedBeyondEnd(stem.id) from None
        sound = np.zeros_like(waveform)
        sound[at:] = await retrieval.mixes.fitted(stem, fitting)
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
        return ExplainOut.of(why)
