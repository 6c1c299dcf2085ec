"""Untrusted bytes -> clip, in a child process with limits.

A `Decoder` starts a small server process (decoding.py), which has imported libsndfile and forks a child for each file.
Files that need FFmpeg have a second server: the less a process has mapped, the faster it forks and ends. A child has
the open file and a socket, and may only read, send, allocate and end (sandbox.py). The server is started without our
environment, so no key is in its memory. A child answers with a length, JSON and raw samples, all checked here; nothing
is unpickled. See docs/decisions/decoding-in-forked-children.md.
"""

import asyncio
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from indexer import ClipFacts
from model.audio import HEAD, SAMPLE_RATE, Clip, needs_ffmpeg
from model.audio.said import Said
from service.work.answers import FittedAudio, receive_clip, receive_file
from service.work.decoding import (
    CONFINEMENTS,
    ENDED,
    KILL,
    LENGTH,
    MESSAGE,
    OUT_OF_MEMORY,
    READY,
    START,
    DecodeLimits,
    DecoderCrashed,
    DecoderError,
)
from service.work.encoding import Order
from service.work.sandbox import Confinement
from service.work.turns import Budget

log = logging.getLogger("phalar.uploads")
T = TypeVar("T")
Received = Callable[[socket.socket, asyncio.Timeout], Awaitable[T]]  # what is made of an answer
_SERVER = "from service.work.decoding import serve_children; serve_children()"

UPLOAD_NICE = 10
"""Uploads wait for the device anyway, so decoding them takes the time that no query wants."""


def step_back() -> None:
    """Give this thread the priority of uploads, on systems where a thread has one of its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), UPLOAD_NICE)


class DecoderKilled(DecoderCrashed):
    """Somebody else ended the child or its server: the system, when memory is short. The file is not to blame."""


class DecoderTimeout(DecoderError):
    code = "decoder-timeout"
    says = "The file could not be decoded within {seconds:g} s."
    seconds: float


class DecoderOutOfMemory(DecoderError):
    """Decoding needed more than `memory_bytes`."""

    code = "decoder-out-of-memory"
    memory_bytes: int

    def __str__(self) -> str:
        return f"The file needs more than the {self.memory_bytes / 2**20:.0f} MiB that a decoder may use."


@dataclass(frozen=True, eq=False)
class UploadedClip(Clip):
    """A clip from a stranger's file, and what that file's tags and chunks say of its music."""

    said: Said = field(default_factory=Said)


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

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def decode(self, source: Path | bytes, *, nice: int = 0, budget: Budget | None = None) -> UploadedClip:
        """Decode a file as `load_clip` does, and read its tags and chunks, in a child process.

        Args:
            source: a path, or the file's bytes.
            nice: by how much the child's priority is lowered.
            budget: what the waveform is taken from until it is forgotten; the child waits while there is no room.

        Raises:
            AudioError: what is wrong with the file, as from `load_clip`; or a DecoderError.
            OSError: the path cannot be read.
        """
        fields, waveform = await self._decoded(source, nice, budget, math.inf)
        assert waveform is not None
        del fields["samples"]
        return UploadedClip(waveform, **fields)

    async def look(
        self, source: Path | bytes, *, keep_s: float, nice: int = 0, budget: Budget | None = None
    ) -> tuple[ClipFacts, Said, NDArray[np.float32] | None]:
        """What decoding a file shows and what it says of its music, with its waveform if that is no longer than
        `keep_s` seconds.

        Else its samples never leave the child: those of a long clip take longer to receive than all else that an upload
        costs us. Arguments and errors as of `decode`.
        """
        fields, waveform = await self._decoded(source, nice, budget, keep_s)
        duration_s, said = fields.pop("samples") / SAMPLE_RATE, fields.pop("said")
        return ClipFacts(duration_s=duration_s, **fields), said, waveform

    async def fit(self, source: Path | bytes, order: Order, into: BinaryIO, *, nice: int = 0) -> FittedAudio:
        """Write a file's audio, fitted, into another, empty file: decoded, stretched and encoded in a child process.

        Raises:
            AudioError: as of `decode`; or StartBeyondEnd, FormatCannotHold.
            OSError: the path cannot be read, or `into` not written.
        """
        return await self._asked(source, order, nice, lambda ours, _: receive_file(ours, self.limits, into))

    async def _decoded(
        self, source: Path | bytes, nice: int, budget: Budget | None, keep_s: float
    ) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
        return await self._asked(
            source, None, nice, lambda ours, patience: receive_clip(ours, self.limits, budget, patience, keep_s)
        )

    async def _asked(self, source: Path | bytes, order: Order | None, nice: int, received: Received[T]) -> T:
        """Have a child do it, and what is made of its answer; another child, where the system ended the first."""
        try:
            return await self._asked_once(source, order, nice, received)
        except DecoderKilled as error:
            if self._closed:
                raise
            log.warning("a decoder was ended from outside (%s); another does its work", error.reason)
        return await self._asked_once(source, order, nice, received)

    async def _asked_once(self, source: Path | bytes, order: Order | None, nice: int, received: Received[T]) -> T:
        opened = _in_memory(source) if isinstance(source, bytes) else await asyncio.to_thread(source.open, "rb")
        with opened as file:
            await self._slots.acquire()
            try:
                server = await self._running_server(with_ffmpeg=needs_ffmpeg(os.pread(file.fileno(), HEAD, 0)))
                ours, job, ended = server.start(file.fileno(), nice, order)
            except BaseException:
                self._slots.release()
                raise
        # The slot is free when the child is gone, which after a cancellation is later than this call's end.
        ended.add_done_callback(lambda _: self._slots.release())
        try:
            async with asyncio.timeout(self.limits.timeout_s) as patience:
                try:
                    return await received(ours, patience)
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
        return DecoderKilled("its server ended")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        kind = DecoderKilled if number == signal.SIGKILL else DecoderCrashed
        return kind(signal.strsignal(number) or f"signal {number}")
    if os.WEXITSTATUS(status) == OUT_OF_MEMORY:
        return DecoderOutOfMemory(limits.memory_bytes)
    return DecoderCrashed(f"exit status {os.WEXITSTATUS(status)}")


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

    def start(self, file: int, nice: int, order: Order | None) -> tuple[socket.socket, int, asyncio.Future[int | None]]:
        """Have a child decode the file: the socket of its answer, its job's number, its wait status once it ended."""
        text = json.dumps(order and order.as_json()).encode()
        job, self._next_job = self._next_job, self._next_job + 1
        ours, theirs = socket.socketpair()
        ended: asyncio.Future[int | None] = self._loop.create_future()
        with theirs:
            ours.send(LENGTH.pack(len(text)) + text)  # waits in the socket until the child is there to read it
            ours.setblocking(False)
            try:
                socket.send_fds(self._control, [MESSAGE.pack(START, job, nice)], [file, theirs.fileno()])
            except OSError:  # it died a moment ago
                self._on_death()
                ended.set_result(None)
                return ours, job, ended
        self._jobs[job] = ended
        return ours, job, ended

    def kill(self, job: int) -> None:
        if job in self._jobs:
            try:
                self._control.send(MESSAGE.pack(KILL, job, 0))
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
        while len(self._unread) >= MESSAGE.size:
            kind, job, status = MESSAGE.unpack_from(self._unread)
            self._unread = self._unread[MESSAGE.size :]
            if kind == READY and not self._ready.done():
                self.confinement = CONFINEMENTS[status]
                self._ready.set_result(None)
            elif kind == ENDED and job in self._jobs:
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
