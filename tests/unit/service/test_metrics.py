"""What a worker counts."""

import time

from service.metrics import Figures


def test_figures_add_up_the_time_of_a_stage() -> None:
    figures = Figures()
    for _ in range(2):
        with figures.timed("embed"):
            time.sleep(0.01)
    assert figures.embed_seconds >= 0.02
