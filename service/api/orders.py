"""How stems are to sound, as it is asked over the wire."""

from pydantic import BaseModel, Field

from service.api.schemas import Seconds
from service.work.encoding import FittedFormat, Order
from service.work.fitting import SPEEDS, TRANSPOSITIONS, Fitting

DAY_S = 86_400.0


class FittingIn(BaseModel):
    """How a stem is to sound."""

    speed: float = Field(
        1.0, ge=SPEEDS[0], le=SPEEDS[1], allow_inf_nan=False, description="how many times faster it is played"
    )
    transpose: float = Field(
        0.0,
        ge=TRANSPOSITIONS[0],
        le=TRANSPOSITIONS[1],
        allow_inf_nan=False,
        description="semitones that it is moved up",
    )
    start_s: Seconds = Field(
        0.0,
        ge=-DAY_S,
        le=DAY_S,
        allow_inf_nan=False,
        description="the second of the stem, as recorded, where the first sample lies; negative: silence comes first",
    )
    loop: bool = Field(False, description="begin again where the stem ends")


class AudioIn(FittingIn):
    """Which audio of a stem is wanted; nothing given: its bytes as they were uploaded."""

    duration_s: Seconds | None = Field(
        None,
        gt=0,
        le=DAY_S,
        allow_inf_nan=False,
        description="of what comes out, in its own seconds, silence beyond the stem's end; none: up to that",
    )
    format: FittedFormat = "wav"
    rate: int | None = Field(None, ge=8000, le=192_000, description="samples a second; none: the stem's own")

    def as_order(self) -> Order:
        fitting = Fitting(self.speed, self.transpose, self.start_s, self.duration_s, self.loop, self.rate)
        return Order(fitting, self.format)
