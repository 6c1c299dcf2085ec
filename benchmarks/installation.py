"""A whole installation as a user starts it: `phalar serve` in a folder of its own. Tests start theirs by it, too."""

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

import httpx

from benchmarks.processes import children

T = TypeVar("T")
START_S = 180.0  # a busy machine takes its time to import torch twice


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(claim: Callable[[], T], seconds: float = 60.0, every: float = 0.1) -> T:
    """The claim's value once it is true; AssertionError after some time without."""
    deadline = time.monotonic() + seconds
    while True:
        value = claim()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s: {claim}"
        time.sleep(every)


@dataclass
class Installation:
    """One data folder, and the service that runs on it while started.

    `settings` are environment variables; `client_timeout_s` is how long a request may take.
    """

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    client_timeout_s: float = 60.0
    options: tuple[str, ...] = ("-v",)  # of `phalar serve`
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the supervisor, whose children are all the others."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")

    def start(self, *, wait: bool = True) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "PHALAR_DATA": str(self.folder / "data"),
            "PHALAR_PORT": str(self.port),
            **self.settings,
        }
        with (self.folder / "log.txt").open("ab") as log:
            command = [sys.executable, "-m", "service.commands", "serve", *self.options]
            # Whoever starts it may have made its own files private; most shells do not.
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, umask=0o022)
        atexit.register(self._process.kill)  # where a test failed before it was stopped; nothing outlives it
        if wait:
            eventually(self.ready, START_S)
        return self

    @property
    def ended(self) -> int | None:
        """The exit code; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """Ctrl-C, and wait. Returns the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        code = self._process.wait(timeout=self.client_timeout_s)
        self._process = None
        return code

    def kill_all(self) -> None:
        """kill -9 of the supervisor; everything else must die with it."""
        assert self._process is not None
        pids = self.pids().values()
        self._process.kill()
        self._process.wait()
        self._process = None
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 20)

    def kill(self, name: str) -> None:
        """kill -9 of one child: `api`, `worker` or `valkey`."""
        os.kill(self.pids()[name], signal.SIGKILL)

    def pids(self) -> dict[str, int]:
        """The service's children by what they are."""
        named = {}
        for pid in children(self.pid):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            for name in ("valkey", "worker", "api"):
                if name in command.split("service.commands")[-1]:
                    named[name] = pid
                    break
        return named

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=self.client_timeout_s)
