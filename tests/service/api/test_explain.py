"""GET /explain: why a stem fits a mix that was searched with."""

import httpx
import pytest

from tests.installation import encode, noise_bursts, retrieve
from tests.service.api.test_api import problem_of


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


@pytest.mark.parametrize(
    ("changed", "status", "name"),
    [
        ({"mix_id": "0" * 32}, 404, "mix-not-found"),
        ({"stem_id": "nobody"}, 404, "stem-not-found"),
        ({"start_s": 500.0}, 422, "placed-beyond-end"),
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
