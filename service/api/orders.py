"""How stems are to sound, as it is asked over the wire."""

import json
from typing import Annotated

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from model.errors import Told
from service.api.placing import MOST_PLACED, Number, Placed, Seconds
from service.api.schemas import ShortText, faults_of
from service.work.encoding import FittedFormat, Order
from service.work.fitting import SPEEDS, TRANSPOSITIONS, Fitting

PLACED_BYTES = 2**20


class BadPlaced(Told):
    """`placed` is no list of stems as they are placed; `wrong` says how."""

    public = "`placed` cannot be used: {wrong}."
    wrong: str


class AudioIn(BaseModel):
    """Which audio of a stem is wanted; nothing given: its bytes as they were uploaded."""

    speed: Number = Field(1.0, ge=SPEEDS[0], le=SPEEDS[1], description="how many times faster it is played")
    transpose: Number = Field(
        0.0, ge=TRANSPOSITIONS[0], le=TRANSPOSITIONS[1], description="semitones that it is moved up"
    )
    start_s: Seconds = Field(
        0.0,
        description="the second of the stem, as recorded, where the first sample lies; negative: silence comes first, "
        "but for a loop, which goes round",
    )
    loop: bool = Field(False, description="begin again where the stem ends")
    duration_s: Seconds | None = Field(
        None,
        ge=0.001,
        description="of what comes out, in its own seconds, silence beyond the stem's end; none: up to that",
    )
    format: FittedFormat = "wav"
    rate: int | None = Field(None, ge=8000, le=192_000, description="samples a second; none: the stem's own")

    def as_order(self) -> Order:
        fitting = Fitting(self.speed, self.transpose, self.start_s, self.duration_s, self.loop, self.rate)
        return Order(fitting, self.format)


class PlacedIn(Placed):
    """A stem in its place in a mix, as a hit has it: a hit's other fields may stand beside."""

    model_config = ConfigDict(extra="ignore")


class ExportIn(BaseModel):
    """A mix and the stems that are placed in it."""

    file: UploadFile = Field(description="the mix, in any common audio format")
    placed: str = Field(
        description="JSON: a list of objects with `stem_id` and, where they are not as recorded, `start_s`, `speed`, "
        "`transpose`, `gain_db`, `at_s` (the second of the mix where it begins) and `loop`",
        max_length=PLACED_BYTES,
    )
    tempo_bpm: Number | None = Field(
        None, ge=20, le=400, description="of the mix, beats a minute; none: as the stems are played"
    )
    mix_key: ShortText | None = Field(None, description="key of the mix; none: as the stems are played")


_SOME = Field(min_length=1, max_length=MOST_PLACED)
_PLACED: TypeAdapter[list[PlacedIn]] = TypeAdapter(Annotated[list[PlacedIn], _SOME])


def placed_of(text: str) -> list[PlacedIn]:
    """What the form field `placed` says. Raises BadPlaced."""
    try:
        return _PLACED.validate_python(json.loads(text))
    except ValidationError as error:
        said = error.errors(include_url=False, include_context=False, include_input=False)
        raise BadPlaced("; ".join(f"{at}: {what}" if at else what for at, what in faults_of(said))) from None
    except (ValueError, RecursionError):
        raise BadPlaced("it is not JSON") from None
