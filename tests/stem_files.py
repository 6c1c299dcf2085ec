"""Native Stem files as their makers write them: five AAC streams, and JSON in `moov/udta/stem`."""

import json
from pathlib import Path

import av
import numpy as np

RATE, STEMS = 44_100, 4
NAMES = ("Drums", "Bass", "Melody", "Vocals")
SAID = json.dumps(
    {"version": 1, "mastering_dsp": {}, "stems": [{"name": name, "color": "#009E73"} for name in NAMES]}
).encode()


def tone(stream: int) -> float:
    """What a stream plays, Hz."""
    return 220.0 * (stream + 1)


def write_stem_file(path: Path, said: bytes | None, seconds: float = 2.0) -> Path:
    """A stem file whose streams play a tone each, the first, the mix, all of them; `said`: of the stems."""
    time_s = np.arange(round(seconds * RATE)) / RATE
    tones = [0.2 * np.sin(2 * np.pi * tone(stream) * time_s) for stream in range(1, STEMS + 1)]
    with av.open(str(path), "w", format="mp4") as out:
        streams = [out.add_stream("aac", rate=RATE, layout="mono") for _ in range(STEMS + 1)]
        for stream, audio in zip(streams, [sum(tones), *tones], strict=True):
            frame = av.AudioFrame.from_ndarray(np.float32(audio)[None], format="fltp", layout="mono")
            frame.sample_rate = RATE
            for packet in (*stream.encode(frame), *stream.encode(None)):
                out.mux(packet)
    if said is not None:
        path.write_bytes(_with_udta(path.read_bytes(), said))
    return path


def _with_udta(audio: bytes, said: bytes) -> bytes:
    """`moov` is the last box that FFmpeg writes, so nothing moves when it grows."""
    at = audio.index(b"moov") - 4
    size = int.from_bytes(audio[at : at + 4])
    assert at + size == len(audio), "moov is last"
    udta = _box(b"udta", _box(b"stem", said))
    return audio[:at] + (size + len(udta)).to_bytes(4) + audio[at + 4 :] + udta


def _box(kind: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4) + kind + content
