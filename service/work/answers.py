"""What a decoder's child answers, read by the process that asked: nothing in it is believed before it is checked."""

import asyncio
import json
import math
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from model.audio import MIN_SECONDS, SAMPLE_RATE, SAMPLE_RATES, AudioError, AudioFormat
from model.audio.said import MOST_BEATS, Kind, Said, is_tempo, joined, key_of_text, said_by
from service.text import shown
from service.work.decoding import LENGTH, MAX_JSON, MAX_SAID, MAX_WARNING, DecodeLimits, DecoderCrashed, DecoderError
from service.work.encoding import FittedTooLong, FormatCannotHold
from service.work.fitting import StartBeyondEnd
from service.work.turns import Budget

PIECE = 1 << 20
HEADER = 1 << 16
"""Bytes of a file beside its samples, more than any format needs."""


@dataclass(frozen=True)
class FittedAudio:
    """What a fitted file holds; `frames` at `sample_rate` Hz in each of `channels`."""

    sample_rate: int
    channels: int
    frames: int


# What is wrong with a file, as a child may say it; of its own end it can say nothing.
_SAYABLE: tuple[type[AudioError], ...] = (DecoderCrashed, *AudioError.__subclasses__())
_KINDS = {kind.code: kind for kind in _SAYABLE if kind is not DecoderError}
assert {StartBeyondEnd, FittedTooLong, FormatCannotHold} <= {*_SAYABLE}


async def receive_clip(
    sock: socket.socket, limits: DecodeLimits, budget: Budget | None, patience: asyncio.Timeout, keep_s: float
) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
    """Read an answer that may come from a process somebody else has taken over: its fields, and its samples unless they
    last longer than `keep_s`.

    `patience` is with the child: it stands still while there is no room in the budget.

    Raises:
        AudioError: the answer is an error, or (DecoderCrashed) no answer that our code could give.
        EOFError: the child ended before its answer did.
    """
    fields = await _read_fields(sock, lambda answer: _checked_fields(answer, limits))
    samples = fields["samples"]
    if samples > keep_s * SAMPLE_RATE:
        return fields, None
    if budget is not None:
        patience.reschedule(None)
        taken = await budget.take(samples)
        patience.reschedule(asyncio.get_running_loop().time() + limits.timeout_s)
    waveform = np.empty(samples, np.float32)
    if budget is not None:
        budget.until_forgotten(waveform, taken)
    await _fill(sock, waveform.data)
    if not (np.isfinite(waveform.max()) and np.isfinite(waveform.min())):
        raise DecoderCrashed("its samples are not finite")
    return fields, waveform


async def receive_file(sock: socket.socket, limits: DecodeLimits, into: BinaryIO) -> FittedAudio:
    """Read an answer that is a file, piece by piece into another, which has nothing else in it then.

    Raises:
        AudioError, EOFError: as `receive_clip`.
        OSError: the file cannot be written.
    """
    into.seek(0)
    into.truncate()
    told = await _read_fields(sock, lambda answer: _checked_file(answer, limits))
    left = told.pop("bytes")
    piece = bytearray(min(PIECE, left))
    while left:
        part = memoryview(piece)[: min(PIECE, left)]
        await _fill(sock, part)
        await asyncio.to_thread(into.write, part)
        left -= len(part)
    return FittedAudio(**told)


async def _read_fields(sock: socket.socket, checked: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    prefix = bytearray(LENGTH.size)
    await _fill(sock, prefix)
    (length,) = LENGTH.unpack(prefix)
    if length > MAX_JSON:
        raise DecoderCrashed("its answer is too long")
    text = bytearray(length)
    await _fill(sock, text)
    try:
        answer = json.loads(text)
        if "code" not in answer:
            return checked(answer)
        problem = _KINDS[answer["code"]](**{name: _shown(fact) for name, fact in answer["facts"].items()})
        json.dumps([str(problem), problem.facts], allow_nan=False)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DecoderCrashed("its answer makes no sense") from error
    raise problem


def _checked_file(answer: dict[str, Any], limits: DecodeLimits) -> dict[str, Any]:
    rate, channels, frames, size = (answer[name] for name in ("sample_rate", "channels", "frames", "bytes"))
    for number, low, high in (
        (rate, SAMPLE_RATES.start, SAMPLE_RATES.stop - 1),
        (channels, 1, limits.max_channels),
        (frames, 0, math.ceil(limits.max_seconds * rate)),
        (size, 1, frames * channels * 4 + HEADER),
    ):
        if type(number) is not int or not low <= number <= high:
            raise ValueError(number)
    return {"sample_rate": rate, "channels": channels, "frames": frames, "bytes": size}


def _shown(fact: Any) -> Any:
    return shown(fact) if isinstance(fact, str) else fact


def _checked_fields(answer: dict[str, Any], limits: DecodeLimits) -> dict[str, Any]:
    rate, channels, samples = answer["sample_rate"], answer["channels"], answer["samples"]
    warnings, kind = answer["warnings"], answer["format"]
    longest = math.ceil(limits.max_seconds * SAMPLE_RATE) + SAMPLE_RATE  # a resampler may round up, never by a second
    for number, low, high in (
        (rate, 1, 2**31),
        (channels, 1, limits.max_channels),
        (samples, int(MIN_SECONDS * SAMPLE_RATE) + 1, longest),
    ):
        if type(number) is not int or not low <= number <= high:
            raise ValueError(number)
    if kind not in get_args(AudioFormat):
        raise ValueError(kind)
    return {
        "sample_rate": rate,
        "channels": channels,
        "samples": samples,
        "warnings": _checked_warnings(warnings, 8),
        "format": kind,
        "said": joined([_checked_said(answer["said"][source], source) for source in ("tags", "chunk")]),
    }


def _checked_said(told: dict[str, Any], source: Literal["tags", "chunk"]) -> Said:
    tempo, beats, key, root, kind = (told[name] for name in ("tempo_bpm", "beats", "key", "root", "kind"))
    if not (tempo is None or (type(tempo) is float and is_tempo(tempo))):
        raise ValueError(tempo)
    if not (beats is None or (type(beats) is float and 0 < beats <= MOST_BEATS)):
        raise ValueError(beats)
    if not (key is None or (type(key) is str and key_of_text(key) == key)):
        raise ValueError(key)
    if not (root is None or (type(root) is int and 0 <= root < 12)):
        raise ValueError(root)
    if not (kind is None or kind in get_args(Kind)):
        raise ValueError(kind)
    return said_by(source, Said(tempo, beats, key, root, kind, warnings=_checked_warnings(told["warnings"], MAX_SAID)))


def _checked_warnings(warnings: Any, most: int) -> tuple[str, ...]:
    if type(warnings) is not list or len(warnings) > most:
        raise ValueError("too many warnings")
    if not all(type(warning) is str and len(warning) <= MAX_WARNING for warning in warnings):
        raise ValueError("a warning is too long")
    return tuple(map(shown, warnings))


async def _fill(sock: socket.socket, buffer: bytearray | memoryview) -> None:
    loop, rest = asyncio.get_running_loop(), memoryview(buffer).cast("B")
    while rest:
        try:
            count = await loop.sock_recv_into(sock, rest)
        except ConnectionResetError:  # it ended before it read what we asked
            count = 0
        if count == 0:
            raise EOFError
        rest = rest[count:]
