"""Where a stem lies in a mix: from a place to what of the stem is to sound, and from which sample on."""

from typing import Protocol

from model.audio import SAMPLE_RATE
from service.work.fitting import Fitting


class Played(Protocol):
    """Where a stem fits and how it is played there: of a search's Place, or as a person says."""

    @property
    def start_s(self) -> float: ...
    @property
    def speed(self) -> float: ...
    @property
    def transpose(self) -> int: ...


def laid(place: Played, samples: int, duration_s: float, loop: bool, at_s: float = 0.0) -> tuple[int, Fitting]:
    """Which sample of a mix a stem begins to sound at, and how it is made to sound from there to the mix's end.

    Args:
        place: `start_s` is the second of the stem that sounds at second `at_s` of the mix; where it is negative, the
            stem enters `-start_s / speed` later, but for a loop, which goes round and sounds from `at_s` on.
        samples: of the mix, 16 kHz.
        duration_s: of the stem.
        loop: whether it goes round.
        at_s: see `start_s`; negative: before the mix begins, which is then a stretch of a longer one.

    Raises:
        ValueError: it would begin after its own end or the mix's.
    """
    start_s = place.start_s if loop else max(0.0, place.start_s)
    enters_s = at_s + (start_s - place.start_s) / place.speed
    if enters_s < 0:
        start_s, enters_s = start_s - enters_s * place.speed, 0.0
    at = round(enters_s * SAMPLE_RATE)
    if at >= samples or (start_s >= duration_s and not loop):
        raise ValueError("it begins after the end")
    return at, Fitting(
        speed=place.speed,
        transpose=place.transpose,
        start_s=start_s,
        duration_s=(samples - at) / SAMPLE_RATE,
        loop=loop,
        rate=SAMPLE_RATE,
    )
