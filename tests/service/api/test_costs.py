"""What a hit says of what is taken off its score: for notes that go badly with the mix's, and for its length."""

import httpx
import numpy as np
import pytest

from model.audio import SAMPLE_RATE
from service.search.costs import HARMONY_COST, LENGTH_COST, NO_NOTES
from tests.installation import add_stem, encode, noise_bursts, retrieve, wait_ready

TRIAD, A_TRITONE_OFF = (60, 64, 67), (66, 70, 73)


def struck(pitches: tuple[int, ...], every_s: float = 0.5, seconds: float = 12.0) -> np.ndarray:
    """Notes that ring out, one after the other."""
    rng, out = np.random.default_rng(0), np.zeros(round(seconds * SAMPLE_RATE))
    at = np.arange(round(every_s * SAMPLE_RATE)) / SAMPLE_RATE
    for number, begin in enumerate(range(0, len(out) - len(at), len(at))):
        hz = 440 * 2 ** ((pitches[number % len(pitches)] - 69) / 12)
        out[begin : begin + len(at)] += 0.3 * np.sin(2 * np.pi * hz * at) * np.exp(-4 * at)
    return (out + rng.normal(0, 1e-4, len(out))).astype(np.float32)


def clicked(every_s: float = 0.5, seconds: float = 12.0) -> np.ndarray:
    rng, out = np.random.default_rng(1), np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    for begin in range(0, len(out) - 800, round(every_s * SAMPLE_RATE)):
        out[begin : begin + 800] = rng.normal(0, 0.3, 800) * np.exp(-np.arange(800) / 150)
    return out


def test_notes_that_the_mix_has_cost_less_than_others_and_drums_lie_between(client: httpx.Client) -> None:
    sounds = {"alike": struck(TRIAD[::-1]), "unlike": struck(A_TRITONE_OFF), "drums": clicked()}
    stems = [add_stem(client, encode(sound), title=title, collection="harmony") for title, sound in sounds.items()]
    wait_ready(client, *stems)
    hits = retrieve(client, encode(struck(TRIAD)), collection="harmony", max_transpose=0)["hits"]
    cost = {hit["stem"]["title"]: hit["harmony_cost"] for hit in hits}
    assert cost["alike"] < 0.1 * HARMONY_COST
    assert cost["drums"] == pytest.approx(HARMONY_COST * (1 - NO_NOTES))
    assert cost["unlike"] > 1.2 * HARMONY_COST
    to_drums = retrieve(client, encode(clicked()), collection="harmony", max_transpose=0)["hits"]
    assert {hit["harmony_cost"] for hit in to_drums} == {HARMONY_COST * (1 - NO_NOTES)}
    for stem_id in stems:
        client.delete(f"/stems/{stem_id}")


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
