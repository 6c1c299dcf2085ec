"""A decoder's child also reads what a file says of its music, and is not believed in that either."""

import asyncio
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.audio import load_clip
from model.audio.said import Said, joined, said_of_chunks, said_of_tags
from service.work import uploads
from service.work.decoding import DecoderCrashed
from service.work.uploads import Decoder, UploadedClip
from tests.service.work.test_uploads import FIELDS, GOOD, LIMITS, NOTHING, encode, noise, received
from tests.unit.model.audio.test_said import id3, needs_ffmpeg, text_frame
from tests.unit.model.audio.test_said_chunks import acid

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the decoder's filter is Linux's")


async def decoded(file: Path | bytes) -> UploadedClip:
    async with Decoder(LIMITS) as decoder:
        return await decoder.decode(file)


def saying(**told: object) -> dict[str, object]:
    return FIELDS | {"said": {"tags": NOTHING, "chunk": NOTHING | told}}


@pytest.mark.anyio
@pytest.mark.parametrize("answer", [
    FIELDS | {"said": None},
    FIELDS | {"said": {"tags": NOTHING}},
    FIELDS | {"said": {"tags": NOTHING, "chunk": {}}},
    saying(tempo_bpm=float("nan")),
    saying(tempo_bpm=0.0),
    saying(tempo_bpm=1e9),
    saying(tempo_bpm=True),
    saying(tempo_bpm="120"),
    saying(tempo_bpm=10**400),
    saying(beats=-1.0),
    saying(beats=1e300),
    saying(beats=float("inf")),
    saying(key="A minor\n"),
    saying(key="Am"),
    saying(key="x" * 10_000),
    saying(key=[]),
    saying(root=12),
    saying(root=0.0),
    saying(kind="song"),
    saying(kind=["loop"]),
    saying(warnings=["x" * 10_000]),
    saying(warnings=["x"] * 100),
    saying(warnings={}),
], ids=lambda answer: str(answer["said"])[-60:])  # fmt: skip
async def test_a_fact_that_our_code_could_not_give_is_a_crash(answer: dict[str, object]) -> None:
    with pytest.raises(DecoderCrashed):
        await received(answer)


@pytest.mark.anyio
async def test_what_a_file_says_comes_with_its_sources_tags_before_chunks() -> None:
    tags = NOTHING | {"tempo_bpm": 128.0, "key": "F# minor", "warnings": ["odd\x1b"]}
    chunk = NOTHING | {"tempo_bpm": 90.0, "beats": 16.0, "root": 6, "kind": "loop"}
    said = (await received(FIELDS | {"said": {"tags": tags, "chunk": chunk}})).said
    assert (said.tempo_bpm, said.beats, said.key, said.root, said.kind) == (128.0, 16.0, "F# minor", 6, "loop")
    chunks = dict.fromkeys(("beats", "root", "kind"), "chunk")
    assert dict(said.sources) == {"tempo_bpm": "tags", "key": "tags"} | chunks
    assert said.warnings == ("odd\\x1b", "its tags say 128 BPM, its chunks say 90 BPM")


@pytest.mark.parametrize("encoding", range(4))
def test_child_reads_id3_in_every_encoding(encoding: int) -> None:
    tags = id3(text_frame(b"TBPM", "127.5", encoding), text_frame(b"TKEY", "F#m", encoding))
    said = asyncio.run(decoded(tags + encode(noise(), "MP3", "MPEG_LAYER_III"))).said
    assert (said.tempo_bpm, said.key, said.warnings) == (127.5, "F# minor", ())
    assert dict(said.sources) == {"tempo_bpm": "tags", "key": "tags"}


@needs_ffmpeg
@pytest.mark.parametrize("kind", ["flac", "ogg", "m4a", "aiff"])
def test_child_reads_tags_of_every_kind_as_we_do(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"loop.{kind}"
    tone = ["-f", "lavfi", "-i", "sine=440:duration=2"]
    tags = ["-metadata", "BPM=90", "-metadata", "INITIALKEY=Am", "-movflags", "use_metadata_tags"]
    subprocess.run(["ffmpeg", "-v", "error", *tone, *tags, str(path)], check=True, timeout=60)
    said = asyncio.run(decoded(path)).said
    with path.open("rb") as file:
        assert said == joined([said_of_tags(file), said_of_chunks(file)])
    if kind in ("flac", "ogg"):
        assert (said.tempo_bpm, said.key) == (90.0, "A minor")


def test_child_reads_chunks() -> None:
    more = acid(tempo=120.0, beats=4)
    data = b"RIFF" + struct.pack("<I", len(GOOD) + len(more) - 8) + GOOD[8:] + more
    said = asyncio.run(decoded(data)).said
    assert (said.tempo_bpm, said.beats, said.kind) == (120.0, 4.0, "loop")
    assert set(said.sources.values()) == {"chunk"}


WITHOUT_READERS = """
from service.work import decoding
decoding.said_of_tags = decoding.said_of_chunks = None
decoding.serve_children()
"""


def test_a_tag_reader_that_fails_costs_only_the_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_SERVER", WITHOUT_READERS)
    clip = asyncio.run(decoded(GOOD))
    np.testing.assert_array_equal(clip.waveform, load_clip(GOOD).waveform)
    assert clip.said == Said(warnings=("its tags cannot be read", "its chunks cannot be read"))
