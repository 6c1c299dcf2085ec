"""The `phalar` command, in this process or in one of its own, by root or by somebody who is not."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from typer.testing import CliRunner, Result

from service.commands.__main__ import app


def phalar(*arguments: str | Path, **environment: str) -> Result:
    """A command in this process, which has loaded what commands are slow to load."""
    return CliRunner().invoke(app, [*map(str, arguments)], env=environment, catch_exceptions=False)


def phalar_alone(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command as a shell starts it."""
    command = [sys.executable, "-m", "service.commands", *map(str, arguments)]
    given = os.environ | environment
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=120, check=False, umask=0o022)


@contextmanager
def files_guarded() -> Iterator[None]:
    """This thread, and those that it starts, may do with files what another user may who is not root."""
    if os.geteuid() != 0:
        yield
        return
    capabilities = "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER"  # 1, 2 and 3
    libc = ctypes.CDLL(None, use_errno=True)
    header, held = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, held) == 0
    fewer = (ctypes.c_uint32 * 6)(*held)
    for number, _ in enumerate(capabilities, start=1):
        fewer[0] &= ~(1 << number)  # of the effective ones
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0
