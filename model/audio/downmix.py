"""A clip's channels -> one."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.audio.windows import SILENCE, Waveform

CANCELS_DB = 6.0
"""A stereo clip whose channels' mean has this much less energy than they have on average is not heard by their mean."""

# ITU-R BS.775: what each channel of a layout is worth in one. LFE repeats the bass of the others 10 dB louder.
_WEIGHTS = {"FL": 0.5**0.5, "FR": 0.5**0.5, "FC": 1.0, "LFE": 0.0, "LFE2": 0.0}
_AROUND = 0.5
_UNPLACED = {"", "?", "UNK", "NONE"}


class Downmix:
    """Mixes blocks to mono and keeps account of what that loses.

    The mean of the channels, or, where a layout says where more than two of them stand, their weighted mean; or one
    channel alone.
    """

    def __init__(self, channels: int, layout: Sequence[str] = (), *, only: int | None = None) -> None:
        """`layout`: a name a channel, as of FFmpeg ("FL", "LFE"), or none; `only`: the channel to be heard alone."""
        self.channels = channels
        self._only = only
        self._weights = _weights_of(channels, layout)
        self._energies = np.zeros(channels)
        self._mixed = 0.0

    def mix(self, block: Waveform) -> Waveform:
        """float32 (frames, channels) -> float32 (frames,)."""
        if self._only is not None:
            return np.ascontiguousarray(block[:, min(self._only, block.shape[1] - 1)])
        if block.shape[1] != self.channels:  # the file changed its mind
            changed: Waveform = block.mean(axis=1, dtype=np.float32)
            return changed
        mono: Waveform = block.mean(axis=1, dtype=np.float32) if self._weights is None else block @ self._weights
        if self.channels > 1:
            self._energies += np.einsum("ij,ij->j", block, block)
            self._mixed += float(mono @ mono)
        return mono

    def cancelled(self, frames: int) -> int | None:
        """The strongest channel, where the channels cancel: so many frames lost more than channels do that have nothing
        in common, by `CANCELS_DB` - 3 dB. Two of those lose 3 dB by themselves, and n lose 10 log10(n)."""
        weights = np.full(self.channels, 1 / self.channels) if self._weights is None else self._weights
        expected = float(weights.astype(np.float64) ** 2 @ self._energies)
        strongest = int(np.argmax(self._energies))
        if self.channels < 2 or self._energies[strongest] <= frames * (SILENCE / 10) ** 2:
            return None
        return strongest if self._mixed <= expected / 10 ** ((CANCELS_DB - 3) / 10) else None


def _weights_of(channels: int, layout: Sequence[str]) -> NDArray[np.float32] | None:
    if channels < 3 or len(layout) != channels or _UNPLACED & set(layout) or "FL" not in layout:
        return None
    weights = np.array([_WEIGHTS.get(name, _AROUND) for name in layout])
    shares: NDArray[np.float32] = (weights / weights.sum()).astype(np.float32)
    return shares
