"""A whole installation as a user starts it: `phalar serve` in a folder of its own, with a small model."""

import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import soundfile
import torch
import uvicorn
from numpy.typing import NDArray

from benchmarks.installation import START_S, eventually, free_port
from benchmarks.installation import Installation as _Installation
from model.audio import SAMPLE_RATE
from model.checkpoints import save_phalar
from model.phalar import Phalar, PhalarConfig
from tests import servers

if TYPE_CHECKING:
    from service.settings import Settings

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
        heard = slice(math.ceil(onset * SAMPLE_RATE), math.ceil((onset + 2.0) * SAMPLE_RATE))
        after = time_s[heard] - onset
        clip[heard] += rng.uniform(0.1, 0.3) * np.exp(-8 * after) * np.sin(2 * np.pi * pitch * after)
    return (clip / np.abs(clip).max() * 0.7).astype(np.float32)


def encode(waveform: NDArray[np.float32], form: str = "FLAC", rate: int = SAMPLE_RATE, **options: Any) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format=form, **options)
    return file.getvalue()


@dataclass
class Installation(_Installation):
    """With what it has on servers (`stores`; nothing, where all is embedded), and what makes tests quick: a sweep twice
    a second, and no more threads than a test needs."""

    stores: dict[str, str] = field(default_factory=servers.own_stores)

    def __post_init__(self) -> None:
        self.settings = {"PHALAR_SWEEP_S": "0.5", "PHALAR_TORCH_THREADS": "1", **self.stores, **self.settings}

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


@contextmanager
def serving(settings: "Settings") -> Iterator[str]:
    """The URL of an API without workers, in a thread of this process; several share what their settings name."""
    from service.api.app import create_app
    from service.api.connections import server_options

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(settings), **server_options(settings) | {"port": port}))
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
