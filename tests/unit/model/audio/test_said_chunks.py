"""What chunks say, in files written here by hand, and what is made of chunks that lie."""

import io
import math
import struct
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.audio.said.chunks import said_of_chunks
from model.audio.said.facts import FASTEST_BPM, MOST_BEATS, SLOWEST_BPM, Said

RATE = 8000
SECONDS = 8.0  # 16 beats at 120 BPM
FRAMES = int(RATE * SECONDS)
APPLE_LOOP = bytes.fromhex("29819273b5bf4aefb78d62d1ef90bb2c")


def riff_chunk(name: bytes, body: bytes, size: int | None = None, pad: bool = True) -> bytes:
    return name + struct.pack("<I", len(body) if size is None else size) + body + b"\0" * (pad and len(body) % 2)


def wav(*chunks: bytes, frames: int = FRAMES) -> bytes:
    layout = riff_chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16))
    body = b"WAVE" + layout + riff_chunk(b"data", bytes(2 * frames)) + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def acid(flags: int = 0, note: int = 60, beats: int = 16, tempo: float = 120.0) -> bytes:
    return riff_chunk(b"acid", struct.pack("<IHHfIHHf", flags, note, 0x8000, 0.0, beats, 4, 4, tempo))


def smpl(note: int = 57, *loops: tuple[int, int]) -> bytes:
    body = struct.pack("<9I", 0, 0, 125_000, note, 0, 0, 0, len(loops), 0)
    body += b"".join(struct.pack("<6I", i, 0, start, last, 0, 0) for i, (start, last) in enumerate(loops))
    return riff_chunk(b"smpl", body)


def aiff_chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack(">I", len(body)) + body + b"\0" * (len(body) % 2)


def aiff(*chunks: bytes, kind: bytes = b"AIFF") -> bytes:
    exponent = 16383 + int(math.log2(RATE))
    rate = struct.pack(">HQ", exponent, int(RATE * 2.0 ** (63 - (exponent - 16383))))
    common = aiff_chunk(b"COMM", struct.pack(">HIH", 1, FRAMES, 16) + rate)
    body = kind + common + b"".join(chunks) + aiff_chunk(b"SSND", bytes(8 + 2 * FRAMES))
    return b"FORM" + struct.pack(">I", len(body)) + body


def basc(beats: int = 16, note: int = 57, scale: int = 1, unit: int = 4, kind: int = 1) -> bytes:
    return aiff_chunk(b"basc", struct.pack(">II5H", 1, beats, note, scale, 4, unit, kind) + bytes(66))


def caf_chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    return name + struct.pack(">q", len(body) if size is None else size) + body


def strings(**pairs: str) -> bytes:
    words = [word for key, value in pairs.items() for word in (key.replace("_", " "), value)]
    return struct.pack(">I", len(pairs)) + b"".join(word.encode() + b"\0" for word in words)


def caf(*chunks: bytes) -> bytes:
    layout = caf_chunk(b"desc", struct.pack(">d4s5I", RATE, b"lpcm", 0, 2, 1, 1, 16))
    return (
        b"caff" + struct.pack(">HH", 1, 0) + layout + b"".join(chunks) + caf_chunk(b"data", bytes(4 + 2 * FRAMES), -1)
    )


def apple_loop(**pairs: str) -> bytes:
    return caf(caf_chunk(b"uuid", APPLE_LOOP + strings(**pairs)))


def read(file: bytes) -> Said:
    return said_of_chunks(io.BytesIO(file))


def facts(said: Said) -> tuple[Any, ...]:
    return said.tempo_bpm, said.beats, said.key, said.root, said.kind


SAID = {
    "acid loop": (wav(acid()), (120.0, 16.0, None, None, "loop")),
    "acid loop with a root": (wav(acid(flags=0x02 | 0x04, note=57)), (120.0, 16.0, None, 9, "loop")),
    "acid root an octave up": (wav(acid(flags=0x12, note=0x45)), (120.0, 16.0, None, 9, "loop")),
    "acid one-shot": (wav(acid(flags=0x03, note=58, beats=0)), (None, None, None, 10, "one-shot")),
    "acid beatmapped track": (wav(acid(flags=0x08)), (120.0, 16.0, None, None, None)),
    "acid before the audio": (
        b"RIFF" + struct.pack("<I", 1000) + b"WAVE" + acid() + wav()[12:],
        (120.0, 16.0, None, None, "loop"),
    ),
    "smpl note": (wav(smpl(57)), (None, None, None, 9, None)),
    "smpl note that every writer puts": (wav(smpl(60)), (None, None, None, None, None)),
    "smpl loop of the whole": (wav(smpl(60, (0, FRAMES - 1))), (None, None, None, None, "loop")),
    "smpl loop of a sustained end": (wav(smpl(60, (4000, FRAMES - 1))), (None, None, None, None, None)),
    "smpl loop of one period": (wav(smpl(57, (0, 99)), frames=100), (None, None, None, 9, None)),
    "acid over smpl": (wav(smpl(57), acid(flags=2, note=62)), (120.0, 16.0, None, 2, "loop")),
    "bext first": (wav(riff_chunk(b"bext", bytes(603)), acid()), (120.0, 16.0, None, None, "loop")),
    "odd chunk without its pad": (
        wav(riff_chunk(b"bext", bytes(603), pad=False), acid()),
        (120.0, 16.0, None, None, "loop"),
    ),
    "basc in minor": (aiff(basc()), (120.0, 16.0, "A minor", 9, "loop")),
    "basc in AIFF-C, major": (aiff(basc(note=49, scale=2), kind=b"AIFC"), (120.0, 16.0, "Db major", 1, "loop")),
    "basc of neither mode": (aiff(basc(scale=3)), (120.0, 16.0, None, 9, "loop")),
    "basc without a key": (aiff(basc(note=0, scale=3)), (120.0, 16.0, None, None, "loop")),
    "basc in eighths": (aiff(basc(beats=24, unit=8)), (90.0, 12.0, "A minor", 9, "loop")),
    "basc one-shot": (aiff(basc(beats=0, kind=2)), (None, None, "A minor", 9, "one-shot")),
    "apple loop": (
        apple_loop(beat_count="16", key_signature="C#", key_type="minor", time_signature="4/4"),
        (120.0, 16.0, "C# minor", 1, "loop"),
    ),
    "apple loop of both modes": (
        apple_loop(beat_count="16", key_signature="Eb", key_type="both", time_signature="4/4"),
        (120.0, 16.0, None, 3, "loop"),
    ),
    "caf info": (caf(caf_chunk(b"info", strings(tempo="93.5", key_signature="Gm"))), (93.5, None, "G minor", 7, None)),
    "no chunk of ours": (wav(), (None,) * 5),
    "another file": (b"fLaC" + bytes(100), (None,) * 5),
    "nothing": (b"", (None,) * 5),
}
LYING = {
    "acid without beats": (wav(acid(beats=0)), (None, None, None, None, None), "0 beats"),
    "acid of a billion beats": (wav(acid(beats=10**9)), (None, None, None, None, None), "1000000000 beats"),
    "acid at no number": (wav(acid(tempo=math.nan)), (120.0, 16.0, None, None, "loop"), "tempo of nan"),
    "acid at nothing": (wav(acid(tempo=0.0)), (120.0, 16.0, None, None, "loop"), "tempo of 0"),
    "acid at less": (wav(acid(tempo=-120.0)), (120.0, 16.0, None, None, "loop"), "tempo of -120"),
    "acid at 10,000": (wav(acid(tempo=10_000.0)), (120.0, 16.0, None, None, "loop"), "tempo of 10000"),
    "acid note 200": (wav(acid(flags=2, note=200)), (120.0, 16.0, None, None, "loop"), "root note 200"),
    "acid of another length": (wav(acid(beats=14)), (120.0, None, None, None, "loop"), "14 beats in 8.000 s"),
    "acid and no sound": (wav(acid(), frames=1), (120.0, None, None, None, "loop"), "16 beats in 0.000 s"),
    "acid of 12 bytes": (wav(riff_chunk(b"acid", bytes(12))), (None,) * 5, "12 bytes of 24"),
    "acid beyond the end": (wav(riff_chunk(b"acid", acid()[8:], size=5000)), (None,) * 5, "24 bytes of 5000"),
    "smpl note 200": (wav(smpl(200)), (None,) * 5, "unity note 200"),
    "smpl cut": (wav(smpl(57))[:-20], (None,) * 5, "16 bytes of 36"),
    "basc of a billion beats": (aiff(basc(beats=10**9)), (None, None, "A minor", 9, None), "1000000000 beats"),
    "basc of one beat": (aiff(basc(beats=1)), (None, None, "A minor", 9, "loop"), "no tempo"),
    "basc in sevenths": (aiff(basc(unit=7)), (None, None, "A minor", 9, None), "1/7 note"),
    "basc note 200": (aiff(basc(note=200)), (120.0, 16.0, None, None, "loop"), "root note 200"),
    "apple loop of words": (apple_loop(beat_count="many"), (None,) * 5, "'many'"),
    "apple loop in H": (apple_loop(key_signature="H"), (None,) * 5, "'H'"),
    "caf at -1": (caf(caf_chunk(b"info", strings(tempo="-1"))), (None,) * 5, "-1 BPM"),
    "a thousand chunks": (wav(*[riff_chunk(b"junk", b"")] * 1000, acid()), (None,) * 5, "more than 512"),
}


@pytest.mark.parametrize("file", SAID)
def test_chunks_say_what_their_writers_meant(file: str) -> None:
    said = read(SAID[file][0])
    assert facts(said) == SAID[file][1]
    assert said.warnings == ()
    assert set(said.sources.values()) <= {"chunk"}


@pytest.mark.parametrize("file", LYING)
def test_chunks_that_lie_are_named_and_not_believed(file: str) -> None:
    said = read(LYING[file][0])
    assert facts(said) == LYING[file][1]
    assert LYING[file][2] in " ".join(said.warnings)
    assert len(said.warnings) == 1


def test_rf64_says_its_length_apart() -> None:
    sizes = riff_chunk(b"ds64", struct.pack("<QQQI", 0, 2 * FRAMES, FRAMES, 0))
    plain = wav(acid())
    layout, rest = plain[12:36], plain[44:]
    rf64 = b"RF64" + b"\xff" * 4 + b"WAVE" + sizes + layout + b"data" + b"\xff" * 4 + rest
    assert facts(read(rf64)) == (120.0, 16.0, None, None, "loop")


def test_audio_is_never_read() -> None:
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            got = super().read(size)
            self.taken += len(got)
            return got

    for file in (wav(acid(), smpl(57)), aiff(basc()), apple_loop(beat_count="16")):
        counting = Counting(file)
        said_of_chunks(counting)
        assert counting.taken < 500


def holds(said: Said) -> bool:
    """Whether all that is said can be."""
    return (
        (said.tempo_bpm is None or SLOWEST_BPM <= said.tempo_bpm <= FASTEST_BPM)
        and (said.beats is None or 0 < said.beats <= MOST_BEATS)
        and (said.root is None or said.root in range(12))
        and set(said.sources)
        == {f for f in ("tempo_bpm", "beats", "key", "root", "kind") if getattr(said, f) is not None}
    )


HEADERS = [
    wav(acid(2, 57), smpl(57, (0, 9)), frames=2),
    aiff(basc())[:200],
    apple_loop(beat_count="16", tempo="120")[:200],
]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_chunks_raise_nothing_and_say_nothing_that_cannot_be(data: st.DataObject) -> None:
    file = bytearray(data.draw(st.sampled_from(HEADERS)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(file) - 1))
        file[at : at + 4] = data.draw(st.binary(max_size=4))
        if not file:
            break
    assert holds(read(bytes(file)))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.floats(width=32))
def test_any_acid_chunk_says_what_fits_the_length_or_is_named(flags: int, note: int, beats: int, tempo: float) -> None:
    said = read(wav(acid(flags, note, beats, tempo), frames=RATE))
    assert holds(said)
    if said.beats is not None and said.tempo_bpm is not None:
        assert said.beats * 60 / said.tempo_bpm == pytest.approx(1.0, rel=0.5 / SLOWEST_BPM)
    if flags & 1 == 0 and not (SLOWEST_BPM <= tempo <= FASTEST_BPM):
        assert said.warnings


def test_a_file_that_cannot_be_read_raises_what_the_system_says() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError("input/output error")

    broken: BinaryIO = Broken(wav())
    with pytest.raises(OSError, match="input/output"):
        said_of_chunks(broken)
