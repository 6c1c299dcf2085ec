"""The supervisor of an installation's processes.

Nothing here outlives its supervisor. It stops its children in order; should it be killed, the kernel ends them
(PR_SET_PDEATHSIG, Linux only; elsewhere the next start ends a Valkey that was left behind).
"""

import asyncio
import ctypes
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import TextIOBase
from typing import TextIO

from service.text import escaped

log = logging.getLogger("phalar.processes")

EARLY_S = 10.0  # a child that dies sooner after its start has died early
DEVICE_LOST = 5  # the exit code of a worker whose device no longer answers
LOST_EARLY_S = 600.0  # such a worker has died early when it lived no longer: starting it for ever would help nobody
MAX_EARLY_EXITS = 5
MAX_EARLY_KILLS = 20  # by a signal: a backlog of jobs that crash their worker must not stop the service
LAST_WORDS = 20  # lines

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class ProcessError(Exception):
    """An installation could not be started or kept running."""


class ChildFailed(ProcessError):
    """A child could not be kept alive; everything was stopped."""

    def __init__(self, name: str, exit_code: int, last_words: Sequence[str]) -> None:
        said = "\n".join(f"  {line}" for line in last_words)
        super().__init__(f"{name} keeps dying ({_describe(exit_code)}); its last words:\n{said}".rstrip(":\n"))
        self.name = name
        self.exit_code = exit_code
        self.last_words = tuple(last_words)


@dataclass(frozen=True)
class Child:
    """One command to keep alive.

    `prepare` runs before every start and is given the number of early deaths so far. All others wait until the `ready`
    of a `first` child is True. `cleanup` runs when it has ended for good. Lines of a `quiet` child are kept for its
    last words only. It inherits `descriptors`.
    """

    name: str
    command: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[int], None] | None = None
    ready: Callable[[], Awaitable[bool]] | None = None
    cleanup: Callable[[], None] | None = None
    first: bool = False
    quiet: bool = False
    descriptors: tuple[int, ...] = ()


class Supervisor:
    """Keeps children alive until a signal, or until one cannot be kept alive; then stops them all.

    Each child leads a process group, so Ctrl-C in a terminal reaches the supervisor alone, which stops them in
    order, and what a dead child has started dies with it.
    """

    def __init__(
        self,
        children: Sequence[Child],
        stop_s: float = 20.0,
        output: TextIO | TextIOBase | None = None,
        first_pause_s: float = 0.1,
    ) -> None:
        assert len({child.name for child in children}) == len(children), "children need different names"
        self._children = children
        self._stop_s = stop_s
        self._output = output
        self._first_pause_s = first_pause_s
        self._stopping = asyncio.Event()
        self._killing = asyncio.Event()
        self._started: dict[str, asyncio.Event] = {child.name: asyncio.Event() for child in children}
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._failure: ChildFailed | None = None

    @property
    def pids(self) -> dict[str, int]:
        """The living children's process ids by name."""
        return {name: process.pid for name, process in self._processes.items()}

    def stop(self) -> None:
        """Stop all children in order; called again: at once."""
        if self._stopping.is_set():
            self._killing.set()
        self._stopping.set()

    async def run(self) -> None:
        """Run until SIGINT, SIGTERM, SIGHUP (unless it is ignored) or `stop`; no child lives when it returns.

        Raises:
            ChildFailed: a child died early again and again; the others were stopped.
        """
        loop = asyncio.get_running_loop()
        signals = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
            signals.append(signal.SIGHUP)
        for number in signals:
            loop.add_signal_handler(number, self.stop)
        first = [child for child in self._children if child.first]
        later = [child for child in self._children if not child.first]
        stop_first, stop_later = asyncio.Event(), asyncio.Event()
        first_tasks = [asyncio.create_task(self._keep(child, [], stop_first)) for child in first]
        later_tasks = [asyncio.create_task(self._keep(child, first, stop_later)) for child in later]
        for task in first_tasks + later_tasks:
            task.add_done_callback(lambda _: self._stopping.set())
        try:
            await self._stopping.wait()
        except asyncio.CancelledError:
            self._killing.set()
            raise
        finally:
            stop_later.set()
            ended = await asyncio.gather(*later_tasks, return_exceptions=True)
            stop_first.set()
            ended += await asyncio.gather(*first_tasks, return_exceptions=True)
            for number in signals:
                loop.remove_signal_handler(number)
        for error in ended:
            if error is not None:
                raise error
        if self._failure is not None:
            raise self._failure

    async def _keep(self, child: Child, after: Sequence[Child], stop: asyncio.Event) -> None:
        """Start it, again and again, until `stop`."""
        for other in after:
            await _first_of(self._started[other.name].wait(), stop.wait())
        exits = kills = 0
        pause = self._first_pause_s
        try:
            while not stop.is_set():
                begun = time.monotonic()
                words: deque[str] = deque(maxlen=LAST_WORDS)
                try:
                    if child.prepare is not None:
                        await asyncio.to_thread(child.prepare, exits + kills)
                    code = await self._run_once(child, words, stop)
                except OSError as error:
                    words.append(str(error))
                    code = 127
                if stop.is_set():
                    return
                if time.monotonic() - begun >= (LOST_EARLY_S if code == DEVICE_LOST else EARLY_S):
                    exits = kills = 0
                    pause = self._first_pause_s
                exits, kills = (exits, kills + 1) if code < 0 else (exits + 1, kills)
                if exits >= MAX_EARLY_EXITS or kills >= MAX_EARLY_KILLS:
                    self._failure = self._failure or ChildFailed(child.name, code, words)
                    self._stopping.set()
                    await stop.wait()
                    return
                self._say("supervisor", f"{child.name} died ({_describe(code)}); starting it again")
                await _first_of(asyncio.sleep(pause), stop.wait())
                pause = min(2 * pause, 5.0)
        finally:
            if child.cleanup is not None:
                child.cleanup()

    async def _run_once(self, child: Child, words: "deque[str]", stop: asyncio.Event) -> int:
        # A pipe of our own: with asyncio's, wait() would wait for every grandchild that holds its other end.
        read_end, write_end = os.pipe()
        lines = asyncio.StreamReader(limit=2**20)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(read_end, "rb", buffering=0)
        )
        try:
            process = await asyncio.create_subprocess_exec(
                *child.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                # glibc gives each thread a heap of its own, and none is given back: two are as fast, and hold less.
                env={"MALLOC_ARENA_MAX": "2", **os.environ, "PYTHONUNBUFFERED": "1", **child.environment},
                process_group=0,
                pass_fds=child.descriptors,
                preexec_fn=dies_with_parent(signal.SIGTERM if child.first else signal.SIGKILL),
            )
        except OSError:
            transport.close()
            raise
        finally:
            os.close(write_end)
        self._processes[child.name] = process
        reading = asyncio.create_task(self._read(child, lines, words))
        announcing = asyncio.create_task(self._announce(child))
        try:
            await _first_of(process.wait(), stop.wait())
            if process.returncode is None:
                await self._end(process)
            _kill_group(process.pid)  # whatever it had started
            await asyncio.wait([reading], timeout=1.0)
            return await process.wait()
        finally:
            announcing.cancel()
            reading.cancel()
            transport.close()
            self._processes.pop(child.name, None)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Ask it to end; after a while, or when asked to hurry, kill it."""
        with suppress(ProcessLookupError):
            process.terminate()
        await _first_of(process.wait(), self._killing.wait(), asyncio.sleep(self._stop_s))
        _kill_group(process.pid)
        await process.wait()

    async def _announce(self, child: Child) -> None:
        while child.ready is not None and not await child.ready():  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.02)
        self._started[child.name].set()

    async def _read(self, child: Child, lines: asyncio.StreamReader, words: "deque[str]") -> None:
        while True:
            try:
                line = await lines.readline()
            except ValueError:  # longer than any line worth reading
                continue
            if not line:
                return
            text = escaped(line.decode(errors="replace").rstrip())
            words.append(text)
            if not child.quiet:
                self._say(child.name, text)

    def _say(self, name: str, text: str) -> None:
        with suppress(OSError, ValueError):  # nobody may be reading any more, which is no reason to die
            output = self._output or sys.stderr
            output.write(f"{name:<10} | {text}\n")
            output.flush()


async def _first_of(*waits: Awaitable[object]) -> None:
    """Return when one of them has; cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def dies_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """What a child runs between fork and exec, so that the kernel sends it a signal when its parent dies."""
    if _LIBC is None:
        return None
    prctl = _LIBC.prctl
    parent = os.getpid()

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel was asked
            os._exit(1)

    return ask_kernel


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _describe(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"
