"""GET /explain: why a stem fits a mix that was searched with."""

from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from model.audio import SAMPLE_RATE
from tests.installation import encode, noise_bursts, retrieve
from tests.service.api.conftest import added
from tests.service.api.test_api import PLACE_TOLERANCE_S, problem_of

SAME = 0.98  # the score of a mix with itself, here and there
NEARLY_SAME = 0.9  # where it was found, which is a few milliseconds beside


def test_a_stem_is_explained_where_it_was_found(client: httpx.Client) -> None:
    answer = retrieve(client, encode(noise_bursts(3)), limit=1, max_transpose=0, align="grid")
    hit = answer["hits"][0]
    asked = {"mix_id": answer["mix_id"], "stem_id": hit["stem"]["id"]}
    asked |= {name: hit[name] for name in ("start_s", "speed", "transpose")}
    why = client.get("/explain", params=asked).raise_for_status().json()
    assert why["score"] == pytest.approx(1.0, abs=0.02), "the mix is the stem"
    assert max(why["keys"], key=lambda key: key["score"])["transpose"] == 0
    assert max(why["shifts"], key=lambda shift: shift["score"])["beats"] == 0
    assert len(why["octaves"]) == 8
    assert why["from_s"] == why["parts"][0]["from_s"]
    assert hit["sureness"] is None, "this model was taught none"


def test_a_hit_that_enters_late_is_explained_where_it_enters(client: httpx.Client) -> None:
    mix = late(noise_bursts(3), 85.0, 100.0)
    answer = retrieve(client, encode(mix), limit=1, align="search")
    hit = answer["hits"][0]
    assert (hit["stem"]["title"], hit["start_s"]) == ("3", pytest.approx(-85.0, abs=PLACE_TOLERANCE_S))
    asked = {name: hit[name] for name in ("start_s", "speed", "transpose")}
    why = why_of(client, mix_id=answer["mix_id"], stem_id=hit["stem"]["id"], **asked)
    assert why["score"] > NEARLY_SAME, "there the mix is the stem"
    assert 85.0 - 0.1 <= why["from_s"] < why["to_s"] <= 94.0
    assert why["parts"][0]["from_s"] == why["from_s"]


@pytest.mark.parametrize("start_s", [-70.0, 6.0])
def test_a_loop_is_explained_as_it_goes_round_from_the_mixs_start(client: httpx.Client, start_s: float) -> None:
    loop = noise_bursts(301, 4.0)
    with added(client, encode(loop), kind="loop") as stem_id:
        mix = np.roll(np.tile(loop, 3), -2 * SAMPLE_RATE)
        answer = retrieve(client, encode(mix), limit=1, align="grid")
        why = why_of(client, mix_id=answer["mix_id"], stem_id=stem_id, start_s=start_s)
        assert why["score"] > SAME


@pytest.mark.parametrize("early", [0.0, 0.5], ids=["both silent before", "the stem silent before"])
def test_a_stem_that_is_silent_at_first_is_explained_where_both_sound(client: httpx.Client, early: float) -> None:
    with added(client, encode(late(noise_bursts(302), 65.0, 75.0))) as stem_id:
        mix = late(noise_bursts(302), 65.0, 75.0)
        mix[: 60 * SAMPLE_RATE] = early * noise_bursts(303, 60.0)
        answer = retrieve(client, encode(mix), limit=1, align="search")
        why = why_of(client, mix_id=answer["mix_id"], stem_id=stem_id)
        assert why["score"] > SAME
        assert 60.0 <= why["from_s"] < why["to_s"] <= 75.0


def late(clip: NDArray[np.float32], from_s: float, seconds: float) -> NDArray[np.float32]:
    """A clip with silence around it."""
    whole = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    begin = round(from_s * SAMPLE_RATE)
    whole[begin : begin + len(clip)] = clip
    return whole


def why_of(client: httpx.Client, **asked: Any) -> dict[str, Any]:
    answer = client.get("/explain", params=asked)
    assert answer.status_code == 200, answer.text
    why: dict[str, Any] = answer.json()
    return why


@pytest.mark.parametrize(
    ("changed", "status", "name"),
    [
        ({"mix_id": "0" * 32}, 404, "mix-not-found"),
        ({"stem_id": "nobody"}, 404, "stem-not-found"),
        ({"start_s": 500.0}, 422, "placed-beyond-end"),
        ({"start_s": -500.0}, 422, "placed-beyond-end"),
        ({"speed": "nan"}, 422, "invalid-request"),
        ({"speed": 0}, 422, "invalid-request"),
        ({"transpose": 60}, 422, "invalid-request"),
    ],
)
def test_what_cannot_be_explained_is_named(
    client: httpx.Client, changed: dict[str, object], status: int, name: str
) -> None:
    answer = retrieve(client, encode(noise_bursts(2)), limit=1, align="grid")
    asked = {"mix_id": answer["mix_id"], "stem_id": answer["hits"][0]["stem"]["id"]} | changed
    problem_of(client.get("/explain", params=asked), status, name)
