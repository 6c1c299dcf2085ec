"""A decoder as an attacker would have it: instead of decoding, the child tries what it must not be able to do.

Run as the decoder's server. What came of each attempt goes back as the facts of a DecodeFailed.
"""

import ctypes
import errno
import json
import os
import platform
import signal
import socket
from collections.abc import Callable
from typing import Any

from model.audio import DecodeFailed, load_clip
from service.work import decoding

_libc = ctypes.CDLL(None, use_errno=True)
# A taken-over child makes system calls without the C library, or Python's checks.
_NUMBERS = {
    "x86_64": {"ptrace": 101, "io_uring_setup": 425, "memfd_create": 319, "process_vm_readv": 310, "unshare": 272},
    "aarch64": {"ptrace": 117, "io_uring_setup": 425, "memfd_create": 279, "process_vm_readv": 270, "unshare": 97},
}


def _system(name: str, *arguments: int | bytes) -> None:
    number = _NUMBERS[platform.machine()][name]
    longs = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    if _libc.syscall(ctypes.c_long(number), *longs) == -1:
        raise OSError(ctypes.get_errno(), name)


def _attempts(folder: str) -> dict[str, Callable[[], Any]]:
    victim = f"{folder}/catalog.sqlite"
    parent = os.getppid()
    return {
        "connect by TCP": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        "send by UDP": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "connect to a unix socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
        "read the passwords": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "read the database": lambda: os.open(victim, os.O_RDONLY),
        "write the database": lambda: os.open(victim, os.O_WRONLY),
        "empty the database": lambda: os.truncate(victim, 0),
        "remove the database": lambda: os.unlink(victim),
        "rename the database": lambda: os.rename(victim, victim + ".gone"),
        "change its mode": lambda: os.chmod(victim, 0o777),
        "look for a file": lambda: os.stat(victim),
        "make a file": lambda: os.open(f"{folder}/new", os.O_WRONLY | os.O_CREAT),
        "make a folder": lambda: os.mkdir(f"{folder}/new"),
        "make a link": lambda: os.symlink("/etc/passwd", f"{folder}/new"),
        "write to what is open": lambda: os.write(2, b"x"),
        "start a program": lambda: os.execv("/bin/true", ["true"]),
        "start a process": os.fork,
        "signal its server": lambda: os.kill(parent, 0),
        "end its server": lambda: os.kill(parent, signal.SIGKILL),
        "trace its server": lambda: _system("ptrace", 16, parent, 0, 0),
        "read its server's memory": lambda: _system("process_vm_readv", parent, 0, 0, 0, 0, 0),
        "ask by a ring": lambda: _system("io_uring_setup", 1, 0),
        "make a file in memory": lambda: _system("memfd_create", b"x", 0),
        "have namespaces of its own": lambda: _system("unshare", 0x10000000),
    }


def _attack(source: Any, **_: Any) -> Any:
    if isinstance(source, bytes):  # the server warms up before it forks
        return load_clip(source)
    folder = source.read().decode()
    found = {}
    for name, attempt in _attempts(folder).items():
        try:
            attempt()
            found[name] = "done"
        except OSError as error:
            found[name] = errno.errorcode[error.errno or 0]
    raise DecodeFailed(json.dumps(found))


def serve() -> None:
    decoding.load_clip = _attack
    decoding.serve_children()
