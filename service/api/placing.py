"""What a client says of the stems of the catalog that lie in its mix."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from model.errors import Told

Number = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[Number, Field(ge=-86_400, le=86_400)]
MOST_PLACED = 32


class PlacedBeyondEnd(Told):
    public = "The stem {stem_id} would begin after its own end, or after the mix's."
    stem_id: str


class Placed(BaseModel):
    """A stem of the catalog, and where and how it sounds in a mix: `start_s`, `speed` and `transpose` as a hit says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stem_id: str = Field(min_length=1, max_length=255)
    start_s: Seconds = Field(
        0.0,
        description="the second of the stem that sounds at `at_s`; negative: it enters `-start_s / speed` later, "
        "but for a loop, which goes round and sounds from `at_s` on",
    )
    speed: Number = Field(1.0, ge=0.5, le=2.0, description="how many times faster it is played")
    transpose: int = Field(0, ge=-12, le=12, description="semitones up")
    gain_db: Number = Field(0.0, ge=-60, le=24, description="how much louder it is mixed in")
    at_s: Number = Field(0.0, ge=0, le=86_400, description="the second of the mix where it begins")
    loop: bool | None = Field(None, description="whether it goes round; null: where its `kind` is loop")

    def loops(self, kind: str | None) -> bool:
        """Whether it goes round, being a stem of this kind."""
        return kind == "loop" if self.loop is None else self.loop
