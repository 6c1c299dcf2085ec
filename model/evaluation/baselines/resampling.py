"""From our rate to the one that a baseline was made for."""

import numpy as np
import soxr
import torch
from torch import Tensor

from model.audio import SAMPLE_RATE


def resample(waveforms: Tensor, rate: int) -> Tensor:
    """float32 (n, samples) at 16 kHz -> float32 (n, samples at `rate`), on the CPU; each row by itself."""
    rows = waveforms.detach().float().cpu().numpy()
    return torch.from_numpy(np.stack([soxr.resample(row, SAMPLE_RATE, rate) for row in rows]))
