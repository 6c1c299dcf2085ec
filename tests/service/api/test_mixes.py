"""Stems of a catalog that are laid into a mix, decoded and stretched by real children."""

import io
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from indexer import Catalog, ClipFacts, Stem, StemMetadata, Upload
from model.audio import SAMPLE_RATE
from service.api.mixes import Mix, Mixes
from service.api.placing import Placed, PlacedBeyondEnd
from service.metrics import Metrics, Stopwatch
from service.settings import Settings
from service.work.blobs import Blobs, sha256_of
from service.work.decoding import DecodeLimits
from service.work.shelf import Shelf
from service.work.turns import Budget
from service.work.uploads import Decoder
from tests.installation import encode, noise_bursts

pytestmark = pytest.mark.anyio
SIXTEEN_BITS = 2e-4
SECONDS = 3.0
STEM = 0.5 * noise_bursts(0, SECONDS)


@pytest.fixture
async def mixes(tmp_path: Path) -> AsyncIterator[Mixes]:
    settings = Settings(data=tmp_path)
    settings.make_data_folder()
    catalog, shelf = await Catalog.open(settings.resolved_database_url), Shelf.of(settings)
    async with Decoder(DecodeLimits.of(settings)) as decoder:
        yield Mixes(catalog, Blobs(settings.resolved_blob_url), decoder, Budget(10**8), shelf)
    await shelf.aclose()
    await catalog.close()


async def added(mixes: Mixes, channels: int = 1, kind: str | None = None) -> Stem:
    stereo = np.stack([STEM, *[np.zeros_like(STEM)] * (channels - 1)], axis=1)
    file = io.BytesIO(encode(stereo))
    sha256 = sha256_of(file)
    await mixes.blobs.put(sha256, file)
    facts = ClipFacts("flac", SECONDS, SAMPLE_RATE, channels)
    metadata = StemMetadata(kind=kind)  # type: ignore[arg-type]
    job, _ = await mixes.catalog.add([Upload(sha256, "stem.flac", metadata, facts)])
    assert job.items[0].stem_id is not None
    return await mixes.catalog.stem(job.items[0].stem_id)


async def laid(mixes: Mixes, seconds: float, *placed: Placed) -> Mix:
    mix = Mix(np.zeros(round(seconds * SAMPLE_RATE), np.float32))
    return await mixes.lay(mix, placed, Stopwatch(Metrics()))


async def test_a_stem_as_recorded_is_added_sample_by_sample(mixes: Mixes) -> None:
    stem = await added(mixes, channels=2)
    place = Placed(stem_id=stem.id, start_s=1.0, at_s=0.5, gain_db=-6.0206)
    found = await laid(mixes, 2.0, place, place)
    half = SAMPLE_RATE // 2
    wanted = np.zeros(2 * SAMPLE_RATE)
    wanted[half:] = (
        2 * 0.5 * 0.5 * STEM[SAMPLE_RATE : SAMPLE_RATE + 3 * half]
    )  # twice, at half, and one of two channels
    assert np.allclose(found.waveform, wanted, atol=SIXTEEN_BITS)
    assert (found.stem_ids, found.rows) == ((stem.id,), (stem.row,))


async def test_a_stem_enters_later_and_ends_before_the_mix(mixes: Mixes) -> None:
    stem = await added(mixes)
    waveform = (await laid(mixes, 5.0, Placed(stem_id=stem.id, start_s=-1.0))).waveform
    assert np.allclose(waveform[SAMPLE_RATE : 4 * SAMPLE_RATE], STEM, atol=SIXTEEN_BITS)
    assert not waveform[:SAMPLE_RATE].any()
    assert not waveform[4 * SAMPLE_RATE :].any()


@pytest.mark.parametrize("start_s", [7.0, -2.0, -8.0])
async def test_a_loop_goes_round_and_begins_anywhere(mixes: Mixes, start_s: float) -> None:
    stem = await added(mixes, kind="loop")
    waveform = (await laid(mixes, 5.0, Placed(stem_id=stem.id, start_s=start_s))).waveform
    again = np.tile(STEM, 3)[SAMPLE_RATE : 6 * SAMPLE_RATE]
    sounding = np.abs(np.arange(len(again)) % (3 * SAMPLE_RATE) - 2 * SAMPLE_RATE) > 0.01 * SAMPLE_RATE  # off the join
    assert np.allclose(waveform[sounding], again[sounding], atol=SIXTEEN_BITS)
    with pytest.raises(PlacedBeyondEnd):
        await laid(mixes, 5.0, Placed(stem_id=stem.id, start_s=7.0, loop=False))


async def test_another_speed_and_key_change_the_sound_and_no_length(mixes: Mixes) -> None:
    stem = await added(mixes)
    waveform = (await laid(mixes, 2.0, Placed(stem_id=stem.id, speed=1.1, transpose=-2))).waveform
    assert len(waveform) == 2 * SAMPLE_RATE
    assert np.sqrt(np.mean(waveform**2)) == pytest.approx(np.sqrt(np.mean(STEM**2)), rel=0.5)
    assert not np.allclose(waveform, STEM[: len(waveform)], atol=0.05)
