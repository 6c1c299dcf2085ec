"""What a download is called."""

from pathlib import Path

import pytest

from service.api.downloads import LONGEST, safe_name


@pytest.mark.parametrize("title", ["x" * 255, "\u9577" * 255, "\U0001f468" * 255])
def test_a_name_leaves_room_in_a_file_system_whatever_its_script(tmp_path: Path, title: str) -> None:
    name = safe_name(title)
    assert title.startswith(name)
    assert len(name) >= LONGEST // 2
    (tmp_path / f"audio 32 {name}_F#m_124.8bpm.wav").touch()
