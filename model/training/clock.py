"""How long the parts of a training step take, on a CPU or a card."""

import time
from itertools import pairwise
from typing import Any

import torch


class Clock:
    """Seconds from tick to tick, by name: a card's own, which are known once it has come so far."""

    def __init__(self, device: torch.device) -> None:
        self._on_card = device.type == "cuda" and torch.cuda.is_available()
        self._ticks: list[tuple[str, float, Any]] = []
        self.tick("")

    def tick(self, name: str) -> None:
        event: Any = torch.cuda.Event(enable_timing=True) if self._on_card else None  # type: ignore[no-untyped-call]
        if event is not None:
            event.record()
        self._ticks.append((name, time.perf_counter(), event))

    def split_s(self) -> dict[str, float]:
        """After everything has been done. The first part is the host's: how long the step waited for its data."""
        split: dict[str, float] = {}
        for (_, since, began), (name, now, ended) in pairwise(self._ticks):
            on_card = ended is not None and bool(split)
            split[name] = began.elapsed_time(ended) / 1000 if on_card else now - since
        return split
