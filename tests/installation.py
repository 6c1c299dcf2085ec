"""A whole installation as a user starts it: `phalar serve` in a folder of its own, with a small model."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import numpy as np
import soundfile
import torch
import uvicorn
from numpy.typing import NDArray

from model import SAMPLE_RATE, Phalar, PhalarConfig, save_phalar
from tests import servers
from tests.servers import free_port

if TYPE_CHECKING:
    from service.settings import Settings

T = TypeVar("T")
START_S = 180.0  # a busy machine takes its time to import torch twice
SMALL = PhalarConfig(channels=1, growth=1.0, dimension=128)


def save_small_checkpoint(path: Path, seed: int = 0) -> str:
    """A small seeded model with W = I, so that a stem's own audio scores highest. Returns its fingerprint."""
    torch.manual_seed(seed)
    model = Phalar(SMALL)
    with torch.no_grad():
        model.similarity.form.weight.copy_(
            torch.cat([torch.eye(SMALL.dimension), torch.zeros(SMALL.dimension, SMALL.dimension)])
        )
    save_phalar(model, path, trained=True)
    return model.fingerprint


def noise_bursts(seed: int, seconds: float = 9.0) -> NDArray[np.float32]:
    """A clip unlike any other: bursts of noise and tones at random moments."""
    rng = np.random.default_rng(seed)
    samples = round(seconds * SAMPLE_RATE)
    time_s = np.arange(samples) / SAMPLE_RATE
    clip = 0.003 * rng.standard_normal(samples)
    for _ in range(int(4 * seconds)):
        onset, pitch = rng.uniform(0, seconds), 110 * 2 ** rng.uniform(0, 4)
        after = np.maximum(time_s - onset, 0)
        clip += np.where(time_s >= onset, np.exp(-8 * after) * np.sin(2 * np.pi * pitch * after), 0) * rng.uniform(
            0.1, 0.3
        )
    return (clip / np.abs(clip).max() * 0.7).astype(np.float32)


def encode(waveform: NDArray[np.float32], form: str = "FLAC", rate: int = SAMPLE_RATE, **options: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format=form, **options)
    return file.getvalue()


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
    """One data folder, what it has on servers (`stores`; nothing, where all is embedded), and the service that runs on
    them while started."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    stores: dict[str, str] = field(default_factory=servers.own_stores)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")

    def start(self, *, wait: bool = True) -> "Installation":
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "PHALAR_DATA": str(self.folder / "data"),
            "PHALAR_PORT": str(self.port),
            "PHALAR_SWEEP_S": "0.5",
            "PHALAR_TORCH_THREADS": "1",
            **self.stores,
            **self.settings,
        }
        with (self.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "serve"], env=environment, stdout=log, stderr=log
            )
        if wait:
            eventually(self.ready, START_S)
        return self

    def ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> int:
        """Ctrl-C, and wait. Returns the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        code = self._process.wait(timeout=60)
        self._process = None
        return code

    def kill_all(self) -> None:
        """kill -9 of the supervisor; everything else must die with it."""
        assert self._process is not None
        pids = [*self.pids().values()]
        self._process.kill()
        self._process.wait()
        self._process = None
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 20)

    def kill(self, name: str) -> None:
        """kill -9 of one child: `api`, `worker` or `valkey`."""
        os.kill(self.pids()[name], signal.SIGKILL)

    def cut_connections(self) -> None:
        """What a restarted or failing-over server does to all that talk to it."""
        servers.cut_connections(self.stores)

    def forget_queue(self) -> None:
        """The queue loses everything, as a Redis without persistence does when it is killed."""
        if self.stores:
            servers.forget(self.stores)
            return
        self.kill("valkey")
        for journal in (self.folder / "data" / "valkey").rglob("*.aof"):
            journal.unlink(missing_ok=True)

    def pids(self) -> dict[str, int]:
        """The service's children by what they are."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        named = {}
        for pid in children:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            for name in ("valkey", "worker", "api"):
                if name in command.split("service.cli")[-1]:
                    named[name] = int(pid)
                    break
        return named

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)


@contextmanager
def serving(settings: "Settings") -> Iterator[str]:
    """The URL of an API without workers, in a thread of this process; several share what their settings name."""
    from service.app import create_app

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=port, log_config=None))
    thread = Thread(target=server.run)
    thread.start()
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: server.started or not thread.is_alive(), START_S)
        eventually(lambda: httpx.get(f"{url}/readyz").json()["status"] == "ready", START_S)
        yield url
    finally:
        server.should_exit = True
        thread.join()


def add_stem(client: httpx.Client, audio: bytes, name: str = "stem.flac", **metadata: Any) -> str:
    """Upload one stem; returns its id without waiting."""
    answer = client.post("/stems", files={"files": (name, audio)}, data={"metadata": json.dumps(metadata)})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["items"][0]["stem_id"])


def wait_ready(client: httpx.Client, *stem_ids: str) -> None:
    for stem_id in stem_ids:
        stem = eventually(lambda s=stem_id: _settled(client.get(f"/stems/{s}").json()))  # type: ignore[misc]
        assert stem["state"] == "ready", stem


def _settled(stem: dict[str, Any]) -> dict[str, Any] | None:
    return stem if stem["state"] != "queued" else None


def retrieve(client: httpx.Client, audio: bytes, **form: Any) -> dict[str, Any]:
    answer = client.post("/retrieve", files={"file": ("mix.flac", audio)}, data=form)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body
