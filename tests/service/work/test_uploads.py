"""A child process decodes what strangers sent: it has limits, it leaves nothing behind, and it is not believed."""

import asyncio
import json
import math
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from model.audio import (
    AudioError,
    ClipTooLong,
    ClipTooShort,
    DecodeFailed,
    EmptyFile,
    NonFiniteSamples,
    SilentClip,
    TooManyChannels,
    UnknownFormat,
    load_clip,
)
from service.settings import Settings
from service.work import answers
from service.work.decoding import DecodeLimits, DecoderCrashed, DecoderError
from service.work.uploads import Decoder, DecoderOutOfMemory, DecoderTimeout, UploadedClip
from tests.audio_files import CELLS, ROWS, by_soundfile
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="looks for processes under /proc")]

LIMITS = DecodeLimits(max_seconds=600, max_channels=8, memory_bytes=512 * 2**20, timeout_s=20, processes=2)
GONE_S = 5.0  # how long a killed process may take to leave the table on a busy machine


@pytest.fixture
async def decoder() -> AsyncIterator[Decoder]:
    async with Decoder(LIMITS) as decoder:
        yield decoder


def noise(seconds: float = 2.0) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (round(seconds * 44100), 2))


def encode(samples: np.ndarray, kind: str = "WAV", subtype: str | None = None, rate: int = 44100) -> bytes:
    return by_soundfile(kind, subtype)(samples, rate)


GOOD = encode(noise())


SLOW_LIMITS = replace(LIMITS, max_seconds=1e9, memory_bytes=2 * 2**30)
"""Under these an hour of silence keeps a child busy for seconds."""


def children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, ppid = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(ppid) == parent and state != "Z":
                found.append(int(folder.name))
    return found


def proc(process: int, name: str) -> str:
    return Path(f"/proc/{process}/{name}").read_text()


def nice(process: int) -> int | None:
    """By how much its priority is below ours; None when it is gone."""
    try:
        return os.getpriority(os.PRIO_PROCESS, process) - os.getpriority(os.PRIO_PROCESS, 0)
    except ProcessLookupError:
        return None


def servers() -> list[int]:
    return [
        child for child in children(os.getpid()) if b"serve_children" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


until = partial(eventually, within_s=GONE_S)


async def test_every_format_is_decoded_under_the_filter_as_without_it(decoder: Decoder, tmp_path: Path) -> None:
    for row in ROWS:
        data = next(cell for cell in CELLS if cell.row is row).bytes()
        (tmp_path / "stem").write_bytes(data)
        wanted = load_clip(data)
        for clip in (await decoder.decode(data), await decoder.decode(tmp_path / "stem")):
            np.testing.assert_array_equal(clip.waveform, wanted.waveform, err_msg=f"{row.container} {row.codec}")
            for fact in ("format", "sample_rate", "channels", "warnings"):
                assert getattr(clip, fact) == getattr(wanted, fact)
            assert clip.warnings == ()


async def test_ffmpeg_is_loaded_by_a_server_of_its_own_and_only_for_a_file_that_needs_it(decoder: Decoder) -> None:
    for kind in ("WAV", "AIFF", "FLAC", "OGG"):
        await decoder.decode(encode(noise(), kind))
    (lean,) = servers()
    assert "libavcodec" not in proc(lean, "maps")
    await decoder.decode(encode(noise(), "MP3", "MPEG_LAYER_III"))
    (with_ffmpeg,) = set(servers()) - {lean}
    assert "libavcodec" in proc(with_ffmpeg, "maps")


async def test_warning_crosses_the_border(decoder: Decoder) -> None:
    data = encode(noise(5.0))
    clip = await decoder.decode(data[: len(data) * 6 // 10])
    assert clip.warnings == ("The file ends early: 3.0 s of 5.0 s could be decoded.",)


async def test_bad_upload_gets_its_error_and_the_next_good_one_is_decoded(
    decoder: Decoder, hour_of_silence: Path
) -> None:
    mp3 = encode(noise(3.0), "MP3")
    not_a_number = noise()
    not_a_number[30_000] = np.nan
    header = struct.pack("<HHIIHH", 1, 64, 44100, 44100 * 128, 128, 16)
    bad: list[tuple[bytes | Path, type[AudioError]]] = [
        (b"", EmptyFile),
        (b"this is not a sound\n" * 100, UnknownFormat),
        (mp3[: len(mp3) // 4], AudioError),
        (encode(noise(1.0)), ClipTooShort),
        (encode(0 * noise(5.0)), SilentClip),
        (hour_of_silence, ClipTooLong),
        (b"RIFF\xff\x0f\0\0WAVEfmt \x10\0\0\0" + header + b"data\0\x0e\0\0" + bytes(3584), TooManyChannels),
        (encode(not_a_number, "WAV", "FLOAT"), NonFiniteSamples),
    ]
    for source, error in bad:
        with pytest.raises(error) as caught:
            await decoder.decode(source)
        assert not isinstance(caught.value, DecoderError)
        assert str(caught.value) == str(type(caught.value)(**caught.value.facts))
        assert (await decoder.decode(GOOD)).duration_s == 2.0


async def test_missing_file_is_an_os_error(decoder: Decoder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await decoder.decode(tmp_path / "nothing.wav")


async def test_slow_file_is_killed_and_the_next_one_is_decoded(hour_of_silence: Path) -> None:
    async with Decoder(replace(SLOW_LIMITS, timeout_s=0.2, processes=1)) as decoder:
        (server,) = servers()
        with pytest.raises(DecoderTimeout) as caught:
            await decoder.decode(hour_of_silence)
        assert caught.value.seconds == 0.2
        await until(lambda: not children(server))
        assert (await decoder.decode(GOOD)).duration_s == 2.0


async def test_greedy_file_runs_out_of_memory_and_the_next_one_is_decoded() -> None:
    # 5 min of waveform take 18 MiB twice: in pieces, and then in one.
    greedy = encode(np.resize(noise(), (300 * 16_000, 1)), rate=16_000)
    async with Decoder(replace(LIMITS, memory_bytes=28 * 2**20)) as decoder:
        with pytest.raises(DecoderOutOfMemory, match="28 MiB"):
            await decoder.decode(greedy)
        assert (await decoder.decode(GOOD)).duration_s == 2.0


async def test_no_more_children_run_than_allowed(decoder: Decoder) -> None:
    (server,) = servers()
    running = [asyncio.create_task(decoder.decode(GOOD)) for _ in range(12)]
    most = 0
    while not all(task.done() for task in running):
        most = max(most, len(children(server)))
        await asyncio.sleep(0)
    assert 1 <= most <= LIMITS.processes
    assert {(await task).duration_s for task in running} == {2.0}


async def test_a_child_steps_back_as_far_as_it_is_told(hour_of_silence: Path) -> None:
    async with Decoder(SLOW_LIMITS) as decoder:
        (server,) = servers()
        tasks = [asyncio.create_task(decoder.decode(hour_of_silence, nice=lowered)) for lowered in (0, 7)]
        await until(lambda: len(children(server)) == 2)
        await until(lambda: {nice(child) for child in children(server)} == {0, 7})
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def busy_child(decoder: Decoder, file: Path) -> AsyncIterator[tuple[int, asyncio.Task[UploadedClip]]]:
    """A child that decodes a file, and whoever waits for it; at the end nobody does any more."""
    (server,) = servers()
    task = asyncio.create_task(decoder.decode(file))
    await until(lambda: children(server))
    (child,) = children(server)
    yield child, task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_server_knows_no_key(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHALAR_ADMIN_KEY", "secret")
    async with Decoder(LIMITS):
        for server in servers():
            assert "PHALAR" not in proc(server, "environ")


async def test_server_stays_small_without_torch(decoder: Decoder) -> None:
    (server,) = servers()
    assert "torch" not in proc(server, "maps")


async def test_child_runs_under_its_limits(hour_of_silence: Path) -> None:
    async with Decoder(SLOW_LIMITS) as decoder, busy_child(decoder, hour_of_silence) as (child, _):
        await until(lambda: "Max open files            0" in proc(child, "limits"))
        limits = {line[:26].strip(): line[26:].split()[0] for line in proc(child, "limits").splitlines()[1:]}
    assert limits["Max open files"] == limits["Max file size"] == limits["Max core file size"] == "0"
    assert limits["Max cpu time"] == str(SLOW_LIMITS.timeout_s + 1)
    assert int(limits["Max address space"]) > SLOW_LIMITS.memory_bytes


NOTHING = {"tempo_bpm": None, "beats": None, "key": None, "root": None, "kind": None, "warnings": []}
FIELDS = {
    "sample_rate": 44100,
    "channels": 2,
    "format": "wav",
    "warnings": [],
    "samples": 20_000,
    "said": {"tags": NOTHING, "chunk": NOTHING},
}


@pytest.mark.parametrize("answer", [
    b"\xff\xff\xff\xff",
    b"not json",
    b"[" * 60_000,
    [],
    {},
    {"code": "clip-too-short"},
    {"code": "no-such-error", "facts": {}},
    {"code": "clip-too-short", "facts": {"seconds": "much", "minimum": 1}},
    {"code": "clip-too-short", "facts": {"seconds": float("nan")}},
    {"code": "too-many-channels", "facts": {"channels": 64, "maximum": 8, "more": 1}},
    {"code": ["clip-too-short"], "facts": {}},
    FIELDS | {"samples": 10**12},
    FIELDS | {"samples": 16_384},
    FIELDS | {"samples": 20_000.0},
    FIELDS | {"samples": True},
    FIELDS | {"channels": 0},
    FIELDS | {"format": "exe"},
    FIELDS | {"format": []},
    FIELDS | {"warnings": "none"},
    FIELDS | {"warnings": ["x" * 10_000]},
    FIELDS | {"warnings": ["x"] * 100},
], ids=lambda answer: str(answer)[:60])  # fmt: skip
async def test_answer_that_our_code_could_not_give_is_a_crash(answer: object) -> None:
    with pytest.raises(DecoderCrashed):
        await received(answer)


async def test_text_of_a_child_comes_out_as_it_can_be_shown() -> None:
    clip = await received(FIELDS | {"warnings": ["odd \ud800\x1b[2J"]})
    assert clip.warnings == ("odd \\ud800\\x1b[2J",)
    with pytest.raises(DecodeFailed) as failed:
        await received({"code": "decode-failed", "facts": {"reason": "\udcff"}})
    assert failed.value.facts == {"reason": "\\xff"}
    assert "\\xff" in str(failed.value)


async def test_answer_with_samples_that_are_not_finite_is_a_crash() -> None:
    with pytest.raises(DecoderCrashed, match="finite"):
        await received(FIELDS, np.full(20_000, np.nan, np.float32).tobytes())


async def received(answer: object, samples: bytes = bytes(4 * 20_000)) -> UploadedClip:
    """What is made of a child's answer: JSON, or bytes that should be it."""
    text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    message = (text if text[:1] == b"\xff" else struct.pack("!I", len(text)) + text) + samples
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(theirs, message))
        try:
            async with asyncio.timeout(60) as patience:
                fields, waveform = await answers.receive_clip(ours, LIMITS, None, patience, math.inf)
                del fields["samples"]
                return UploadedClip(waveform, **fields)
        finally:
            sending.cancel()


def test_limits_come_from_the_settings() -> None:
    limits = DecodeLimits.of(Settings(max_clip_s=7, max_channels=3, decode_timeout_s=2, decoders=5))
    assert (limits.max_seconds, limits.max_channels, limits.timeout_s, limits.processes) == (7, 3, 2, 5)
