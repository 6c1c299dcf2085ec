"""A mix -> the windows that are asked about: which stretch of it, at which delays against the catalog's grid."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.audio import SAMPLE_RATE

HOP = SAMPLE_RATE // 100  # 10 ms, the grid on which places are told
ENERGY_HOPS = 6000  # whose energy is summed at once: a minute


@dataclass(frozen=True)
class Plan:
    """The query windows of a mix.

    `starts` int64 (q,), samples of the whole mix; `shift` and `window` int64 (q,): window i at shift d starts at
    `begin + d * step + i * stride`.
    """

    begin: int
    end: int
    length: int
    step: int
    shifts: int
    starts: NDArray[np.int64]
    shift: NDArray[np.int64]
    window: NDArray[np.int64]

    @property
    def range_s(self) -> float:
        """The longest delay tried, seconds."""
        return (self.shifts - 1) * self.step / SAMPLE_RATE

    def coarser(self, times: int) -> "Plan":
        """Every so manieth shift of them, from the first."""
        kept = self.shift % times == 0
        return replace(
            self,
            step=self.step * times,
            shifts=-(-self.shifts // times),
            starts=self.starts[kept],
            shift=self.shift[kept] // times,
            window=self.window[kept],
        )


def plan_windows(
    waveform: NDArray[np.float32], *, window: int, stride: int, step: int, longest: int, search: bool
) -> Plan:
    """Lay windows over a mix.

    The catalog's windows start on a grid, one stride apart; a mix may start anywhere beside it. With `search` the
    windows are laid once for each `step` of a stride, so that one laying meets the grid to within half a step; a mix
    shorter than window + stride allows fewer. Without, they are laid once, from the mix's start.

    Args:
        waveform: float32 (samples,), 16 kHz.
        window, stride, step: samples.
        longest: samples of the mix that are looked at: its loudest stretch where there is a choice, its beginning
            when not searching, since the grid is counted from there.
    """
    begin = _loudest(waveform, longest) if search else 0
    end = min(len(waveform), begin + longest)
    length = min(window, end - begin)
    room = end - begin - length  # how far the first window can move
    shifts = min(-(-stride // step), room // step + 1) if search else 1
    layings = [np.arange(d * step, room + 1, stride) for d in range(shifts)]
    return Plan(
        begin=begin,
        end=end,
        length=length,
        step=step,
        shifts=shifts,
        starts=begin + np.concatenate(layings),
        shift=np.repeat(np.arange(shifts), [len(laying) for laying in layings]),
        window=np.concatenate([np.arange(len(laying)) for laying in layings]),
    )


def _loudest(waveform: NDArray[np.float32], longest: int) -> int:
    """Where the stretch of most energy begins, on the 10 ms grid."""
    if len(waveform) <= longest:
        return 0
    of_hop = [  # a long mix at once, in float64, would take five times its own memory
        np.square(waveform[at : at + ENERGY_HOPS * HOP][: len(waveform) // HOP * HOP - at], dtype=np.float64)
        .reshape(-1, HOP)
        .sum(axis=1)
        for at in range(0, len(waveform) // HOP * HOP, ENERGY_HOPS * HOP)
    ]
    energy = np.concatenate([[0.0], np.cumsum(np.concatenate(of_hop))])
    hops = longest // HOP
    begins = np.arange(0, (len(waveform) - longest) // HOP + 1)
    return int(begins[np.argmax(energy[begins + hops] - energy[begins])]) * HOP
