"""Attacks one after the other and all together, beside an honest client that uploads and searches.

    python -m benchmarks.abuse --seconds 20 --minutes 5 --page docs/faults.md

One whole service (`phalar serve`, no keys, a small model) on loopback. The attacker comes from 127.0.0.2, the honest
client from 127.0.0.1. Each attack goes on for so many seconds, then all of them for so many minutes. The table says how
long the honest client waited, beside what it waits when nobody attacks, and what the API process held at most.
"""

import functools
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.page import page_parser, publish
from model.audio import SAMPLE_RATE
from model.evaluation.results import markdown_table
from tests.installation import Installation, add_stem, encode, noise_bursts, save_small_checkpoint, wait_ready

ATTACKER, HONEST = "127.0.0.2", "127.0.0.1"
CLIP_S = 6.0
PAUSE_S = 0.5  # of the honest client, between two requests
WATCH_S = 0.2
SLOWER = 3.0  # times that the honest client may wait for what it gets at once in quiet
MOST_BYTES = 1.5 * 2**30
MOST_FILES = 1500
ENOUGH = 5  # of each kind of request, for a figure


def clip(seed: int) -> bytes:
    return encode(noise_bursts(seed, CLIP_S))


def client(url: str, source: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=180, transport=httpx.HTTPTransport(local_address=source))


@dataclass
class Honest:
    """A client that uploads a clip and searches with it, again and again, and keeps the time."""

    url: str
    seeds: Iterator[int]
    uploaded: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    waited: dict[str, list[float]] = field(default_factory=dict)

    def work(self, until: Callable[[], bool]) -> None:
        self.waited = {"upload": [], "search": []}
        with client(self.url, HONEST) as sender:
            while not until():
                audio = clip(next(self.seeds))
                self._timed(sender, "upload", 202, "/stems", "files", audio)
                self._timed(sender, "search", 200, "/retrieve", "file", audio)
                time.sleep(PAUSE_S)

    def _timed(self, sender: httpx.Client, kind: str, expected: int, path: str, name: str, audio: bytes) -> None:
        begun = time.monotonic()
        try:
            answer = sender.post(path, files={name: ("clip.flac", audio)})
        except httpx.TransportError as error:
            self.wrong.append(f"{kind}: {error!r}")
            return
        self.waited[kind].append(time.monotonic() - begun)
        if answer.status_code != expected:
            self.wrong.append(f"{kind}: {answer.status_code} {answer.text[:200]}")
        elif kind == "upload":
            self.uploaded.append(answer.json()["items"][0]["stem_id"])


@dataclass
class Watch:
    """The most that a process held of memory and of descriptors, looked at now and then."""

    pid: int
    memory: int = 0
    files: int = 0

    def look(self) -> None:
        with suppress(OSError):
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
            self.memory = max(self.memory, pages * os.sysconf("SC_PAGE_SIZE"))
            self.files = max(self.files, len(os.listdir(f"/proc/{self.pid}/fd")))


Attack = Callable[[str, Callable[[], bool]], int]
"""Goes on against a URL until it is told to end; returns how many requests or connections it made."""


def repeated(once: Callable[[httpx.Client], None]) -> Attack:
    def attack(url: str, until: Callable[[], bool]) -> int:
        made = 0
        while not until():
            with suppress(httpx.TransportError, ValueError), client(url, ATTACKER) as sender:  # refused, or cut off
                while not until():
                    made += 1
                    once(sender)
        return made

    return attack


def copies(sender: httpx.Client) -> None:
    """Thirty small files of twenty minutes each, no two alike."""
    levels = np.random.default_rng().uniform(0.1, 0.9, 30)
    sender.post("/stems", files=[("files", ("c.flac", constant(float(level), 1199.0))) for level in levels])


def constant(level: float, seconds: float, rate: int = SAMPLE_RATE, channels: int = 1) -> bytes:
    return encode(np.full((round(seconds * rate), channels), level, np.float32), rate=rate)


def dense(sender: httpx.Client) -> None:
    """A few bytes that cost much to decode."""
    sender.post("/stems", files={"files": ("d.flac", _dense())})


@functools.cache
def _dense() -> bytes:
    return constant(0.5, 100.0, 655_350, 8)


def often(sender: httpx.Client) -> None:
    """A mix of one stem, named 32 times."""
    (stem,) = sender.get("/stems", params={"limit": 1}).json()["stems"]
    sender.post("/retrieve", data={"stem_id": [stem["id"]] * 32})


def methods(sender: httpx.Client) -> None:
    sender.request("M" + os.urandom(6000).hex(), "/stems")


def large_json(sender: httpx.Client) -> None:
    sender.patch("/stems/x", json={f"unknown {n}": n for n in range(200_000)})


def empty_files(sender: httpx.Client) -> None:
    sender.post("/stems", files=[("files", ("e", b""))] * 1000)


def other_sites(sender: httpx.Client) -> None:
    sender.delete("/stems/x", headers={"Host": "evil.example"})
    sender.post("/admin/reindex", headers={"Origin": "http://evil.example"})


def long_metadata(sender: httpx.Client) -> None:
    said = json.dumps([{f"unknown {n}": 1 for n in range(50_000)}])
    sender.post("/stems", files={"files": ("m.flac", b"x")}, data={"metadata": said})


def abandoned(url: str, until: Callable[[], bool]) -> int:
    """Searches sent and left."""
    made, audio = 0, clip(0)
    while not until():
        sent = []
        for _ in range(8):
            request = httpx.Request("POST", f"{url}/retrieve", files={"file": ("m.flac", audio)})
            sent.append(connection := connect(url))
            with suppress(OSError):
                connection.sendall(head_of(request, "/retrieve") + request.read())
            made += 1
        time.sleep(0.3)
        for connection in sent:
            connection.close()
    return made


def silent(begun: bytes) -> Attack:
    """Hundreds of connections that say no more than this."""

    def attack(url: str, until: Callable[[], bool]) -> int:
        held: list[socket.socket] = []
        made = 0
        while not until():
            with suppress(OSError):
                held.append(connection := connect(url))
                connection.sendall(begun)
                made += 1
            if len(held) >= 1100:
                for connection in held:
                    connection.close()
                held = []
            time.sleep(0.005)
        for connection in held:
            connection.close()
        return made

    return attack


def connect(url: str) -> socket.socket:
    found = httpx.URL(url)
    return socket.create_connection((found.host, found.port or 80), 10, (ATTACKER, 0))


def head_of(request: httpx.Request, path: str) -> bytes:
    length, kind = len(request.read()), request.headers["content-type"]
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nContent-Type: {kind}\r\n\r\n".encode()
    )


HALF = b"POST /stems HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
ATTACKS: dict[str, Attack] = {
    "names of other hosts, pages of other sites": repeated(other_sites),
    "thirty files of twenty minutes in a few kilobytes": repeated(copies),
    "eight channels at 655 kHz": repeated(dense),
    "one stem 32 times": repeated(often),
    "searches sent and abandoned": abandoned,
    "methods of 12 KB": repeated(methods),
    "connections without a head": silent(b""),
    "half a body": silent(HALF + b"Content-Length: 999999\r\n\r\n--x\r\n"),
    "large JSON": repeated(large_json),
    "long metadata": repeated(long_metadata),
    "a thousand empty files": repeated(empty_files),
}


def run_attack(name: str, url: str, over: Any, made: Any) -> None:
    """In a process of its own: what an attacker computes must not hold the honest client up."""
    made.put(ATTACKS[name](url, over.is_set))


def phase(honest: Honest, watch: Watch, attacks: dict[str, Attack], seconds: float) -> tuple[int, dict[str, float]]:
    """The honest client beside some attacks; how many were made, and its 95th percentiles in seconds."""
    ends = time.monotonic() + seconds
    processes = multiprocessing.get_context("spawn")
    over_for_all, made = processes.Event(), processes.Queue()
    attackers = [
        processes.Process(target=run_attack, args=(name, honest.url, over_for_all, made), daemon=True)
        for name in attacks
    ]

    def over() -> bool:
        return time.monotonic() >= ends

    def enough() -> bool:
        return over() and min(map(len, honest.waited.values())) >= ENOUGH

    for attacker in attackers:
        attacker.start()
    working = threading.Thread(target=honest.work, args=(enough,))
    working.start()
    while working.is_alive():
        watch.look()
        time.sleep(WATCH_S)
    over_for_all.set()
    total = sum(made.get(timeout=300) for _ in attackers)
    for attacker in attackers:
        attacker.join()
    return total, {kind: float(np.percentile(waited, 95)) for kind, waited in honest.waited.items()}


@contextmanager
def started(folder: Path) -> Iterator[Installation]:
    save_small_checkpoint(folder / "small.safetensors")
    running = Installation(
        folder / "service", {"PHALAR_CHECKPOINT": str(folder / "small.safetensors")}, client_timeout_s=180
    ).start()
    try:
        yield running
    finally:
        running.stop()


def main() -> int:
    parser = page_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each attack alone")
    parser.add_argument("--minutes", type=float, default=5.0, help="of all together")
    parser.add_argument("--only", help="only attacks with these letters in their names")
    arguments = parser.parse_args()
    chosen = {name: attack for name, attack in ATTACKS.items() if (arguments.only or "") in name}
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="phalar-abuse-") as scratch, started(Path(scratch)) as running:
        honest = Honest(running.url, count(1))
        with running.client() as sender:
            wait_ready(sender, add_stem(sender, clip(0)))
        _, quiet = phase(honest, Watch(running.pids()["api"]), {}, arguments.seconds)
        most = 0.0
        together = {"all of them": chosen}
        for name, attacks in ({name: {name: attack} for name, attack in chosen.items()} | together).items():
            seconds = 60 * arguments.minutes if attacks is chosen else arguments.seconds
            watch = Watch(running.pids()["api"])
            made, waited = phase(honest, watch, attacks, seconds)
            slower = {kind: waited[kind] / quiet[kind] for kind in quiet}
            most = max(most, *slower.values())
            times = [f"{waited[kind]:.2f} ({slower[kind]:.1f})" for kind in ("upload", "search")]
            rows.append([name, str(made), *times, f"{watch.memory / 2**30:.2f}", str(watch.files)])
            print(rows[-1], file=sys.stderr, flush=True)
            if watch.memory > MOST_BYTES or watch.files > MOST_FILES:
                honest.wrong.append(f"{name}: {watch.memory} bytes, {watch.files} descriptors")
        lost = lost_of(running, honest)
    quietly = [f"{quiet[kind]:.2f}" for kind in ("upload", "search")]
    columns = [
        "attack",
        "made",
        "upload p95, s (times quiet)",
        "search p95, s (times quiet)",
        "API, GiB",
        "descriptors",
    ]
    table = markdown_table(columns, [["none", "", *quietly, "", ""], *rows])
    head = (
        f"Measured {datetime.now(UTC):%Y-%m-%d}: {arguments.seconds:g} s each, {arguments.minutes:g} minutes together, "
    )
    head += f"load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores at the end; "
    head += f"{len(honest.uploaded)} honest uploads, {lost} lost, {len(honest.wrong)} wrong answers."
    wrong = "".join(f"- {line}\n" for line in honest.wrong[:20])
    publish("\n".join([head, "", table, wrong]).strip() + "\n", arguments.page, "abuse")
    return int(bool(lost or honest.wrong) or most > SLOWER)


def lost_of(running: Installation, honest: Honest) -> int:
    """Honest uploads that are not ready once nothing waits any more."""
    with running.client() as sender:
        while sender.get("/readyz").json()["stems"]["queued"]:
            time.sleep(0.5)
        return sum(sender.get(f"/stems/{stem}").json().get("state") != "ready" for stem in set(honest.uploaded))


if __name__ == "__main__":
    sys.exit(main())
