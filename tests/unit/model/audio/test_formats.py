"""Every container and codec that we say we read is heard at its right length and place."""

import pytest

from model.audio import load_clip
from tests.audio_files import CELLS, SECONDS, Cell, place_and_likeness


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_file_is_heard_where_its_source_is(cell: Cell) -> None:
    clip = load_clip(cell.bytes())
    rate = 352_800 if cell.row.codec == "DSD" else cell.rate
    assert (clip.format, clip.sample_rate, clip.channels) == (cell.row.format, rate, cell.channels)
    assert clip.warnings == ()
    late_s, likeness = place_and_likeness(clip.waveform)
    assert abs(late_s) < cell.row.place_s
    assert likeness > cell.row.likeness
    assert -cell.row.shorter_s <= clip.duration_s - SECONDS <= cell.row.padding_s
