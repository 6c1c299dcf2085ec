"""Inside the decoder: the server that forks a child for each file, and the whole life of a child.

It imports no more than a child needs: what is not mapped is not copied.
"""

import codecs
import ctypes
import gc
import importlib
import io
import json
import math
import os
import pkgutil
import resource
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn, get_args

import numpy as np

from model.audio import AudioError, load_clip, load_part
from model.audio.said import Said, said_of_chunks, said_of_tags
from service.work.encoding import FittedFormat, FittedTooLong, Order, encode
from service.work.fitting import Fitting, fit, frames_needed
from service.work.sandbox import Confinement, FilterUnavailable, refuse_all_other_calls

if TYPE_CHECKING:
    from service.settings import Settings  # the server has no use for it


class DecoderError(AudioError):
    """The decoder did not come to an answer about this file; the next file gets a new child."""

    code = "decoder-error"


class DecoderCrashed(DecoderError):
    """The child died or answered nonsense; `reason` says how, for the log: whoever took the child over wrote it."""

    code = "decoder-crashed"
    public = "The file broke the decoder."
    says = "The file broke the decoder ({reason})."
    reason: str


@dataclass(frozen=True)
class DecodeLimits:
    """What one file may cost.

    `memory_bytes` is address space on top of the loaded libraries; `timeout_s` counts from the child's start, not the
    wait for it; `processes` children run at a time.
    """

    max_seconds: float
    max_channels: int
    memory_bytes: int
    timeout_s: float
    processes: int

    @classmethod
    def of(cls, settings: "Settings") -> "DecodeLimits":
        return cls(
            max_seconds=settings.max_clip_s,
            max_channels=settings.max_channels,
            memory_bytes=settings.decode_memory_bytes,
            timeout_s=settings.decode_timeout_s,
            processes=settings.decoders,
        )


# A message to or from the server: kind, number of the job, and a number. START: the child's niceness; two descriptors
# come with it, the file and the child's end of the socket for its answer. READY: how children will be held. ENDED: the
# child's wait status.

MESSAGE = struct.Struct("!cQi")
START, KILL, READY, ENDED = b"S", b"K", b"R", b"E"
CONFINEMENTS: tuple[Confinement, ...] = ("filtered", "limits-only")

# A request waits in the child's socket: length of the JSON; the JSON, an Order, or null for the clip as it is.
#
# An answer: length of the JSON; the JSON, either {"code", "facts"} or the clip's fields with its number of samples and,
# by source, what the file says of its music; the samples. Or, to an Order, what the file holds, and its bytes.

LENGTH = struct.Struct("!I")
MAX_JSON = 2**16
MAX_WARNING = 500
MAX_SAID = 16  # warnings of one source
OUT_OF_MEMORY = 3  # exit status
TAG_ENCODINGS = ("ascii", "latin-1", "utf-8", "utf-16", "utf-16-le", "utf-16-be")


def serve_children() -> NoReturn:
    """Fork a child for every file that arrives, until the other end of the control socket closes.

    Arguments of the process: the control socket's descriptor, and as JSON DecodeLimits and whether FFmpeg is wanted.
    """
    # A low number: neither `select` nor what a child closes goes beyond 1,023, and a busy API may give us a higher one.
    control = socket.socket(fileno=os.dup(int(sys.argv[1])))
    os.close(int(sys.argv[1]))
    limits = DecodeLimits(**json.loads(sys.argv[2]))
    woken, waker = socket.socketpair()
    woken.setblocking(False)
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _warm_up(with_ffmpeg=json.loads(sys.argv[3]))
    address_space = _address_space() + limits.memory_bytes
    control.sendall(MESSAGE.pack(READY, 0, CONFINEMENTS.index(_try_confinement())))

    children: dict[int, int] = {}  # job -> process
    while True:
        readable, _, _ = select.select([control, woken], [], [])
        if woken in readable:
            woken.recv(4096)
            for job, process in list(children.items()):
                reaped, status = os.waitpid(process, os.WNOHANG)
                if reaped:
                    del children[job]
                    with suppress(BrokenPipeError):
                        control.sendall(MESSAGE.pack(ENDED, job, status))
        if control in readable:
            try:
                message, descriptors, _, _ = socket.recv_fds(control, MESSAGE.size, 2)
            except ConnectionResetError:  # the other end died with messages of ours unread
                break
            if not message:
                break
            kind, job, nice = MESSAGE.unpack(message)
            if kind == START:
                server = os.getpid()
                process = os.fork()
                if process == 0:
                    os.nice(nice)
                    _decode_and_exit(*descriptors, server=server, address_space=address_space, limits=limits)
                children[job] = process
                for descriptor in descriptors:
                    os.close(descriptor)
            elif kind == KILL and job in children:  # not yet reaped, so the number is still this child's
                os.kill(children[job], signal.SIGKILL)
    for process in children.values():
        os.kill(process, signal.SIGKILL)
    for process in children.values():
        os.waitpid(process, 0)
    os._exit(0)


def _warm_up(*, with_ffmpeg: bool) -> None:
    """Import and resolve, before the first fork, all that a child may need: it cannot open a file itself."""
    if with_ffmpeg:
        import av

        for module in pkgutil.walk_packages(av.__path__, "av."):  # PyAV imports its stream types when it meets them
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    tone = (8000 * np.sin(np.arange(2 * 8000))).astype("<i2").tobytes()
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 16_000, 2, 16)
    wav = b"RIFF\0\0\0\0WAVE" + fmt + struct.pack("<4sI", b"data", len(tone)) + tone
    load_clip(wav)
    _said(io.BytesIO(wav))
    part = load_part(io.BytesIO(wav), lambda _: (0, None), max_seconds=2)
    samples = fit(part.samples, part.sample_rate, Fitting(1.1, 1, rate=16_000))
    for format in get_args(FittedFormat):
        encode(samples, 16_000, format)
    for encoding in TAG_ENCODINGS:
        codecs.lookup(encoding)  # Python imports each where it first meets it
    gc.freeze()  # a collection in a child would touch, and so copy, every page


def _try_confinement() -> Confinement:
    """How children will be held on this system, found out by one that tries to open a file."""
    process = os.fork()
    if process == 0:
        status = CONFINEMENTS.index("limits-only")
        try:
            _set_process_flags()
            refuse_all_other_calls()
            os.open("/", os.O_RDONLY)
        except PermissionError:
            status = CONFINEMENTS.index("filtered")
        finally:
            os._exit(status)
    _, ended = os.waitpid(process, 0)
    return "filtered" if ended == CONFINEMENTS.index("filtered") else "limits-only"


def _address_space() -> int:
    """Bytes that this process has mapped; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        return 0


def _decode_and_exit(file: int, answer: int, *, server: int, address_space: int, limits: DecodeLimits) -> NoReturn:
    """The whole life of a child."""
    status = 1
    try:
        # Opened before the confinement: to look at a descriptor takes calls that a decoder has no other use for.
        with open(file, "rb") as audio, socket.socket(fileno=answer) as sock:
            (length,) = LENGTH.unpack(sock.recv(LENGTH.size, socket.MSG_WAITALL))
            told = json.loads(sock.recv(length, socket.MSG_WAITALL))
            _confine(file, answer, server, address_space, limits)
            _answer(audio, sock, limits, told and Order.of(told))
        status = 0
    except MemoryError:
        status = OUT_OF_MEMORY
    finally:
        os._exit(status)


def _confine(file: int, answer: int, server: int, address_space: int, limits: DecodeLimits) -> None:
    """Give up all that decoding does not need."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _set_process_flags()
    if os.getppid() != server:  # it died before the line above
        os._exit(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)  # libmpg123 writes what it thinks of a file to stderr
    low, high = sorted((file, answer))
    os.closerange(3, low)
    os.closerange(low + 1, high)
    os.closerange(high + 1, 1024)
    seconds = math.ceil(limits.timeout_s) + 1
    for what, most in (
        (resource.RLIMIT_AS, address_space),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),  # what is open stays open; no file, no connection can be opened
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    with suppress(FilterUnavailable):  # the server has found that out before, and it was logged
        refuse_all_other_calls()


def _set_process_flags() -> None:
    """Die with the server, gain no privilege, and be no one's to trace."""
    if sys.platform == "linux":
        for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0)):
            if _libc.prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3) != 0:
                raise OSError(ctypes.get_errno(), f"prctl {option}")


def _answer(audio: BinaryIO, sock: socket.socket, limits: DecodeLimits, order: Order | None) -> None:
    data: memoryview | bytes = b""
    try:
        answer, data = _clip(audio, limits) if order is None else _fitted(audio, limits, order)
    except AudioError as error:
        answer = {"code": error.code, "facts": error.facts}
    except MemoryError:
        raise
    except Exception as error:
        answer = {"code": DecoderCrashed.code, "facts": {"reason": f"{type(error).__name__}: {error}"[:MAX_WARNING]}}
    text = json.dumps(answer).encode()
    sock.sendall(LENGTH.pack(len(text)) + text)
    sock.sendall(data)


def _clip(audio: BinaryIO, limits: DecodeLimits) -> tuple[dict[str, object], memoryview]:
    clip = load_clip(audio, max_seconds=limits.max_seconds, max_channels=limits.max_channels)
    return {
        "sample_rate": clip.sample_rate,
        "channels": clip.channels,
        "format": clip.format,
        "warnings": clip.warnings,
        "samples": len(clip.waveform),
        "said": _said(audio),
    }, clip.waveform.data


def _fitted(audio: BinaryIO, limits: DecodeLimits, order: Order) -> tuple[dict[str, object], bytes]:
    fitting = order.fitting
    _refuse_long(order.lead_s + (fitting.duration_s or 0.0), limits)
    part = load_part(
        audio,
        lambda rate: frames_needed(fitting, rate),
        max_seconds=limits.max_seconds,
        max_channels=limits.max_channels,
    )
    if fitting.duration_s is None:
        end_s = (part.first + part.samples.shape[1]) / part.sample_rate
        start_s = fitting.start_s % end_s if fitting.loop else fitting.start_s
        _refuse_long(order.lead_s + (end_s - start_s) / fitting.speed, limits)
    rate = fitting.rate or part.sample_rate
    samples = part.samples.mean(axis=0, keepdims=True, dtype=np.float32) if order.mono else part.samples
    fitted = fit(samples, part.sample_rate, fitting, first=part.first)
    if order.lead_s:
        fitted = np.pad(fitted, ((0, 0), (round(order.lead_s * rate), 0)))
    if order.gain_db:
        fitted *= np.float32(10 ** (order.gain_db / 20))
    channels, frames = fitted.shape
    data = encode(fitted, rate, order.format)
    return {"sample_rate": rate, "channels": channels, "frames": frames, "bytes": len(data)}, data


def _refuse_long(seconds: float, limits: DecodeLimits) -> None:
    if seconds > limits.max_seconds:
        raise FittedTooLong(seconds=round(seconds, 3), maximum=limits.max_seconds)


def _said(audio: BinaryIO) -> dict[str, dict[str, object]]:
    """What the file's tags and chunks say; a reader that fails costs nothing but what it would have read."""
    told: dict[str, dict[str, object]] = {}
    for source, read in (("tags", said_of_tags), ("chunk", said_of_chunks)):
        try:
            said = read(audio)
        except Exception:
            said = Said(warnings=("its tags cannot be read" if source == "tags" else "its chunks cannot be read",))
        told[source] = {
            "tempo_bpm": None if said.tempo_bpm is None else float(said.tempo_bpm),
            "beats": None if said.beats is None else float(said.beats),
            "key": said.key,
            "root": said.root,
            "kind": said.kind,
            "warnings": [warning[:MAX_WARNING] for warning in said.warnings[:MAX_SAID]],
        }
    return told


# From <linux/prctl.h>.
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_libc = ctypes.CDLL(None, use_errno=True)
