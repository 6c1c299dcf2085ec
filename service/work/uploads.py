"""Untrusted bytes -> clip, in a child process with limits.

A `Decoder` starts a small server process, which has imported libsndfile and forks one child a file; a file that needs
FFmpeg starts another one, since a process is the sooner forked and gone the less it has mapped. The child gets the open
file and a socket, and nothing else: the kernel refuses it every call but to read, to send, to allocate and to end
(sandbox.py), and the server was started without our environment, so no key is in its memory. What it answers is a
length, JSON and raw samples, each checked here; nothing is unpickled. See
docs/decisions/decoding-in-forked-children.md.
"""

import asyncio
import ctypes
import gc
import importlib
import json
import logging
import math
import os
import pkgutil
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, Self, get_args

import numpy as np

from model import (
    MIN_SECONDS,
    SAMPLE_RATE,
    AudioError,
    AudioFormat,
    Clip,
    ClipTooLong,
    ClipTooShort,
    DecodeFailed,
    EmptyFile,
    NoAudioStream,
    NonFiniteSamples,
    SilentClip,
    TooManyChannels,
    UnknownFormat,
    load_clip,
    needs_ffmpeg,
)
from service.work.sandbox import Confinement, FilterUnavailable, refuse_all_other_calls

if TYPE_CHECKING:
    from service.settings import Settings  # the server has no use for it

log = logging.getLogger("phalar.uploads")

UPLOAD_NICE = 10
"""Uploads wait for the device anyway, so decoding them takes the time that no query wants."""


class DecoderError(AudioError):
    """The decoder did not come to an answer about this file; the next file gets a new child."""

    code = "decoder-error"


class DecoderCrashed(DecoderError):
    """The child died or answered nonsense; `reason` says how."""

    code = "decoder-crashed"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The file broke the decoder ({reason}).", reason=reason)
        self.reason = reason


class DecoderTimeout(DecoderError):
    """The child was killed after `seconds`."""

    code = "decoder-timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The file could not be decoded within {seconds:g} s.", seconds=seconds)
        self.seconds = seconds


class DecoderOutOfMemory(DecoderError):
    """Decoding needed more than `memory_bytes`."""

    code = "decoder-out-of-memory"

    def __init__(self, memory_bytes: int) -> None:
        super().__init__(
            f"The file needs more than the {memory_bytes / 2**20:.0f} MiB that a decoder may use.",
            memory_bytes=memory_bytes,
        )
        self.memory_bytes = memory_bytes


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


class Decoder:
    """Decodes files that strangers sent; use it as `async with Decoder(limits) as decoder`, in one event loop.

    No process outlives it: children die when they have answered, when their `decode` is cancelled, on `close`, and when
    the process that holds the Decoder dies, however it dies.
    """

    def __init__(self, limits: DecodeLimits) -> None:
        self.limits = limits
        self.confinement: Confinement | None = None  # what holds the children; known once a server has started
        self._slots = asyncio.Semaphore(limits.processes)
        self._starting = asyncio.Lock()
        self._servers: dict[bool, _Server] = {}  # by whether it has FFmpeg
        self._closed = False

    async def __aenter__(self) -> Self:
        await self._running_server(with_ffmpeg=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def decode(self, source: Path | bytes, *, nice: int = 0) -> Clip:
        """Decode a file as `model.load_clip` does, in a child process.

        Args:
            source: a path, or the file's bytes.
            nice: by how much the child's priority is lowered.

        Raises:
            AudioError: what is wrong with the file, as from `load_clip`; or a DecoderError.
            OSError: the path cannot be read.
        """
        opened = _in_memory(source) if isinstance(source, bytes) else await asyncio.to_thread(source.open, "rb")
        with opened as file:
            await self._slots.acquire()
            try:
                server = await self._running_server(with_ffmpeg=needs_ffmpeg(os.pread(file.fileno(), 16, 0)))
                ours, job, ended = server.start(file.fileno(), nice)
            except BaseException:
                self._slots.release()
                raise
        # The slot is free when the child is gone, which after a cancellation is later than this call's end.
        ended.add_done_callback(lambda _: self._slots.release())
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                try:
                    return await _receive(ours, self.limits)
                except EOFError:
                    raise _post_mortem(await asyncio.shield(ended), self.limits) from None
        except TimeoutError:
            raise DecoderTimeout(self.limits.timeout_s) from None
        finally:
            ours.close()
            server.kill(job)  # also after an answer: whatever the child does then, nobody asked for it

    async def close(self) -> None:
        """End every child and the servers; wait until they are gone. Running calls of `decode` raise."""
        self._closed = True
        async with self._starting:
            while self._servers:
                await self._servers.popitem()[1].close()

    async def _running_server(self, *, with_ffmpeg: bool) -> "_Server":
        async with self._starting:
            if self._closed:
                raise RuntimeError("the decoder is closed")
            server = self._servers.get(with_ffmpeg)
            if server is None or server.dead:
                if server is not None:
                    await server.close()
                server = self._servers[with_ffmpeg] = await _Server.launch(self.limits, with_ffmpeg)
                if self.confinement is None and server.confinement == "limits-only":
                    log.warning(
                        "this system has no system call filter: decoders are held by resource limits alone; "
                        "see docs/threat-model.md"
                    )
                self.confinement = server.confinement
            return server


def _in_memory(data: bytes) -> BinaryIO:
    """A file of these bytes; the caller closes it."""
    on_linux = hasattr(os, "memfd_create")
    file = open(os.memfd_create("phalar-upload"), "w+b") if on_linux else tempfile.TemporaryFile()  # noqa: SIM115
    file.write(data)
    file.seek(0)
    return file


def _post_mortem(status: int | None, limits: DecodeLimits) -> DecoderError:
    """Say why a child left no answer, by its wait status (None: its server died)."""
    if status is None:
        return DecoderCrashed("its server ended")
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) == signal.SIGXCPU:
            return DecoderTimeout(limits.timeout_s)
        return DecoderCrashed(signal.strsignal(os.WTERMSIG(status)) or f"signal {os.WTERMSIG(status)}")
    if os.WEXITSTATUS(status) == _OUT_OF_MEMORY:
        return DecoderOutOfMemory(limits.memory_bytes)
    return DecoderCrashed(f"exit status {os.WEXITSTATUS(status)}")


# What crosses the sockets. A message to or from the server: kind, number of the job, and a number: the wait status of
# a child that has ended; how its children will be held, when the server is ready; the niceness of a child that is to
# start. With that one two descriptors ride along: the file, and the child's end of the socket for its answer.

_MESSAGE = struct.Struct("!cQi")
_START, _KILL, _READY, _ENDED = b"S", b"K", b"R", b"E"
_CONFINEMENTS: tuple[Confinement, ...] = ("filtered", "limits-only")
_SERVER = "from service.work.uploads import serve_children; serve_children()"

# An answer: length of the JSON; the JSON, either {"code", "facts"} or the clip's fields with its number of samples; the
# samples.

_LENGTH = struct.Struct("!I")
_MAX_JSON = 2**16
_MAX_WARNING = 500
_OUT_OF_MEMORY = 3  # exit status

_KINDS: dict[str, type[AudioError]] = {
    kind.code: kind
    for kind in (
        ClipTooLong,
        ClipTooShort,
        DecodeFailed,
        DecoderCrashed,
        EmptyFile,
        NoAudioStream,
        NonFiniteSamples,
        SilentClip,
        TooManyChannels,
        UnknownFormat,
    )
}


async def _receive(sock: socket.socket, limits: DecodeLimits) -> Clip:
    """Read an answer that may come from a process somebody else has taken over.

    Raises:
        AudioError: the answer is an error, or (DecoderCrashed) no answer that our code could give.
        EOFError: the child ended before its answer did.
    """
    prefix = bytearray(_LENGTH.size)
    await _fill(sock, prefix)
    (length,) = _LENGTH.unpack(prefix)
    if length > _MAX_JSON:
        raise DecoderCrashed("its answer is too long")
    text = bytearray(length)
    await _fill(sock, text)
    try:
        answer = json.loads(text)
        if "code" in answer:
            problem = _KINDS[answer["code"]](**answer["facts"])
            json.dumps(problem.facts, allow_nan=False)
        else:
            problem = None
            fields = _checked_fields(answer, limits)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DecoderCrashed("its answer makes no sense") from error
    if problem is not None:
        raise problem
    waveform = np.empty(fields.pop("samples"), np.float32)
    await _fill(sock, waveform.data)
    if not (np.isfinite(waveform.max()) and np.isfinite(waveform.min())):
        raise DecoderCrashed("its samples are not finite")
    return Clip(waveform, **fields)


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
    if kind not in get_args(AudioFormat) or type(warnings) is not list or len(warnings) > 8:
        raise ValueError(kind)
    if not all(type(warning) is str and len(warning) <= _MAX_WARNING for warning in warnings):
        raise ValueError(warnings)
    return {
        "sample_rate": rate,
        "channels": channels,
        "samples": samples,
        "warnings": tuple(warnings),
        "format": kind,
    }


async def _fill(sock: socket.socket, buffer: bytearray | memoryview) -> None:
    loop, rest = asyncio.get_running_loop(), memoryview(buffer).cast("B")
    while rest:
        count = await loop.sock_recv_into(sock, rest)
        if count == 0:
            raise EOFError
        rest = rest[count:]


class _Server:
    """The process that forks the children, seen from ours."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.dead = False
        self.confinement: Confinement | None = None
        self._process = process
        self._control = control
        self._unread = b""
        self._jobs: dict[int, asyncio.Future[int | None]] = {}
        self._next_job = 1
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(control.fileno(), self._on_messages)

    @classmethod
    async def launch(cls, limits: DecodeLimits, with_ffmpeg: bool) -> "_Server":
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            arguments = [str(theirs.fileno()), json.dumps(asdict(limits)), json.dumps(with_ffmpeg)]
            process = subprocess.Popen(  # noqa: S603, ASYNC220 - our own interpreter; exec takes a millisecond
                [sys.executable, "-P", "-c", _SERVER, *arguments],
                pass_fds=[theirs.fileno()],
                env=_bare_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Ctrl-C reaches us alone; the server ends when we do. Not a session: Linux would weigh it against
                # our own as one process against another (autogroup), and no child in it could be nice to a worker.
                process_group=0,
            )
        server = cls(process, ours)
        try:
            await server._ready
        except BaseException:
            await server.close()
            raise
        return server

    def start(self, file: int, nice: int) -> tuple[socket.socket, int, asyncio.Future[int | None]]:
        """Have a child decode the file: the socket of its answer, its job's number, its wait status once it ended."""
        job, self._next_job = self._next_job, self._next_job + 1
        ours, theirs = socket.socketpair()
        ended: asyncio.Future[int | None] = self._loop.create_future()
        with theirs:
            ours.setblocking(False)
            try:
                socket.send_fds(self._control, [_MESSAGE.pack(_START, job, nice)], [file, theirs.fileno()])
            except OSError:  # it died a moment ago, and the reader will say so
                ended.set_result(None)
                return ours, job, ended
        self._jobs[job] = ended
        return ours, job, ended

    def kill(self, job: int) -> None:
        if job in self._jobs:
            try:
                self._control.send(_MESSAGE.pack(_KILL, job, 0))
            except OSError:
                self._on_death()

    async def close(self) -> None:
        self._on_death()
        self._control.close()  # the server reads the end, kills its children and leaves
        try:
            await asyncio.to_thread(self._process.wait, 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    def _on_messages(self) -> None:
        try:
            data = self._control.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._on_death()
            return
        self._unread += data
        while len(self._unread) >= _MESSAGE.size:
            kind, job, status = _MESSAGE.unpack_from(self._unread)
            self._unread = self._unread[_MESSAGE.size :]
            if kind == _READY and not self._ready.done():
                self.confinement = _CONFINEMENTS[status]
                self._ready.set_result(None)
            elif kind == _ENDED and job in self._jobs:
                self._jobs.pop(job).set_result(status)

    def _on_death(self) -> None:
        if self.dead:
            return
        self.dead = True
        self._loop.remove_reader(self._control.fileno())
        if not self._ready.done():
            self._ready.set_exception(RuntimeError("the decoder's server did not start; its message is in the log"))
        for ended in self._jobs.values():
            ended.set_result(None)
        self._jobs.clear()


def _bare_environment() -> dict[str, str]:
    """What Python and the audio libraries need; no key, no address of a database."""
    kept = {name: os.environ[name] for name in ("LANG", "LD_LIBRARY_PATH", "PATH") if name in os.environ}
    # One thread: a process with more than one cannot be forked safely, and decoding uses one.
    return kept | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }


# From here on: inside the server and its children.


def serve_children() -> NoReturn:
    """Fork a child for every file that arrives, until the other end of the control socket closes.

    Arguments of the process: the control socket's descriptor, and as JSON DecodeLimits and whether FFmpeg is wanted.
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    limits = DecodeLimits(**json.loads(sys.argv[2]))
    woken, waker = socket.socketpair()
    woken.setblocking(False)
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _warm_up(with_ffmpeg=json.loads(sys.argv[3]))
    address_space = _address_space() + limits.memory_bytes
    control.sendall(_MESSAGE.pack(_READY, 0, _CONFINEMENTS.index(_try_confinement())))

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
                        control.sendall(_MESSAGE.pack(_ENDED, job, status))
        if control in readable:
            try:
                message, descriptors, _, _ = socket.recv_fds(control, _MESSAGE.size, 2)
            except ConnectionResetError:  # the other end died with messages of ours unread
                break
            if not message:
                break
            kind, job, nice = _MESSAGE.unpack(message)
            if kind == _START:
                server = os.getpid()
                process = os.fork()
                if process == 0:
                    os.nice(nice)
                    _decode_and_exit(*descriptors, server=server, address_space=address_space, limits=limits)
                children[job] = process
                for descriptor in descriptors:
                    os.close(descriptor)
            elif kind == _KILL and job in children:  # not yet reaped, so the number is still this child's
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
    load_clip(b"RIFF\0\0\0\0WAVE" + fmt + struct.pack("<4sI", b"data", len(tone)) + tone)
    gc.freeze()  # a collection in a child would touch, and so copy, every page


def _try_confinement() -> Confinement:
    """How children will be held on this system, found out by one that tries to open a file."""
    process = os.fork()
    if process == 0:
        status = _CONFINEMENTS.index("limits-only")
        try:
            _set_process_flags()
            refuse_all_other_calls()
            os.open("/", os.O_RDONLY)
        except PermissionError:
            status = _CONFINEMENTS.index("filtered")
        finally:
            os._exit(status)
    _, ended = os.waitpid(process, 0)
    return "filtered" if ended == _CONFINEMENTS.index("filtered") else "limits-only"


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
            _confine(file, answer, server, address_space, limits)
            _answer(audio, sock, limits)
        status = 0
    except MemoryError:
        status = _OUT_OF_MEMORY
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


def _answer(audio: BinaryIO, sock: socket.socket, limits: DecodeLimits) -> None:
    waveform = None
    try:
        clip = load_clip(audio, max_seconds=limits.max_seconds, max_channels=limits.max_channels)
    except AudioError as error:
        answer: dict[str, object] = {"code": error.code, "facts": error.facts}
    except MemoryError:
        raise
    except Exception as error:
        answer = {"code": DecoderCrashed.code, "facts": {"reason": f"{type(error).__name__}: {error}"[:_MAX_WARNING]}}
    else:
        waveform = clip.waveform
        answer = {
            "sample_rate": clip.sample_rate,
            "channels": clip.channels,
            "format": clip.format,
            "warnings": clip.warnings,
            "samples": len(waveform),
        }
    text = json.dumps(answer).encode()
    sock.sendall(_LENGTH.pack(len(text)) + text)
    if waveform is not None:
        sock.sendall(waveform.data)


# From <linux/prctl.h>.
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_libc = ctypes.CDLL(None, use_errno=True)
