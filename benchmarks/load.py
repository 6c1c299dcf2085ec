"""A whole service under load while processes die: is anything lost, doubled or wrong, and how long does each wait?

    python -m benchmarks.load --minutes 10 --clients 64 --page docs/faults.md

Two API processes that answer on one port, four workers, an embedded Valkey and one SQLite catalog, kept alive by the
service's own supervisor; the default model. Every client has an address of its own, makes one request after the other
over a new connection, and asks again when it is told to or cut off: of ten requests seven search with 8 s, two upload a
clip of 8 s, one deletes, replaces, edits or listens. First fewer clients, then as many, are timed in quiet. Then, for
so many minutes, a worker and an API process are killed (kill -9) at some moment of every minute, and in the middle a
reindex is asked for. At the end everything must settle, and the books must balance.
"""

import argparse
import asyncio
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks.bare import compose, mixes
from benchmarks.callers import CLIP_S, HITS, KNOWN, SENT, SHARES, TAGS, Books, Caller, Music
from benchmarks.page import page_parser, publish, today
from benchmarks.processes import resident
from model.audio import load_clip
from model.evaluation.results import markdown_table
from service.local.serve import GIVES_BACK
from service.local.supervisor import Child, ChildFailed, Supervisor
from service.local.valkey import EmbeddedValkey
from tests.installation import encode

APIS, WORKERS = 2, 4
STEPS = (4, 16)  # clients that are timed before as many as asked
MIXES, TRACKS, TRACK_S = 8, 6, 20.0
MOST_UPLOADS, MOST_QUERIES = 40, 16  # that may wait: few, so that the limits are met
FULL = {"upload": "429 queue-full", "search": "503 queue-full"}  # what is answered then
START_S, SETTLE_S, LAST_S = 180.0, 600.0, 240.0
WATCH_S = 3.0
YOUNG_S = 45.0  # after its start a process still loads what it needs, and each of its threads takes its memory
LIVED_S = 60.0  # so long a process is watched after that, or it says nothing about growth
GROWTH = 1.15  # of a process's memory, between the first and the last third of its time, that is still flat
KINDS = tuple(SHARES)


@dataclass
class Step:
    """What some clients met, for as long as they asked."""

    name: str
    seconds: float = 0.0
    waited: dict[str, list[float]] = field(default_factory=dict)
    again: Counter[str] = field(default_factory=Counter)

    def row(self) -> list[str]:
        cells = [self.name, f"{sum(map(len, self.waited.values())) / max(self.seconds, 1e-9):.1f}"]
        for kind in KINDS:
            times = self.waited.get(kind)
            cells.append(" / ".join(f"{each:.2f}" for each in np.percentile(times, [50, 95, 99])) if times else "")
        return [*cells, str(self.again.total())]


@dataclass
class Watched:
    """Memory of each process over time, MiB, and what waited at most."""

    memory: dict[str, dict[int, list[tuple[float, float]]]] = field(default_factory=lambda: defaultdict(dict))
    deepest: Counter[str] = field(default_factory=Counter)
    _born: dict[int, float] = field(default_factory=dict)

    def look(self, pids: dict[str, int], *, timed: bool) -> None:
        now = time.monotonic()
        for name, pid in pids.items():
            with suppress(OSError):
                held = resident(pid) / 2**20
                if timed and now - self._born.setdefault(pid, now) >= YOUNG_S:
                    self.memory[name.split()[0]].setdefault(pid, []).append((now, held))

    def growth(self, kind: str) -> NDArray[np.float64]:
        """The median memory in the first and in the last third of each process's time, MiB, (processes, 2).

        Of the processes that were watched for long enough: one that was killed young is no measure of the next.
        """
        grown = []
        for seen in self.memory[kind].values():
            times, sizes = np.array(seen).T
            if times[-1] - times[0] >= LIVED_S:
                early, late = np.quantile(times, [1 / 3, 2 / 3])
                grown.append((np.median(sizes[times <= early]), np.median(sizes[times >= late])))
        return np.array(grown).reshape(-1, 2)

    def most(self, kind: str) -> float:
        return max(size for seen in self.memory[kind].values() for _, size in seen)


@dataclass
class Load:
    """One run, from the first stem to the audit."""

    url: str
    music: Music
    supervisor: Supervisor
    arguments: argparse.Namespace
    books: Books = field(default_factory=Books)
    watched: Watched = field(default_factory=Watched)
    steps: list[Step] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)
    reindexes: list[str] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=dict)

    def caller(self, number: int) -> Caller:
        return Caller(self.url, number, self.music, self.books, self.arguments.align)

    async def run(self) -> None:
        """All of it."""
        operator = self.caller(0)
        timed = asyncio.Event()
        async with asyncio.timeout(START_S + SETTLE_S):
            await self.fill(operator)
        watching = asyncio.create_task(self.watch(self.caller(1), timed))
        try:
            most, seconds = self.arguments.clients, self.arguments.step_seconds
            for clients in [*(n for n in STEPS if n < most), most]:
                await self.step(f"{clients}", clients, seconds)
            for kind in FULL:
                await self.step(f"{most}, {kind} alone", most, seconds, shares={kind: 1})
            timed.set()
            named = f"{most}, with kills and a reindex"
            await self.step(named, most, 60 * self.arguments.minutes, self.faults(operator))
            timed.clear()
            async with asyncio.timeout(SETTLE_S):
                await self.settle(operator)
        finally:
            watching.cancel()
            (ended,) = await asyncio.gather(watching, return_exceptions=True)
            if isinstance(ended, Exception):
                self.books.wrong.append(f"nobody watched any more: {ended!r}")
        async with asyncio.timeout(SETTLE_S):
            await self.audit(operator)

    async def fill(self, operator: Caller) -> None:
        """The stems that stay, and the right answers among them, asked in quiet."""
        for number, waveform in enumerate(self.music.stems):
            audio = encode(waveform)
            said = {"metadata": f'{{"title": "known {number}", "collection": "{KNOWN}"}}'}
            files = {"files": (f"known {number}.flac", audio)}
            answer = await operator.asked("POST", "/stems", 202, files=files, data=said)
            self.books.known_audio[answer.json()["items"][0]["stem_id"]] = audio
        await self.settle(operator)
        for mix in range(len(self.music.mixes)):
            self.books.known[mix] = await operator.search(mix, collection=KNOWN, limit=HITS)
            await operator.check_known(mix)
        self.books.seconds.clear()

    async def step(
        self,
        name: str,
        clients: int,
        seconds: float,
        beside: Awaitable[None] | None = None,
        shares: Mapping[str, int] = SHARES,
    ) -> None:
        """So many clients for so long, and something that happens meanwhile."""
        books, ending, began = self.books, asyncio.Event(), time.monotonic()
        books.seconds, books.again = defaultdict(list), Counter()
        callers = [self.caller(2 + number) for number in range(clients)]
        work = [asyncio.create_task(caller.work(ending, shares)) for caller in callers]
        meanwhile = asyncio.ensure_future(beside) if beside is not None else None
        await asyncio.wait(work, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        took = time.monotonic() - began
        ending.set()
        if meanwhile is not None:
            meanwhile.cancel()
        done, pending = await asyncio.wait(work, timeout=LAST_S)
        books.wrong += [f"a client had no answer within {LAST_S:g} s" for _ in pending]
        books.wrong += [f"a client ended by {task.exception()!r}" for task in done if task.exception()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*work, *([meanwhile] if meanwhile else []), return_exceptions=True)
        for caller in callers:
            await caller.close()
        self.steps.append(Step(name, took, dict(books.seconds), books.again))
        books.seconds, books.again = defaultdict(list), Counter()
        print(*self.steps[-1].row(), f"{len(books.wrong)} wrong", sep="; ", file=sys.stderr, flush=True)

    async def faults(self, operator: Caller) -> None:
        """Kill one worker and one API process in every minute; reindex in the middle."""
        rng, every = random.Random(self.arguments.seed), self.arguments.kill_every
        begin, end = time.monotonic(), time.monotonic() + 60 * self.arguments.minutes
        moments = [(begin + 30 * self.arguments.minutes, "reindex")]
        for start in np.arange(begin, end, every):
            moments += [(start + rng.uniform(0, every), kind) for kind in ("worker", "api")]
        reindexing: list[asyncio.Task[None]] = []
        try:
            for moment, what in sorted(moments):
                await asyncio.sleep(max(0.0, moment - time.monotonic()))
                if what == "reindex":
                    reindexing.append(asyncio.create_task(self.reindex(operator)))
                    continue
                pids = [pid for name, pid in self.supervisor.pids.items() if name.startswith(what)]
                os.kill(rng.choice(pids), signal.SIGKILL)
                self.killed[what] += 1
            await asyncio.sleep(end - begin)  # until the step ends it
        finally:
            if reindexing:
                await asyncio.wait(reindexing, timeout=LAST_S)

    async def reindex(self, operator: Caller) -> None:
        job = (await operator.asked("POST", "/admin/reindex", 202, json={})).json()
        while job["state"] == "running":
            await asyncio.sleep(0.5)
            job = (await operator.asked("GET", f"/jobs/{job['id']}", 200)).json()
        self.reindexes.append(job["state"])

    async def watch(self, operator: Caller, timed: asyncio.Event) -> None:
        """Look at memory and queues, and which uploads are ready by now."""
        while True:
            self.watched.look(self.supervisor.pids, timed=timed.is_set())
            report = (await operator.asked("GET", "/readyz", 200, 503)).json()
            for name, depth in {**report.get("queue", {}), "stems": report["stems"]["queued"]}.items():
                self.watched.deepest[name] = max(self.watched.deepest[name], depth)
            for stem in await operator.listed(collection=SENT, state="ready"):
                if stem["id"] in self.books.sent:
                    self.books.sent[stem["id"]].ready = True
            await asyncio.sleep(WATCH_S)

    async def settle(self, operator: Caller) -> None:
        """Wait until nothing is queued."""
        while True:
            report = await operator.asked("GET", "/readyz", 200, 503)
            if report.status_code == 200 and not report.json()["stems"]["queued"]:
                return
            await asyncio.sleep(1.0)

    async def audit(self, operator: Caller) -> None:
        """Compare the catalog and both APIs' indexes with what clients were told."""
        books, listed = self.books, await operator.listed()
        sent = {stem["id"]: stem for stem in listed if stem["collection"] == SENT}
        kept = {one.stem: one for one in books.kept}
        ready = [one for one in kept.values() if one.stem in sent and sent[one.stem]["state"] == "ready"]
        failed = [one for one in kept.values() if one.stem in sent and sent[one.stem]["problem"]]
        for one in ready:
            one.ready = True
            if sent[one.stem]["title"] != one.title:
                books.wrong.append(f"{one.stem} is called {sent[one.stem]['title']}, and was called {one.title}")
        for tag in range(TAGS):
            await operator.check_tag(tag, tag % MIXES)
        for mix in range(MIXES):
            await operator.check_known(mix)
        for one in ready:
            await operator.check_audio(one.stem, self.music.clip(one.seed))
        expected, seen = sum(stem["windows"] for stem in listed if stem["state"] == "ready"), set()
        for _ in range(4 * APIS):
            seen.add((await operator.asked("GET", "/readyz", 200)).json()["index"]["windows"])
        if seen != {expected}:
            books.wrong.append(f"the indexes hold {sorted(seen)} windows, the catalog {expected}")
        self.figures = {
            "uploads acknowledged": len(books.sent),
            "deletes acknowledged": len(books.deleted),
            "ready at the end": len(ready),
            "failed at the end, with a reason": len(failed),
            "lost (neither ready nor failed with a reason)": len(kept) - len(ready) - len(failed),
            "doubled": len(listed) - len({stem["sha256"] for stem in listed}),
            "in the catalog without an acknowledged upload": len(set(sent) - set(books.sent)),
            "deleted, and in the catalog": len(set(sent) & books.deleted),
            "wrong answers": len(books.wrong),
        }

    def verdict(self) -> dict[str, bool]:
        """What must hold, and whether it did."""
        none = [name for name in self.figures if name not in list(self.figures)[:4]]
        deepest = self.watched.deepest
        held = {name: self.figures[name] == 0 for name in none}
        again = sum((step.again for step in self.steps), Counter[str]())
        for kind, refusal in FULL.items():
            times = again[f"{kind}: {refusal}"]
            held[f"where too many wait, {kind} is answered {refusal} with Retry-After: {times} times"] = times > 0
        most = MOST_UPLOADS + self.arguments.clients  # each may have been let in beside the others
        held[f"stems that waited, at most {deepest['stems']}, stay within {most}"] = deepest["stems"] <= most
        queries = deepest["queries"]
        held[f"searches in the workers' queue, at most {queries}, stay within {MOST_QUERIES}"] = queries <= MOST_QUERIES
        for kind in self.watched.memory:
            grown = self.watched.growth(kind)
            ratio = float(np.median(grown[:, 1] / grown[:, 0])) if len(grown) else np.nan
            held[f"memory of {kind}, {len(grown)} processes: grows to {ratio:.2f} of itself, is flat"] = ratio <= GROWTH
        held[f"the reindex ended: {', '.join(self.reindexes) or 'it did not'}"] = self.reindexes == ["done"]
        return held

    def report(self) -> str:
        arguments, killed = self.arguments, self.killed
        head = (
            f"Measured {today()} on {len(os.sched_getaffinity(0))} cores: {APIS} API processes, "
            f"{WORKERS} workers, {arguments.clients} clients for {arguments.minutes:g} minutes; "
            f"{killed['worker']} workers and {killed['api']} API processes killed, {len(self.reindexes)} reindex; "
            f"{MOST_UPLOADS} stems may wait, and {MOST_QUERIES} searches of each API; "
            f"{arguments.step_seconds:g} s for each other row.\n"
        )
        columns = ["clients", "answers a second", *(f"{kind}, s: p50 / p95 / p99" for kind in KINDS), "asked again"]
        tables = [markdown_table(columns, [step.row() for step in self.steps])]
        again = sorted(self.steps[-1].again.items())
        tables.append(markdown_table(["asked again after", "times"], [[name, str(times)] for name, times in again]))
        memory = []
        for kind in self.watched.memory:
            grown = self.watched.growth(kind)
            early, late = np.median(grown, axis=0) if len(grown) else (np.nan, np.nan)
            ratios = grown[:, 1] / grown[:, 0]
            spread = f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})" if len(grown) else ""
            sizes = [f"{size:.0f}" for size in (early, late, self.watched.most(kind))]
            memory.append([kind, str(len(grown)), *sizes, spread])
        columns = ["memory of each, MiB", "processes", "first third", "last third", "most", "last / first (range)"]
        tables.append(markdown_table(columns, memory))
        tables.append(markdown_table(["books", "count"], [[name, str(n)] for name, n in self.figures.items()]))
        return "\n".join([head, *tables]).strip() + "\n"


def children(folder: Path, door: socket.socket) -> list[Child]:
    """The processes of the service, as `phalar serve` starts them, and one API more."""
    valkey = EmbeddedValkey(folder / "valkey")
    shared = {
        "PHALAR_DATABASE_URL": f"sqlite+aiosqlite:///{folder / 'catalog.sqlite'}",
        "PHALAR_REDIS_URL": valkey.url,
        "PHALAR_BLOB_URL": (folder / "audio").as_uri(),
        "PHALAR_PORT": str(door.getsockname()[1]),
        "PHALAR_TORCH_THREADS": "1",
        "PHALAR_MAX_QUEUED_UPLOADS": str(MOST_UPLOADS),
        "PHALAR_MAX_QUEUED_QUERIES": str(MOST_QUERIES),
    }
    (folder / "audio").mkdir()
    phalar = [sys.executable, "-m", "service.commands"]
    made = [valkey.child()]
    for number in range(APIS):  # each with its own copy of the index
        own = GIVES_BACK | shared | {"PHALAR_DATA": str(folder / f"api-{number}")}
        answering = [*phalar, "api", "--door", str(door.fileno())]
        made.append(Child(f"api {number}", answering, own, descriptors=(door.fileno(),)))
    for number in range(WORKERS):
        own = shared | {"PHALAR_DATA": str(folder / "workers")}
        made.append(Child(f"worker {number}", [*phalar, "worker", "--slot", str(number)], own))
    return made


async def measured(arguments: argparse.Namespace, folder: Path, music: Music) -> Load | None:
    """The run; None: a signal ended it."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as door, (folder / "log.txt").open("w") as log:
        supervisor = Supervisor(children(folder, door), output=log)
        load = Load(f"http://127.0.0.1:{door.getsockname()[1]}", music, supervisor, arguments)
        serving = asyncio.create_task(supervisor.run())
        work = asyncio.create_task(load.run())
        try:
            await asyncio.wait([serving, work], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                return load
            return None
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            supervisor.stop()
            await serving


def main() -> int:
    parser = page_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--step-seconds", type=float, default=60.0, help="of each number of clients in quiet")
    parser.add_argument("--kill-every", type=float, default=60.0, help="seconds in which a worker and an API die")
    parser.add_argument("--align", choices=("beats", "search", "grid"), default="beats", help="of the searches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new folder for files and log; default: removed at the end")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # until the supervisor listens for it
    with tempfile.TemporaryDirectory(prefix="phalar-load-") as scratch:
        folder = (arguments.keep or Path(scratch) / "service").resolve()
        folder.mkdir(parents=True)
        tracks = compose(Path(scratch) / "demo", TRACK_S, TRACKS)
        stems = [load_clip(path).waveform for track in tracks for path in track]
        music = Music(mixes(tracks, MIXES, CLIP_S), stems)
        try:
            load = asyncio.run(measured(arguments, folder, music))
        except (ChildFailed, TimeoutError, httpx.HTTPError) as error:
            print(f"NO VERDICT: {error!r}", flush=True)
            return 1
    if load is None:
        print("NO VERDICT: a signal ended it", flush=True)
        return 130
    publish(load.report(), arguments.page, "load")
    verdict: dict[str, Any] = load.verdict()
    print("\n".join(f"- {wrong}" for wrong in load.books.wrong[:40]))
    print("\n".join(f"{'holds' if held else 'FAILS'}: {name}" for name, held in verdict.items()))
    print("VERDICT:", "all of it holds" if all(verdict.values()) else "not all of it holds", flush=True)
    return int(not all(verdict.values()))


if __name__ == "__main__":
    sys.exit(main())
