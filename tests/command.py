"""The `phalar` command, in this process or in one of its own."""

import os
import subprocess
import sys
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
