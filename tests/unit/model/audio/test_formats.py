"""Every container and codec that we say we read is heard at its right length and place."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from model.audio import SilentClip, load_clip
from tests.audio_faults import FAULTS, Fault, around, inverted
from tests.audio_files import (
    BY_FFMPEG_OF_DEBIAN,
    CELLS,
    ROWS,
    SECONDS,
    Cell,
    by_soundfile,
    cells_of,
    channels_of,
    place_and_likeness,
)

PLACE_S = 0.003
LIKENESS = 0.97


NO_FFMPEG = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg here writes these files")
MADE_BY_FFMPEG = [pytest.param(cell, marks=NO_FFMPEG) for cell in cells_of(BY_FFMPEG_OF_DEBIAN)]


@pytest.mark.parametrize("cell", [*CELLS, *MADE_BY_FFMPEG], ids=str)
def test_a_file_is_heard_where_its_source_is(cell: Cell) -> None:
    clip = load_clip(cell.bytes())
    rate = 352_800 if cell.row.codec == "DSD" else cell.rate
    assert (clip.format, clip.sample_rate, clip.channels) == (cell.row.format, rate, cell.channels)
    assert clip.warnings == ()
    late_s, likeness = place_and_likeness(clip.waveform)
    assert abs(late_s) < cell.row.place_s
    assert likeness > cell.row.likeness
    assert -cell.row.shorter_s <= clip.duration_s - SECONDS <= cell.row.padding_s


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_faulty_file_is_heard_with_a_warning_or_refused_by_name(fault: Fault) -> None:
    data = fault.data()
    if fault.error is not None:
        with pytest.raises(fault.error, match=fault.says):
            load_clip(data)
        return
    clip = load_clip(data)
    if fault.says:
        assert len(clip.warnings) == 1
        assert re.search(fault.says, clip.warnings[0]), clip.warnings
    else:
        assert clip.warnings == ()
    late_s, likeness = place_and_likeness(clip.waveform)
    assert abs(late_s) < PLACE_S
    assert likeness > (LIKENESS if fault.whole else 0.5)
    if fault.whole:
        assert 0 <= clip.duration_s - SECONDS + PLACE_S < 0.1


def test_the_page_names_every_format_and_fault() -> None:
    page = (Path(__file__).parents[4] / "docs" / "formats.md").read_text(encoding="utf-8")
    named = {line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")}
    assert {f"{row.container}: {row.codec}" for row in ROWS} | {fault.name for fault in FAULTS} <= named
    assert len(CELLS) + len(FAULTS) >= 200


WAV = by_soundfile("WAV", "FLOAT")
FLAC = by_soundfile("FLAC", "PCM_24")


def test_channels_that_cancel_are_heard_as_the_stronger_of_them_is_to_the_bit() -> None:
    alone = channels_of(44100, 1)
    np.testing.assert_array_equal(
        load_clip(WAV(inverted(alone), 44100)).waveform, load_clip(WAV(alone, 44100)).waveform
    )
    stronger_second = np.ascontiguousarray(inverted(alone)[:, ::-1] * 0.5)
    heard = load_clip(WAV(stronger_second, 44100))
    np.testing.assert_array_equal(heard.waveform, load_clip(WAV(alone * 0.5, 44100)).waveform)
    assert heard.warnings == ("The channels cancel when mixed: channel 2 of 2 is heard alone.",)


@pytest.mark.parametrize(("loss_db", "cancels"), [(2.9, False), (5.9, False), (6.1, True), (40.0, True)])
def test_channels_cancel_where_their_mean_loses_more_than_six_decibels(loss_db: float, cancels: bool) -> None:
    middle, side = channels_of(16000, 1), channels_of(16000, 1)[::-1]
    share = 10 ** (-loss_db / 20)  # of the middle; middle and side have nothing in common
    stereo = np.hstack([share * middle + (1 - share**2) ** 0.5 * side, share * middle - (1 - share**2) ** 0.5 * side])
    assert len(load_clip(WAV(stereo, 16000)).warnings) == cancels


def test_more_than_two_channels_are_mixed_by_their_places_and_lfe_is_left_out() -> None:
    rng = np.random.default_rng(0)
    six = rng.uniform(-0.5, 0.5, (20_000, 6))
    weights = np.array([0.5**0.5, 0.5**0.5, 1, 0, 0.5, 0.5])
    placed = load_clip(FLAC(six, 16000))
    np.testing.assert_allclose(placed.waveform, six @ weights / weights.sum(), atol=1e-6)
    unplaced = load_clip(WAV(six, 16000))
    np.testing.assert_allclose(unplaced.waveform, six.mean(axis=1), atol=1e-6)
    assert placed.warnings == unplaced.warnings == ()  # they lose 8 dB, as six that have nothing in common must


def test_a_cancelling_clip_that_is_silent_is_refused_as_silent() -> None:
    with pytest.raises(SilentClip):
        load_clip(WAV(around(channels_of(16000, 1)) * 1e-6, 16000))
