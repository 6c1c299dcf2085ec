"""Attacks one after the other and all together, beside an honest client that uploads and searches.

    python -m benchmarks.abuse --seconds 6 --minutes 5 --page docs/faults.md

One whole service (`phalar serve`, no keys, a small model) on loopback. The attacker comes from 127.0.0.2, the honest
client from 127.0.0.1. Each attack goes on for so many seconds, then all of them for so many minutes, in pieces; before
each of them the honest client is alone for a while, so that both figures come from the same minutes. The table says how
long it waited, and what the API process held at most.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Self

import httpx
import numpy as np
import soundfile

from benchmarks.attacks import ATTACKS
from benchmarks.page import page_parser, publish, today
from benchmarks.processes import resident, used_s
from model.audio import SAMPLE_RATE
from model.evaluation.results import markdown_table
from tests.installation import Installation, add_stem, encode, noise_bursts, save_small_checkpoint, wait_ready

HONEST = "127.0.0.1"
KINDS = ("upload", "search")
CLIP_S = 6.0
PIECES = 5  # that the honest client sends by turns, in quiet as under attack
PAUSE_S = 0.5  # of the honest client, between two requests
WATCH_S = 0.2
PIECE_S = 30.0  # of all attacks together, at a time
QUIET_S = 4.0  # before each attack, at least
SETTLE_S = 1.0  # after each
TOGETHER = "all of them"
SLOWER = 3.0  # times that the honest client may wait for what it gets at once in quiet
MOST_BYTES = 1.5 * 2**30
MOST_FILES = 1500


def clip(number: int) -> bytes:
    """One of a few pieces, in bytes that no other number has: what is heard in it decides how long a search takes."""
    waveform = noise_bursts(number % PIECES, CLIP_S)
    waveform[0] = number / 2**15
    return encode(waveform)


@dataclass
class Honest:
    """A client that uploads a clip and searches with it, again and again, and keeps the time."""

    url: str
    uploaded: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def work(self, waited: dict[str, list[float]], clips: Iterator[bytes], ends: float) -> None:
        """Until this moment, and at least once."""
        transport = httpx.HTTPTransport(local_address=HONEST)
        with httpx.Client(base_url=self.url, timeout=180, transport=transport) as sender:
            while True:
                audio = next(clips)
                self._timed(sender, waited["upload"], 202, "/stems", "files", audio)
                self._timed(sender, waited["search"], 200, "/retrieve", "file", audio)
                if time.monotonic() >= ends:
                    return
                time.sleep(PAUSE_S)

    def _timed(
        self, sender: httpx.Client, waited: list[float], expected: int, path: str, name: str, audio: bytes
    ) -> None:
        begun = time.monotonic()
        try:
            answer = sender.post(path, files={name: ("clip.flac", audio)})
        except httpx.TransportError as error:
            self.wrong.append(f"{path}: {error!r}")
            return
        waited.append(time.monotonic() - begun)
        if answer.status_code != expected:
            self.wrong.append(f"{path}: {answer.status_code} {answer.text[:200]}")
        elif path == "/stems":
            self.uploaded.append(answer.json()["items"][0]["stem_id"])


class Attackers:
    """Some attacks, each in a process of its own, ready to begin."""

    def __init__(self, url: str, folder: Path, names: Iterable[str]) -> None:
        # A session of their own: Linux weighs it against ours (autogroup), as one process against another.
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
        command = [sys.executable, "-m", "benchmarks.attacks"]
        self._processes = [subprocess.Popen([*command, name, url, str(folder)], **pipes) for name in names]
        self.pids = [process.pid for process in self._processes]

    def __enter__(self) -> Self:
        for process in self._processes:
            assert process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def begin(self) -> None:
        for process in self._processes:
            process.stdin.write("begin\n")
            process.stdin.flush()

    def end(self) -> int:
        """How many requests or connections they made."""
        for process in self._processes:
            process.stdin.close()
        return sum(int(process.stdout.read()) for process in self._processes)


@dataclass
class Seen:
    """What was seen under some attacks, in all their pieces. Shares of the processors in seconds."""

    clips: Iterator[bytes]
    waited: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    made: int = 0
    memory: int = 0
    files: int = 0
    seconds: float = 0.0
    used_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("service", "attackers", "others"), 0.0))

    def go_on(self, honest: Honest, running: Installation, attackers: Attackers, seconds: float) -> None:
        """The honest client beside these attackers for so many seconds."""
        pids = running.pids()
        parts = {"service": pids.values(), "attackers": attackers.pids}
        begun, before = time.monotonic(), _used_s(parts)
        attackers.begin()
        working = threading.Thread(target=honest.work, args=(self.waited, self.clips, begun + seconds), daemon=True)
        working.start()
        while working.is_alive():
            self._look(pids["api"])
            time.sleep(WATCH_S)
        self.seconds += time.monotonic() - begun
        spent = {name: now - before[name] for name, now in _used_s(parts).items()}
        spent["others"] = spent.pop("all") - sum(spent.values())
        for name in self.used_s:
            self.used_s[name] += spent[name]
        self.made += attackers.end()

    def p95(self, kind: str) -> float:
        return float(np.percentile(self.waited[kind] or [np.inf], 95))

    def row(self, quiet: "Seen") -> list[str]:
        times = [f"{self.p95(kind):.2f} ({self.p95(kind) / quiet.p95(kind):.1f})" for kind in KINDS]
        return [str(self.made), *times, f"{self.memory / 2**30:.2f}", str(self.files)]

    @property
    def load(self) -> str:
        cores = {name: used / self.seconds for name, used in self.used_s.items()}
        return "the service took {service:.2f} cores, attackers {attackers:.2f} and other work {others:.2f}".format(
            **cores
        )

    def _look(self, pid: int) -> None:
        with suppress(OSError):
            self.memory = max(self.memory, resident(pid))
            self.files = max(self.files, len(os.listdir(f"/proc/{pid}/fd")))


def _used_s(parts: Mapping[str, Iterable[int]]) -> dict[str, float]:
    """Processor time of some processes, of this one, and of the whole machine."""
    user, nice, system, _, _, irq, soft_irq = map(int, Path("/proc/stat").read_text().split()[1:8])
    every = (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")
    return {name: sum(map(used_s, pids)) for name, pids in parts.items()} | {"own": time.process_time(), "all": every}


@contextmanager
def started(folder: Path) -> Iterator[Installation]:
    """A service in this folder, beside the audio that attackers send."""
    save_small_checkpoint(folder / "small.safetensors")
    (folder / "clip.flac").write_bytes(clip(0))
    (folder / "constant.flac").write_bytes(encode(np.full(SAMPLE_RATE * 1199, 0.5, np.float32)))
    with soundfile.SoundFile(folder / "dense.flac", "w", 655_350, 8, "PCM_16") as dense:
        for _ in range(100):
            dense.write(np.full((655_350, 8), 2**14, np.int16))
    settings = {"PHALAR_CHECKPOINT": str(folder / "small.safetensors")}
    with Installation(folder / "service", settings, client_timeout_s=180) as running:
        yield running


def main() -> int:
    parser = page_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each attack alone; 0: none of them")
    parser.add_argument("--minutes", type=float, default=5.0, help="of all together")
    parser.add_argument("--only", default="", help="only attacks with these letters in their names")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which ends what it started
    chosen = [name for name in ATTACKS if arguments.only in name]
    pieces = round(60 * arguments.minutes / PIECE_S)
    phases = [(name, [name], arguments.seconds) for name in chosen if arguments.seconds]
    phases += [(TOGETHER, chosen, PIECE_S)] * pieces
    names = dict.fromkeys(one for name, _, _ in phases for one in (quiet_beside(name), name))
    seen = {name: Seen(map(clip, count(1000 * number))) for number, name in enumerate(names, 1)}
    quiets = {name: seen[quiet_beside(name)] for name in seen}
    with tempfile.TemporaryDirectory(prefix="phalar-abuse-") as scratch, started(Path(scratch)) as running:
        honest = Honest(running.url)
        with running.client() as sender:
            wait_ready(sender, add_stem(sender, clip(0)))
        for name, attacks, seconds in phases:
            for what, some, lasting in ((quiets[name], [], QUIET_S), (seen[name], attacks, seconds)):
                with Attackers(running.url, Path(scratch), some) as attackers:
                    what.go_on(honest, running, attackers, lasting)
                time.sleep(SETTLE_S)
            print(name, *seen[name].row(quiets[name]), seen[name].load, sep="; ", file=sys.stderr, flush=True)
        lost = lost_of(running, honest)
    for name, found in seen.items():
        if found.memory > MOST_BYTES or found.files > MOST_FILES:
            honest.wrong.append(f"{name}: {found.memory} bytes, {found.files} descriptors")
    columns = ["attack", "made", *(f"{kind} p95, s (times quiet)" for kind in KINDS), "API, GiB", "descriptors"]
    table = markdown_table(columns, [[name, *found.row(quiets[name])] for name, found in seen.items()])
    last = phases[-1][0]
    head = (
        f"Measured {today()} on {len(os.sched_getaffinity(0))} cores: {arguments.seconds:g} s each, "
        f"{arguments.minutes:g} minutes together, quiet between; {len(honest.uploaded)} honest uploads, {lost} lost, "
        f"{len(honest.wrong)} wrong answers. In quiet {quiets[last].load}; at the end {seen[last].load}."
    )
    wrong = "".join(f"- {line}\n" for line in honest.wrong[:20])
    publish("\n".join([head, "", table, wrong]).strip() + "\n", arguments.page, "abuse")
    slowest = max(found.p95(kind) / quiets[name].p95(kind) for name, found in seen.items() for kind in KINDS)
    return int(bool(lost or honest.wrong) or slowest > SLOWER)


def quiet_beside(name: str) -> str:
    """What some attacks are compared with: the catalog that a search looks through grows while they go on."""
    return "none, beside all of them" if TOGETHER in name else "none, beside single attacks"


def lost_of(running: Installation, honest: Honest) -> int:
    """Honest uploads that are not ready once nothing waits any more; what attackers put before them is taken out."""
    with running.client() as sender:
        asked: dict[str, str | int] | None = {"state": "queued", "limit": 500}
        while asked:
            page = sender.get("/stems", params=asked).json()
            for stem in {found["id"] for found in page["stems"]} - set(honest.uploaded):
                sender.delete(f"/stems/{stem}")
            asked = page["next_cursor"] and asked | {"cursor": page["next_cursor"]}
        while sender.get("/readyz").json()["stems"]["queued"]:
            time.sleep(0.5)
        return sum(sender.get(f"/stems/{stem}").json().get("state") != "ready" for stem in set(honest.uploaded))


if __name__ == "__main__":
    sys.exit(main())
