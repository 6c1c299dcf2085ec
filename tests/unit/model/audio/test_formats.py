"""Every container and codec that we say we read is heard at its right length and place."""

import re

import pytest

from model.audio import load_clip
from tests.audio_faults import FAULTS, Fault
from tests.audio_files import CELLS, SECONDS, Cell, place_and_likeness

PLACE_S = 0.003
LIKENESS = 0.97


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
