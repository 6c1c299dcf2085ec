"""`phalar serve`: one installation as a set of supervised processes, and the words it greets its user with."""

import asyncio
import errno
import io
import os
import socket
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from service.commands.client import Client, NewStem, Refused, ServiceUnreachable
from service.commands.console import bar, err
from service.local.demo import compose_demo
from service.local.lock import DataFolderLock
from service.local.supervisor import Child, ProcessError, Supervisor
from service.local.valkey import EmbeddedValkey
from service.settings import Settings

POLL_S = 0.3
BACKLOG = 2048  # connections that wait for the API; as many as uvicorn asks for
LOG, LOG_BYTES = "phalar.log", 16 * 2**20
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(8 * 2**20)}
"""For an API process: glibc would raise this to as much as was freed last, and keep all that is smaller, which after
some searches is a fifth of the process. A worker computes in such blocks all the time, and would wait for each."""

COMPLETE = "complete"  # an empty file: the demo was ingested to its end; without it, the next start goes on


class PortInUse(ProcessError):
    """Somebody listens there already, or this machine lets nobody listen there."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        used = error.errno == errno.EADDRINUSE
        super().__init__(
            f"port {port} on {host} is in use; choose another with --port"
            if used
            else f"nobody can listen on port {port} of {host}: {error.strerror or error}"
        )


def serve(settings: Settings, *, demo: bool, verbose: bool = False) -> None:
    """Run everything until Ctrl-C or SIGTERM; nothing is left behind.

    `verbose`: what the processes say goes to stderr, instead of into the data folder's log.

    Raises:
        InsecureBind, PortInUse, DataFolderInUse, DataFolderUnwritable, ValkeyNotFound: before anything is started.
        ChildFailed: a process could not be kept alive; the others were stopped.
    """
    settings.refuse_insecure_bind()
    settings.keep_private()
    with DataFolderLock(settings.data_folder), _listen(settings.host, settings.port) as door:
        port = door.getsockname()[1]  # where 0 was asked for, the one that was free
        asyncio.run(_run(settings.model_copy(update={"port": port}), door, demo, verbose))


def _children(settings: Settings, door: socket.socket) -> list[Child]:
    environment = {
        f"PHALAR_{name.upper()}": _as_text(getattr(settings, name))
        for name in settings.model_fields_set
        if getattr(settings, name) is not None
    }
    phalar = [sys.executable, "-m", "service.commands"]
    workers = range(settings.workers)
    children = [
        Child(
            "api",
            [*phalar, "api", "--door", str(door.fileno())],
            GIVES_BACK | {name: os.environ[name] for name in GIVES_BACK if name in os.environ} | environment,
            descriptors=(door.fileno(),),
        ),
        *(Child(f"worker {slot}", [*phalar, "worker", "--slot", str(slot)], environment) for slot in workers),
    ]
    if settings.redis_url is None:
        children.insert(0, EmbeddedValkey(settings.data_folder / "valkey").child())
    return children


def _as_text(value: object) -> str:
    return value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)


async def _run(settings: Settings, door: socket.socket, demo: bool, verbose: bool) -> None:
    with _Log(settings.data_folder / LOG) as log:
        supervisor = Supervisor(_children(settings, door), output=None if verbose else log)
        greeting = asyncio.create_task(_greet(settings, demo, verbose))
        try:
            await supervisor.run()
        finally:
            greeting.cancel()
            await asyncio.gather(greeting, return_exceptions=True)


class _Log(io.TextIOBase):
    """What the processes say, in a file that begins anew when it is long; what goes wrong also on the screen."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, line: str) -> int:
        if line.startswith("supervisor") or "| ERROR " in line or "| CRITICAL " in line:
            with suppress(OSError):  # the terminal has gone
                err.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)
        if self._file.tell() > LOG_BYTES:
            self._path.replace(self._path.with_suffix(".log.1"))
            self._file.close()
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
        self._file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}")
        return len(line)

    def close(self) -> None:
        with suppress(OSError):  # the disk is full: its last lines are lost
            self._file.close()
        super().close()


async def _greet(settings: Settings, demo: bool, verbose: bool) -> None:
    """Wait until queries are answered, fill an empty catalog if a demo is wanted, and say how to begin."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{settings.port}"  # noqa: S104 - only shown
    with bar(transient=True) as progress:
        report = await _readiness(url, progress, progress.add_task("Starting", total=None))
    folder = settings.data_folder / "demo"
    key = settings.keys.get("admin") or settings.keys.get("ingest")
    begun, complete = folder.is_dir(), (folder / COMPLETE).is_file()
    empty = not any(report["stems"].values())
    if demo and (empty or (begun and not complete)) and (key or not settings.keys_needed):
        await _fill(url, key, folder)
    lines = ["", f"Phalar Retrieval is ready: {url}"]
    if report["model"]["note"]:
        lines += ["", f"Note: {report['model']['note']}"]
    mix = folder / "mix.flac"
    if mix.is_file():
        authorization = "-H 'Authorization: Bearer <key>' " if settings.keys_needed else ""
        lines += [
            "",
            "Which stems fit this mix?",
            f"  curl {authorization}-F file=@{_short(mix)} -F limit=5 {url}/retrieve",
        ]
    if not verbose:
        lines += ["", f"Log: {_short(settings.data_folder / LOG)}; -v shows it here."]
    print("\n".join([*lines, "", "Ctrl-C ends it."]), flush=True)


async def _readiness(url: str, progress: Any, task: Any) -> dict[str, dict[str, object]]:
    """/readyz once it is 200, in a loop that a stop can cancel."""
    with Client(url, timeout_s=5.0, patience_s=0) as client:
        while True:
            try:
                report = await asyncio.to_thread(client.readiness)
            except (ServiceUnreachable, Refused, ValueError):
                report = {}
            if report.get("status") == "ready":
                return report
            if report.get("status") == "rebuilding":
                progress.update(task, description="Rebuilding the index")
            await asyncio.sleep(POLL_S)


async def _fill(url: str, key: str | None, folder: Path) -> None:
    """Compose the demo catalog in a process of its own, and ingest it over HTTP like anybody's stems."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.commands", "demo", "--url", url, "--out", str(folder)),
        env={**os.environ, "PHALAR_KEY": key or "", "OMP_NUM_THREADS": "1"},
    )
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def ingest_demo(url: str, key: str | None, folder: Path, tracks: int, seconds: float, seed: int) -> int:
    """Compose and ingest; returns how many stems failed. Raises ServiceUnreachable, Refused."""
    failed = 0
    with Client(url, key) as client, bar() as progress:
        composing = progress.add_task("Composing demo tracks", total=tracks)
        sent = 0
        for stems in compose_demo(folder, tracks, seconds, seed):
            outcomes = list(client.ingest([NewStem(stem.path, stem.metadata) for stem in stems], wait=False))
            failed += sum(outcome.problem is not None for outcome in outcomes)
            sent += len(stems)
            progress.advance(composing)
        embedding = progress.add_task("Embedding their stems", total=sent)
        while queued := client.readiness()["stems"]["queued"]:
            progress.update(embedding, completed=max(0, sent - queued))
            time.sleep(POLL_S)
        progress.update(embedding, completed=sent)
    (folder / COMPLETE).touch()
    return failed


def _listen(host: str, port: int) -> socket.socket:
    """The socket that the API answers on.

    It is held from here on: no other start can take the port for free, and who connects while the API starts, or starts
    again, waits. Raises PortInUse.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        door = socket.socket(family, kind, protocol)
        try:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind(address)
            door.listen(BACKLOG)
        except OSError:
            door.close()
            raise
    except OSError as error:
        raise PortInUse(host, port, error) from error
    return door


def _short(path: Path) -> str:
    """Relative to where the user stands, if that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
