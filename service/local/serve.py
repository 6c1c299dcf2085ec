"""`phalar serve`: one installation as a set of supervised processes, and the words it greets its user with."""

import asyncio
import os
import socket
import sys
import time
from pathlib import Path

from service.commands.client import Client, NewStem, ServiceUnreachable
from service.local.demo import compose_demo
from service.local.processes import Child, DataFolderLock, EmbeddedValkey, ProcessError, Supervisor
from service.settings import Settings

POLL_S = 0.3
COMPLETE = "complete"  # an empty file: the demo was ingested to its end; without it, the next start goes on


class PortInUse(ProcessError):
    """Somebody listens there already."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"port {port} on {host} is in use; choose another with --port")
        self.host = host
        self.port = port


def serve(settings: Settings, *, demo: bool) -> None:
    """Run everything until Ctrl-C or SIGTERM; nothing is left behind.

    Raises:
        InsecureBind, PortInUse, DataFolderInUse, ValkeyNotFound: before anything is started.
        ChildFailed: a process could not be kept alive; the others were stopped.
    """
    settings.refuse_insecure_bind()
    with DataFolderLock(settings.data_folder):
        _refuse_used_port(settings.host, settings.port)
        asyncio.run(_run(settings, demo))


def _children(settings: Settings) -> list[Child]:
    environment = {
        f"PHALAR_{name.upper()}": _as_text(getattr(settings, name))
        for name in settings.model_fields_set
        if getattr(settings, name) is not None
    }
    children = [
        Child("api", [sys.executable, "-m", "service.commands", "api"], environment),
        *(
            Child(
                f"worker {slot}", [sys.executable, "-m", "service.commands", "worker", "--slot", str(slot)], environment
            )
            for slot in range(settings.workers)
        ),
    ]
    if settings.redis_url is None:
        children.insert(0, EmbeddedValkey(settings.data_folder / "valkey").child())
    return children


def _as_text(value: object) -> str:
    return value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)


async def _run(settings: Settings, demo: bool) -> None:
    supervisor = Supervisor(_children(settings))
    greeting = asyncio.create_task(_greet(settings, demo))
    try:
        await supervisor.run()
    finally:
        greeting.cancel()
        await asyncio.gather(greeting, return_exceptions=True)


async def _greet(settings: Settings, demo: bool) -> None:
    """Wait until queries are answered, fill an empty catalog if a demo is wanted, and say how to begin."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{settings.port}"  # noqa: S104 - only shown
    report = await _readiness(url)
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
    print("\n".join([*lines, "", "Ctrl-C ends it."]), flush=True)


async def _readiness(url: str) -> dict[str, dict[str, object]]:
    """/readyz once it is 200, in a loop that a stop can cancel."""
    with Client(url, timeout_s=5.0) as client:
        while True:
            try:
                report = await asyncio.to_thread(client.readiness)
            except (ServiceUnreachable, ValueError):
                report = {}
            if report.get("status") == "ready":
                return report
            await asyncio.sleep(POLL_S)


async def _fill(url: str, key: str | None, folder: Path) -> None:
    """Compose the demo catalog in a process of its own, and ingest it over HTTP like anybody's stems."""
    print("Composing a small demo catalog (12 tracks of 5 stems) ...", flush=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "service.commands",
        "demo",
        "--url",
        url,
        "--out",
        str(folder),
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
    with Client(url, key) as client:
        for number, stems in enumerate(compose_demo(folder, tracks, seconds, seed), start=1):
            outcomes = list(client.ingest([NewStem(stem.path, stem.metadata) for stem in stems], wait=False))
            failed += sum(outcome.problem is not None for outcome in outcomes)
            print(f"  {number:2} of {tracks}: {stems[0].metadata['track']}", flush=True)
        while client.readiness()["stems"]["queued"]:
            time.sleep(POLL_S)
    (folder / COMPLETE).touch()
    return failed


def _refuse_used_port(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise PortInUse(host, port) from error


def _short(path: Path) -> str:
    """Relative to where the user stands, if that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
