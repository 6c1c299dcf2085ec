"""What a hit says of its length, and what that does to its rank."""

import httpx
import numpy as np
import pytest

from model.audio import SAMPLE_RATE
from service.search.costs import LENGTH_COST
from tests.installation import add_stem, encode, noise_bursts, retrieve, wait_ready


def test_of_two_stems_that_fit_as_well_the_shorter_comes_first(client: httpx.Client) -> None:
    short = noise_bursts(300)[: 8 * SAMPLE_RATE]
    long = np.concatenate([short, *(0.4 * noise_bursts(seed) for seed in range(301, 305))])
    stems = [
        add_stem(client, encode(sound), title=title, collection="lengths")
        for title, sound in {"long": long, "short": short}.items()
    ]
    wait_ready(client, *stems)
    first, second = retrieve(client, encode(short), collection="lengths", align="search")["hits"]
    assert [first["stem"]["title"], second["stem"]["title"]] == ["short", "long"]
    for hit in (first, second):
        told = hit["score"] + hit["cost"] + hit["harmony_cost"] + hit["length_cost"]
        assert told == pytest.approx(np.mean([pair["score"] for pair in hit["windows"]]), abs=1e-6)
    assert second["length_cost"] > first["length_cost"] + LENGTH_COST * np.log(2)
    for stem_id in stems:
        client.delete(f"/stems/{stem_id}")
