"""Native Stem files: which streams are stems, what is said of them, and each as a file of its own."""

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from model.audio import load_clip, stem_of_file, stems_in_file
from tests.stem_files import RATE, SAID, STEMS, tone, write_stem_file

SAME_AUDIO = 1e-6  # the packets are the same, and so is what is decoded of them


@pytest.fixture(scope="module")
def stem_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stem_file(tmp_path_factory.mktemp("stems") / "song.stem.mp4", SAID)


def decoded(source: Path | bytes, stream: int) -> NDArray[np.float32]:
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(container.streams.audio[stream])]
    return np.concatenate(frames, axis=1)


def test_stems_are_the_streams_after_the_mix_by_the_names_of_the_file(stem_file: Path) -> None:
    parts = stems_in_file(stem_file)
    assert [part.stream for part in parts] == [1, 2, 3, 4]
    assert [part.name for part in parts] == ["Drums", "Bass", "Melody", "Vocals"]
    assert parts[0].colour == "#009E73"


def test_a_stem_of_a_file_is_its_stream_sample_for_sample(stem_file: Path) -> None:
    for stream in range(1, STEMS + 1):
        alone = stem_of_file(stem_file, stream)
        assert alone == stem_of_file(stem_file, stream), "the same bytes are the same stem"
        np.testing.assert_allclose(decoded(alone, 0), decoded(stem_file, stream), atol=SAME_AUDIO)
        spectrum = np.abs(np.fft.rfft(load_clip(alone).waveform))
        clip_s = load_clip(alone).duration_s
        assert np.argmax(spectrum) / clip_s == pytest.approx(tone(stream), rel=0.01)


@pytest.mark.parametrize("said", [None, b"{", b"[1]", b'{"stems": 3}', b'{"stems": [null, {"name": 7}]}', b"\xff"])
def test_a_stem_file_that_says_nothing_of_its_stems_has_them_all_the_same(tmp_path: Path, said: bytes | None) -> None:
    parts = stems_in_file(write_stem_file(tmp_path / "a.stem.mp4", said))
    assert [(part.stream, part.name, part.colour) for part in parts] == [(n, None, None) for n in range(1, STEMS + 1)]


def test_what_is_no_stem_file_has_none(tmp_path: Path, stem_file: Path) -> None:
    whole = stem_file.read_bytes()
    for name, audio in (
        ("text", b"not audio"),
        ("cut", whole[: len(whole) // 3]),
        ("alone", stem_of_file(stem_file, 1)),
    ):
        (tmp_path / name).write_bytes(audio)
        assert stems_in_file(tmp_path / name) == [], name
    with pytest.raises(OSError, match="stream 7"):
        stem_of_file(stem_file, 7)
    assert json.loads(SAID)["stems"][0]["name"] == "Drums"
    assert RATE == 44_100
