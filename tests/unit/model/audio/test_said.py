"""What tags say, and tags, chunks and name together; an exact tempo."""

import io
import json
import math
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.audio.said import Said, exact_tempo, key_of_text, said_of_file, said_of_tags
from model.audio.said.facts import tempo_of_text
from tests.unit.model.audio.test_said_chunks import FRAMES, SECONDS, acid, aiff, aiff_chunk, riff_chunk, wav

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg here writes these files")
ENCODINGS = ["latin-1", "utf-16", "utf-16-be", "utf-8"]  # by ID3's number


def text_frame(name: bytes, text: str, encoding: int = 0) -> bytes:
    body = bytes([encoding]) + text.encode(ENCODINGS[encoding])
    return name + struct.pack(">I", len(body)) + b"\0\0" + body


def id3(*frames: bytes) -> bytes:
    body = b"".join(frames)
    size = bytes((len(body) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + size + body


def mp3(*frames: bytes) -> bytes:
    return id3(*frames) + b"\xff\xfb\x90\0" + bytes(413)


def tags(file: bytes) -> Said:
    return said_of_tags(io.BytesIO(file))


TEMPI = {"128": 128, "128.0": 128, "127,50": 127.5, " 93 BPM ": 93, "93bpm\0": 93, "0": None, "000": None, "": None}
TEMPI |= {"117.45383522727273": 117.45383522727273, "128.": 128}
KEYS = {
    "Am": "A minor",
    "A minor": "A minor",
    "amin": "A minor",
    "A": "A major",
    "F\u266fm": "F# minor",
    "Ebmaj": "Eb major",
    "Dbm": "C# minor",
    "Cb": "B major",
    "8A": "A minor",
    "08a": "A minor",
    "8B": "C major",
    "1A": "G# minor",
    "12B": "E major",
    "1m": "A minor",
    "1d": "C major",
    "8A - 6": "A minor",
    "Gm\0": "G minor",
    "o": None,
    "": None,
}
NO_TEMPI = ["fast", "-120", "10000", "nan", "1e2", "12 0", "120 Am", "inf", "9" * 50, "\u0661\u0662\u0660"]
NO_KEYS = ["H", "13A", "0A", "A7", "Am/C", "off", "AM", "C ionian", "#", "x" * 5000]


@pytest.mark.parametrize("text", TEMPI)
def test_tempo_tags_are_read_as_they_are_written(text: str) -> None:
    assert tempo_of_text(text) == TEMPI[text]


@pytest.mark.parametrize("text", KEYS)
def test_key_tags_are_read_as_they_are_written(text: str) -> None:
    assert key_of_text(text) == KEYS[text]


@pytest.mark.parametrize("text", NO_TEMPI)
def test_what_is_no_tempo_is_named(text: str) -> None:
    said = tags(mp3(text_frame(b"TBPM", text, 1), text_frame(b"TKEY", "Am")))
    assert (said.tempo_bpm, said.key) == (None, "A minor")
    assert len(said.warnings) == 1
    assert len(said.warnings[0]) < 100


@pytest.mark.parametrize("text", NO_KEYS)
def test_what_is_no_key_is_named(text: str) -> None:
    said = tags(mp3(text_frame(b"TBPM", "90"), text_frame(b"TKEY", text)))
    assert (said.tempo_bpm, said.key) == (90.0, None)
    assert len(said.warnings) == 1
    assert len(said.warnings[0]) < 100


@pytest.mark.parametrize("encoding", range(4))
def test_id3_is_read_in_every_encoding(encoding: int) -> None:
    said = tags(mp3(text_frame(b"TBPM", "128", encoding), text_frame(b"TKEY", "F#m", encoding)))
    assert (said.tempo_bpm, said.key, said.warnings) == (128.0, "F# minor", ())
    assert said.sources == {"tempo_bpm": "tags", "key": "tags"}


@pytest.mark.parametrize("name", [b"id3 ", b"ID3 "])
def test_id3_is_read_inside_wav_and_aiff(name: bytes) -> None:
    tag = id3(text_frame(b"TBPM", "128"), text_frame(b"TKEY", "Am"))
    for file in (wav(riff_chunk(name, tag)), aiff(aiff_chunk(name, tag))):
        said = tags(file)
        assert (said.tempo_bpm, said.key, said.warnings) == (128.0, "A minor", ())


@needs_ffmpeg
@pytest.mark.parametrize(
    ("ending", "fields"),
    [
        ("flac", {"BPM": "128", "INITIALKEY": "Am"}),
        ("flac", {"TEMPO": "128", "KEY": "8A"}),
        ("ogg", {"bpm": "128", "initialkey": "A minor"}),
        ("opus", {"BPM": "128", "key": "Am"}),
        ("mp3", {"TBPM": "128", "TKEY": "Am"}),
        ("aiff", {"TBPM": "128", "TKEY": "Am"}),
    ],
)
def test_tags_are_read_as_others_write_them(tmp_path: Path, ending: str, fields: dict[str, str]) -> None:
    path = tmp_path / f"clip.{ending}"
    sets = [word for field, text in fields.items() for word in ("-metadata", f"{field}={text}")]
    more = ["-write_id3v2", "1"] if ending == "aiff" else []
    tone = ["-f", "lavfi", "-i", "sine=duration=0.2"]
    subprocess.run(["ffmpeg", "-v", "error", *tone, *sets, *more, str(path)], check=True, timeout=60)
    with path.open("rb") as file:
        said = said_of_tags(file)
    assert (said.tempo_bpm, said.key, said.warnings) == (128.0, "A minor", ())


def atom(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + name + body


def test_mp4_tempo_and_free_key_are_read() -> None:
    tempo = atom(b"tmpo", atom(b"data", struct.pack(">IIH", 21, 0, 128)))
    named = atom(b"mean", bytes(4) + b"com.apple.iTunes") + atom(b"name", bytes(4) + b"initialkey")
    key = atom(b"----", named + atom(b"data", struct.pack(">II", 1, 0) + b"Am"))
    metadata = atom(b"meta", bytes(4) + atom(b"ilst", tempo + key))
    said = tags(atom(b"ftyp", b"M4A \0\0\0\0") + atom(b"moov", atom(b"udta", metadata)))
    assert (said.tempo_bpm, said.key, said.warnings) == (128.0, "A minor", ())


def test_files_without_tags_say_nothing() -> None:
    for file in (b"", b"RIFF", wav(), aiff(), b"\xff\xfb\x90\0" + bytes(413), b"caff\0\1\0\0" + bytes(40), bytes(64)):
        assert tags(file) == Said()


def test_a_file_of_countless_tags_is_given_up() -> None:
    said = tags(mp3(*[text_frame(b"TXXX", f"k\0{i}") for i in range(5_000)], text_frame(b"TBPM", "128")))
    assert said == Said(warnings=("its tags cannot be read",))


def ogg(packet: bytes, page: int = 250) -> bytes:
    """A Vorbis file's first two packets, the second in pages of `page` full segments."""
    lacing = [255] * (len(packet) // 255) + [len(packet) % 255]
    pages, at = [(b"\x01vorbis" + bytes(23), [30])], 0
    for first in range(0, len(lacing), page):
        sizes = lacing[first : first + page]
        pages.append((packet[at : at + sum(sizes)], sizes))
        at += sum(sizes)
    return b"".join(
        b"OggS\0\0" + bytes(8) + struct.pack("<3IB", 7, number, 0, len(sizes)) + bytes(sizes) + body
        for number, (body, sizes) in enumerate(pages)
    )


def comments(*entries: bytes) -> bytes:
    listed = b"".join(struct.pack("<I", len(entry)) + entry for entry in entries)
    return b"\x03vorbis" + struct.pack("<I", 3) + b"abc" + struct.pack("<I", len(entries)) + listed + b"\1"


def test_ogg_comments_are_read_among_countless_others_and_across_pages() -> None:
    many = [b"a=%d" % i for i in range(50_000)]
    said = tags(ogg(comments(*many, b"Bpm=128", b"INITIALKEY=Am")))
    assert (said.tempo_bpm, said.key, said.warnings) == (128.0, "A minor", ())


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_ogg_comments_raise_nothing(data: st.DataObject) -> None:
    file = bytearray(ogg(comments(b"title=some", b"bpm=128"), page=1))
    for _ in range(data.draw(st.integers(1, 5))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    assert tags(bytes(file[: data.draw(st.integers(0, len(file)))])).key is None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_tags_raise_nothing(data: st.DataObject) -> None:
    tag = id3(text_frame(b"TBPM", "128", 1), text_frame(b"TKEY", "Am"))
    file = bytearray(data.draw(st.sampled_from([tag + bytes(20), wav(riff_chunk(b"id3 ", tag), frames=2)])))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(file) - 1))
        file[at] = data.draw(st.integers(0, 255))
    said = tags(bytes(file))
    assert said.tempo_bpm is None or 20 <= said.tempo_bpm <= 400


def write(folder: Path, name: str, file: bytes) -> Path:
    path = folder / name
    path.write_bytes(file)
    return path


def test_tags_are_believed_before_chunks_and_chunks_before_names(tmp_path: Path) -> None:
    tag = riff_chunk(b"id3 ", id3(text_frame(b"TKEY", "Gm")))
    said = said_of_file(write(tmp_path, "133bpm_Am_OneShot.wav", wav(acid(), tag)))
    assert (said.tempo_bpm, said.beats, said.key, said.kind) == (120.0, 16.0, "G minor", "loop")
    assert said.sources == {"tempo_bpm": "chunk", "beats": "chunk", "key": "tags", "kind": "chunk"}
    assert said.warnings == (
        "its chunks say 120 BPM, its name says 133 BPM",
        "its tags say G minor, its name says A minor",
        "its chunks say loop, its name says one-shot",
    )


def test_a_root_note_beside_the_key_is_named(tmp_path: Path) -> None:
    said = said_of_file(write(tmp_path, "Am.wav", wav(acid(flags=2, note=62))))
    assert (said.key, said.root) == ("A minor", 2)
    assert said.warnings == ("its chunks say a root note of D, its name says A minor",)


def test_sources_that_agree_or_differ_by_an_octave_raise_no_warning(tmp_path: Path) -> None:
    for name in ("120bpm_Am.wav", "60bpm_Am.wav", "240bpm A minor.wav", "loop.wav"):
        said = said_of_file(write(tmp_path, name, wav(acid(flags=2, note=57))))
        assert (said.tempo_bpm, said.warnings) == (120.0, ())


def test_a_file_is_read_under_the_name_it_was_sent_with(tmp_path: Path) -> None:
    path = write(tmp_path, "5f3a90bpm", wav())
    assert said_of_file(path, "Pad 92bpm Gm.wav").tempo_bpm == 92.0
    assert json.dumps(dict(said_of_file(path, "Gm.wav").sources)) == '{"key": "name"}'


def test_a_missing_file_raises_what_the_system_says(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        said_of_file(tmp_path / "none.wav")


def said(tempo: float | None = None, beats: float | None = None, kind: str | None = None) -> Said:
    sources = {"tempo_bpm": "name"} if tempo else {}
    return Said(tempo, beats, None, None, kind, {**sources, **({"beats": "chunk"} if beats else {})})  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("beats", [1, 4, 7, 16, 64, 1200])
@pytest.mark.parametrize("tempo", [61.37, 92.0, 120.0, 127.5, 173.913])
def test_a_loop_gets_the_tempo_that_makes_it_whole(tempo: float, beats: int, rate: int) -> None:
    seconds = int(60 * beats / tempo * rate) / rate  # cut at a sample
    exact = exact_tempo(seconds, said(round(tempo, 2)))
    assert exact.beats == beats
    assert exact.tempo_bpm == pytest.approx(60 * beats / seconds, rel=1e-12)
    assert exact.sources == {"tempo_bpm": "name", "beats": "name"}


def test_a_song_is_seldom_whole_by_chance_whatever_its_length() -> None:
    """Its grid would begin with its first sample, wherever its beats are."""
    for seconds, most in ((20.0, 0.01), (240.0, 0.02), (1200.0, 0.08)):
        lengths = np.random.default_rng(0).uniform(seconds, 1.1 * seconds, 5000)
        whole = [exact_tempo(float(length), said(120.0)).beats is not None for length in lengths]
        assert np.mean(whole) < most


@pytest.mark.parametrize("seconds", [8.01, 8.1, 8.25, 0.1, 7.98])
def test_a_clip_that_is_no_whole_number_of_beats_keeps_its_tempo(seconds: float) -> None:
    assert exact_tempo(seconds, said(120.0)) == said(120.0)


def test_stated_beats_are_believed_within_a_rounded_tempo() -> None:
    exact = exact_tempo(5.529954, said(174.0, 16.0))
    assert exact.tempo_bpm == pytest.approx(173.6, abs=1e-3)
    assert exact.sources == {"tempo_bpm": "name", "beats": "chunk"}
    assert exact_tempo(FRAMES / 8000, said(None, 16.0)).tempo_bpm == 120.0
    assert exact_tempo(SECONDS, said(133.0, 16.0)) == said(133.0, 16.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, 1e-9, 1e9])
def test_no_length_makes_a_tempo_that_no_music_has(seconds: float) -> None:
    for facts in (said(120.0), said(None, 16.0), said(120.0, 16.0), said(), said(kind="one-shot", tempo=120.0)):
        exact = exact_tempo(seconds, facts)
        assert exact == facts or (exact.tempo_bpm is not None and exact.tempo_bpm == pytest.approx(120.0))
