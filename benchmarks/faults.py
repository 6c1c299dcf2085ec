"""Uploads, deletes and queries for minutes while one thing after another fails, and whether the books balance after it.

    python -m benchmarks.faults --minutes 10 --uploads 2000 --page docs/faults.md

Two API processes and some workers share one PostgreSQL, one Redis and one folder of audio, all started here, on
loopback. Whatever dies is started again, as a container engine would. As root the audio lies on a small tmpfs of its
own, so that the disk can be full; else that fault is left out, and the report says so.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import redis

from benchmarks.page import page_parser, publish, today
from model.evaluation.results import markdown_table
from tests.installation import encode, free_port, noise_bursts, save_small_checkpoint
from tests.servers import PostgresServer, RedisServer, new_database, postgres_binaries

CLIP_S = 2.0
AUDIO_BYTES = 256 * 2**20  # of the tmpfs
AWAY_S = 2.5  # how long what is stopped stays away
RESTART_S = 0.5
PAUSE_S = (1.5, 5.0)  # from one fault to the next
SETTLE_S = 300.0
DELETED_SHARE = 0.1
CLIENTS = 6

COUNTED = ("clips uploaded", "uploads acknowledged", "deletes acknowledged", "ready at the end")
COUNTED += ("failed at the end, with a reason", "queries answered meanwhile")
"""Of the books: what may be any number. All else must be none."""

TRANSIENT = (429, 503)
"""Answers that say: not now, ask again."""


@dataclass
class Fleet:
    """API processes and workers that are started again whenever they end."""

    environment: dict[str, str]
    folder: Path
    apis: int
    workers: int
    ports: list[int] = field(default_factory=list)
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _ending: threading.Event = field(default_factory=threading.Event)
    _keeper: threading.Thread | None = None

    def start(self) -> None:
        self.ports = [free_port() for _ in range(self.apis)]
        for name in self.names("api") + self.names("worker"):
            self._launch(name)
        self._keeper = threading.Thread(target=self._keep)
        self._keeper.start()

    def names(self, kind: str) -> list[str]:
        return [f"{kind} {number}" for number in range(self.apis if kind == "api" else self.workers)]

    def kill(self, kind: str, rng: random.Random) -> None:
        """kill -9 of one of them."""
        self._running[rng.choice(self.names(kind))].kill()

    def client(self, rng: random.Random) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{rng.choice(self.ports)}", timeout=60)

    def stop(self) -> None:
        self._ending.set()
        if self._keeper is not None:
            self._keeper.join()
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            process.wait(timeout=60)

    def _keep(self) -> None:
        while not self._ending.wait(RESTART_S):
            for name, process in list(self._running.items()):
                if process.poll() is not None:
                    self._launch(name)

    def _launch(self, name: str) -> None:
        kind, number = name.split()
        own = {"PHALAR_DATA": str(self.folder / name.replace(" ", "-"))}
        command = [sys.executable, "-m", "service.commands", kind]
        if kind == "api":
            own["PHALAR_PORT"] = str(self.ports[int(number)])
        given = os.environ | self.environment | own
        with (self.folder / f"{name.replace(' ', '-')}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(command, env=given, stdout=log, stderr=log)


@dataclass
class Books:
    """What clients were told, and what they saw that cannot be right."""

    acknowledged: dict[int, str] = field(default_factory=dict)  # seed of the clip -> stem
    deleted: set[str] = field(default_factory=set)
    seen_ready: set[int] = field(default_factory=set)
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def audio_of(seed: int) -> bytes:
    return encode(noise_bursts(seed, CLIP_S))


def asked(fleet: Fleet, rng: random.Random, books: Books, method: str, path: str, **request: Any) -> httpx.Response:
    """The answer, after asking again as often as it takes: of another process, with the same bytes."""
    while True:
        with suppress(httpx.TransportError), fleet.client(rng) as client:
            answer = client.request(method, path, **request)
            if answer.status_code not in TRANSIENT:
                return answer
            with books.lock:
                books.answers[f"{method} {answer.status_code}"] += 1
            time.sleep(min(2.0, float(answer.headers.get("retry-after", 1))))
            continue
        with books.lock:
            books.answers[f"{method} cut off"] += 1
        time.sleep(0.3)


def upload_all(fleet: Fleet, books: Books, seeds: Iterator[tuple[int, float]], number: int) -> None:
    """One client: uploads, each at its time; now and then a delete, or a query for a stem that is known to be ready."""
    rng = random.Random(number)
    for seed, due in seeds:
        time.sleep(max(0.0, due - time.monotonic()))
        files = {"files": (f"{seed}.flac", audio_of(seed))}
        answer = asked(fleet, rng, books, "POST", "/stems", files=files)
        if answer.status_code != 202:
            with books.lock:
                books.wrong.append(f"upload {seed}: {answer.status_code} {answer.text[:200]}")
            continue
        with books.lock:
            books.acknowledged[seed] = answer.json()["items"][0]["stem_id"]
        if rng.random() < DELETED_SHARE:
            delete_one(fleet, books, rng)
        if rng.random() < 0.3:
            query_one(fleet, books, rng)


def delete_one(fleet: Fleet, books: Books, rng: random.Random) -> None:
    with books.lock:
        seed = rng.choice(list(books.acknowledged))
        stem = books.acknowledged[seed]
        books.seen_ready.discard(seed)  # from now on nobody knows, until the answer
    answer = asked(fleet, rng, books, "DELETE", f"/stems/{stem}")
    with books.lock:
        if answer.status_code in (204, 404):  # 404: an earlier attempt whose answer was cut off
            books.deleted.add(stem)
        else:
            books.wrong.append(f"delete {stem}: {answer.status_code} {answer.text[:200]}")


def query_one(fleet: Fleet, books: Books, rng: random.Random) -> None:
    """A stem that was ready before must be the first hit for its own audio; one that was deleted must be none."""
    with books.lock:
        seed = rng.choice(list(books.acknowledged))
        stem, gone = books.acknowledged[seed], set(books.deleted)
        ready = seed in books.seen_ready
    if not ready:
        answer = asked(fleet, rng, books, "GET", f"/stems/{stem}")
        ready = answer.status_code == 200 and answer.json()["state"] == "ready"
    answer = asked(
        fleet, rng, books, "POST", "/retrieve", files={"file": ("m.flac", audio_of(seed))}, data={"align": "grid"}
    )
    with books.lock:
        books.answers[f"query {answer.status_code}"] += 1
        if answer.status_code != 200:
            books.wrong.append(f"query {seed}: {answer.status_code} {answer.text[:200]}")
            return
        found = [hit["stem"]["id"] for hit in answer.json()["hits"]]
        if len(found) != len(set(found)):
            books.wrong.append(f"query {seed}: a stem twice")
        if returned := gone & set(found):
            books.wrong.append(f"query {seed}: deleted stems {sorted(returned)}")
        # A delete that has begun meanwhile may already have taken it out.
        if ready and books.acknowledged[seed] not in books.deleted and (not found or found[0] != stem):
            books.wrong.append(f"query {seed}: {stem} was ready, and first is {found[:1]}")
        if ready and stem not in books.deleted:
            books.seen_ready.add(seed)


def faults_of(
    fleet: Fleet, postgres: PostgresServer, server: RedisServer, disk: Path, rng: random.Random, full: bool
) -> dict[str, Callable[[], None]]:
    """What can go wrong, by its name; each returns when it is over."""
    audio = disk / "audio"

    def redis_away() -> None:
        server.kill()
        time.sleep(AWAY_S)
        server.start()

    def redis_flushed() -> None:
        with redis.Redis.from_url(server.url) as client:
            client.flushall()

    def postgres_away() -> None:
        postgres.stop()
        time.sleep(AWAY_S)
        postgres.start()

    def audio_refused() -> None:
        aside = disk / "aside"
        audio.rename(aside)
        audio.touch()  # a file where the folder was: nothing can be read or written
        time.sleep(AWAY_S)
        audio.unlink()
        aside.rename(audio)

    def disk_full() -> None:
        filler = disk / "filler"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(2**20))
        time.sleep(AWAY_S)
        filler.unlink()

    faults = {
        "a worker killed": lambda: fleet.kill("worker", rng),
        "an API process killed": lambda: fleet.kill("api", rng),
        "Redis killed": redis_away,
        "Redis flushed": redis_flushed,
        "PostgreSQL crashed": postgres_away,
        "the audio store refusing": audio_refused,
    }
    return faults | ({"the audio's disk full": disk_full} if full else {})


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small tmpfs there, where that may be done; says whether it was."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={AUDIO_BYTES}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def settled(fleet: Fleet, books: Books) -> None:
    """Wait until every process answers ready and nothing is queued."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        reports = []
        for port in fleet.ports:
            with suppress(httpx.TransportError):
                reports.append(httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=30))
        if len(reports) == len(fleet.ports) and all(
            report.status_code == 200 and report.json()["stems"]["queued"] == 0 for report in reports
        ):
            return
        time.sleep(1.0)
    books.wrong.append(f"not settled within {SETTLE_S:g} s")


def audit(fleet: Fleet, rng: random.Random, books: Books, tried: int) -> dict[str, int]:
    """Compare the catalog and the index with what clients were told."""
    stems, wanted = [], {"limit": 500}
    while wanted:
        page = asked(fleet, rng, books, "GET", "/stems", params=wanted).json()
        stems += page["stems"]
        wanted = page["next_cursor"] and wanted | {"cursor": page["next_cursor"]}
    by_id = {stem["id"]: stem for stem in stems}
    kept = {seed: stem for seed, stem in books.acknowledged.items() if stem not in books.deleted}
    ready = {seed for seed, stem in kept.items() if stem in by_id and by_id[stem]["state"] == "ready"}
    failed = {seed for seed, stem in kept.items() if stem in by_id and by_id[stem]["state"] == "failed"}
    unreasoned = [seed for seed in failed if not by_id[kept[seed]]["problem"]]
    doubled = len(stems) - len({stem["title"] for stem in stems})
    strangers = set(by_id) - set(kept.values())
    not_found = 0
    windows = set()
    for seed in sorted(ready):
        answer = asked(
            fleet, rng, books, "POST", "/retrieve", files={"file": ("m.flac", audio_of(seed))}, data={"align": "grid"}
        ).json()
        found = [hit["stem"]["id"] for hit in answer["hits"]]
        windows.add(answer["index"]["windows"])
        not_found += found[:1] != [kept[seed]]
        doubled += len(found) - len(set(found))
        if books.deleted & set(found) or set(found) - set(by_id):
            books.wrong.append(f"audit {seed}: a stem that is not in the catalog")
    expected = sum(stem["windows"] for stem in stems if stem["state"] == "ready")
    if windows != {expected}:
        books.wrong.append(f"the indexes hold {sorted(windows)} windows, the catalog {expected}")
    return {
        "clips uploaded": tried,
        "uploads acknowledged": len(books.acknowledged),
        "deletes acknowledged": len(books.deleted),
        "ready at the end": len(ready),
        "failed at the end, with a reason": len(failed) - len(unreasoned),
        "lost (neither ready nor failed with a reason)": len(kept) - len(ready) - len(failed) + len(unreasoned),
        "ready and not the first hit for its own audio": not_found,
        "doubled": doubled,
        "in the catalog without an acknowledged upload": len(strangers),
        "queries answered meanwhile": books.answers["query 200"],
        "wrong answers": len(books.wrong),
    }


def balanced(figures: Mapping[str, int]) -> bool:
    """Whether every clip was taken, and what must be none is none."""
    wrong = any(number for name, number in figures.items() if name not in COUNTED)
    return not wrong and figures["uploads acknowledged"] == figures["clips uploaded"]


def main() -> int:
    parser = page_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--uploads", type=int, default=2000)
    parser.add_argument("--apis", type=int, default=2)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the processes' logs; default: removed at the end")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    binaries = postgres_binaries()
    if binaries is None:
        sys.exit("no PostgreSQL on this machine")
    postgres = PostgresServer(binaries)
    with tempfile.TemporaryDirectory(prefix="phalar-faults-") as scratch, small_disk(Path(scratch) / "disk") as full:
        folder = arguments.keep or Path(scratch) / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        save_small_checkpoint(Path(scratch) / "small.safetensors")
        server = RedisServer(Path(scratch) / "redis").start()
        postgres.start()
        fleet = Fleet(
            {
                "PHALAR_DATABASE_URL": new_database(postgres.url),
                "PHALAR_REDIS_URL": server.url,
                "PHALAR_BLOB_URL": (Path(scratch) / "disk" / "audio").as_uri(),
                "PHALAR_CHECKPOINT": str(Path(scratch) / "small.safetensors"),
                "PHALAR_TORCH_THREADS": "1",
                "PHALAR_CLAIM_AFTER_S": "5",
                "PHALAR_MAX_DELIVERIES": "10",
                "OMP_NUM_THREADS": "1",
            },
            folder,
            arguments.apis,
            arguments.workers,
        )
        (Path(scratch) / "disk" / "audio").mkdir()
        try:
            fleet.start()
            counted, books = run(fleet, postgres, server, Path(scratch) / "disk", rng, full, arguments)
            settled(fleet, books)
            figures = audit(fleet, rng, books, arguments.uploads)
        finally:
            fleet.stop()
            server.kill()
            postgres.remove()
    report = describe(counted, figures, books, arguments)
    publish(report, arguments.page, "faults")
    return int(not balanced(figures))


def run(
    fleet: Fleet,
    postgres: PostgresServer,
    server: RedisServer,
    disk: Path,
    rng: random.Random,
    full: bool,
    arguments: argparse.Namespace,
) -> tuple[Counter[str], Books]:
    """Clients and faults beside each other, for as long as asked; how often each fault was, and what clients saw."""
    books, counted = Books(), Counter[str]()
    settled(fleet, books)
    begin, seconds = time.monotonic(), 60 * arguments.minutes
    plan = [(seed, begin + seconds * seed / arguments.uploads) for seed in range(arguments.uploads)]
    clients = [
        threading.Thread(target=upload_all, args=(fleet, books, iter(plan[number::CLIENTS]), number))
        for number in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    faults = faults_of(fleet, postgres, server, disk, rng, full)
    while time.monotonic() < begin + seconds or any(client.is_alive() for client in clients):
        time.sleep(rng.uniform(*PAUSE_S))
        if time.monotonic() < begin + seconds:
            name = rng.choice(list(faults))
            faults[name]()
            counted[name] += 1
    for client in clients:
        client.join()
    return counted, books


def describe(counted: Counter[str], figures: dict[str, int], books: Books, arguments: argparse.Namespace) -> str:
    head = (
        f"Measured {today()}: {arguments.minutes:g} minutes, {arguments.apis} API processes, "
        f"{arguments.workers} workers, {CLIENTS} clients."
    )
    faults = markdown_table(["fault", "times"], [[name, str(times)] for name, times in sorted(counted.items())])
    kinds = [[kind, str(times)] for kind, times in sorted(books.answers.items()) if kind != "query 200"]
    told = markdown_table(["asked again after", "times"], kinds)
    counts = markdown_table(["books", "count"], [[name, str(count)] for name, count in figures.items()])
    wrong = "".join(f"- {line}\n" for line in books.wrong[:20])
    return "\n".join([head, "", faults, told, counts, wrong]).strip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
