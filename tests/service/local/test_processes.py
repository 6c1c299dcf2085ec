"""The lock, the private Valkey and the supervisor, with real processes."""

import asyncio
import importlib.util
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from service.local import serve, supervisor
from service.local.lock import DataFolderInUse, DataFolderLock, DataFolderUnwritable
from service.local.supervisor import Child, ChildFailed, ProcessError, Supervisor
from service.local.valkey import EmbeddedValkey, valkey_binary
from service.settings import SOCKET_PATH_BYTES, socket_path
from tests import waiting

SOON_S = 10.0  # a busy machine may take this long to start or end a process; nothing waits it out on success
REPOSITORY = Path(__file__).parents[3]
SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


eventually = partial(waiting.eventually, within_s=SOON_S)


# The lock.


def test_second_start_on_a_data_folder_is_refused_with_the_holders_pid(tmp_path: Path) -> None:
    with DataFolderLock(tmp_path):
        with pytest.raises(DataFolderInUse, match=str(os.getpid())) as refused:
            DataFolderLock(tmp_path).acquire()
        assert refused.value.pid == os.getpid()
    with DataFolderLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_folder_on_a_full_disk_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to("/dev/full")
    with pytest.raises(DataFolderUnwritable, match=f"the data folder {tmp_path} cannot be written: "):
        DataFolderLock(tmp_path).acquire()


# Valkey.


def test_valkey_opens_no_tcp_port_and_only_its_owner_may_connect(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "with space é") as valkey:
        assert valkey.answers()
        assert valkey.socket.stat().st_mode & 0o077 == 0
        assert "--port" in valkey.command()
        assert valkey.command()[valkey.command().index("--port") + 1] == "0"
    assert not valkey.socket.exists()


def test_valkey_socket_moves_to_a_short_private_folder_when_the_path_is_too_long(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    with EmbeddedValkey(folder) as valkey:
        assert len(os.fsencode(valkey.socket)) <= SOCKET_PATH_BYTES
        assert valkey.socket == socket_path(folder)
        assert valkey.socket.parent.stat().st_mode & 0o777 == 0o700
        assert (folder / "appendonlydir").exists()
    assert not valkey.socket.parent.exists()


def test_valkey_left_behind_by_an_earlier_run_is_ended_first(tmp_path: Path) -> None:
    orphan = EmbeddedValkey(tmp_path)
    orphan.start()
    with EmbeddedValkey(tmp_path) as valkey:
        assert orphan._process.wait(timeout=SOON_S) is not None
        assert valkey.answers()


def test_valkey_with_an_unreadable_journal_starts_without_it(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path):
        pass
    journal = next((tmp_path / "appendonlydir").glob("*.incr.aof"))
    journal.write_bytes(b"*1\r\n$4\r\ngarbage that is no command\r\n" * 3)

    async def run() -> None:
        valkey = EmbeddedValkey(tmp_path)
        supervisor = Supervisor([valkey.child()], output=io.StringIO(), first_pause_s=0.01)
        running = asyncio.create_task(supervisor.run())
        await eventually(valkey.answers)
        supervisor.stop()
        await running

    asyncio.run(run())
    assert (tmp_path / "appendonlydir.unreadable").exists()


# The supervisor.


async def supervised(children: list[Child], then: Callable[[Supervisor], object]) -> str:
    """Run children, do something once all are up, stop; return what was printed."""
    output = io.StringIO()
    supervisor = Supervisor(children, output=output, first_pause_s=0.01)
    running = asyncio.create_task(supervisor.run())
    await eventually(lambda: len(supervisor.pids) == len(children))
    done = then(supervisor)
    if asyncio.iscoroutine(done):
        await done
    supervisor.stop()
    await running
    assert supervisor.pids == {}
    return output.getvalue()


def test_without_any_valkey_the_user_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ProcessError, match="install valkey-server or redis-server, or set PHALAR_REDIS_URL"):
        valkey_binary()


def test_supervisor_starts_a_killed_child_again(tmp_path: Path) -> None:
    valkey = EmbeddedValkey(tmp_path)

    async def kill_both(supervisor: Supervisor) -> None:
        await eventually(valkey.answers)
        before = supervisor.pids
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: len(supervisor.pids) == 2 and not set(before.values()) & set(supervisor.pids.values()))
        await eventually(valkey.answers)

    printed = asyncio.run(supervised([valkey.child(), Child("worker0", SLEEPER)], kill_both))
    assert "worker0 died (killed by SIGKILL)" in printed
    assert not valkey.socket.exists()


def test_supervisor_puts_the_childs_name_before_its_lines() -> None:
    async def wait(supervisor: Supervisor) -> None:
        await asyncio.sleep(0)
        await eventually(lambda: "up" in supervisor._output.getvalue())  # type: ignore[union-attr]

    printed = asyncio.run(supervised([Child("worker0", SLEEPER)], wait))
    assert "worker0    | up\n" in printed


def test_child_that_cannot_start_stops_everything_with_its_last_words() -> None:
    broken = [sys.executable, "-c", "import sys; print('no such checkpoint'); sys.exit(3)"]
    seen: list[int] = []

    async def run() -> None:
        supervisor = Supervisor(
            [Child("api", SLEEPER), Child("worker0", broken)], output=io.StringIO(), first_pause_s=0.01
        )
        running = asyncio.create_task(supervisor.run())
        await eventually(lambda: "api" in supervisor.pids)
        seen.append(supervisor.pids["api"])
        await running

    with pytest.raises(ChildFailed, match="no such checkpoint") as failed:
        asyncio.run(run())
    assert (failed.value.name, failed.value.exit_code) == ("worker0", 3)
    assert not alive(seen[0])


def test_a_worker_whose_device_is_lost_again_and_again_is_not_started_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it lived before, up to ten minutes; another child that lived so long has not died early."""
    monkeypatch.setattr(supervisor, "EARLY_S", 0.0)
    lost = [sys.executable, "-c", f"import sys; sys.exit({supervisor.DEVICE_LOST})"]
    output = io.StringIO()
    with pytest.raises(ChildFailed, match="exit code 5"):
        asyncio.run(Supervisor([Child("worker0", lost)], output=output, first_pause_s=0.01).run())
    assert output.getvalue().count("starting it again") == supervisor.MAX_EARLY_EXITS - 1


def test_command_that_does_not_exist_is_a_failed_child() -> None:
    with pytest.raises(ChildFailed, match="No such file"):
        asyncio.run(Supervisor([Child("x", ["/nonexistent"])], output=io.StringIO(), first_pause_s=0.01).run())


def test_child_that_ignores_sigterm_is_killed_after_the_deadline() -> None:
    stubborn = [
        sys.executable,
        "-c",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
    ]

    async def run() -> float:
        output = io.StringIO()
        supervisor = Supervisor([Child("worker0", stubborn)], stop_s=0.2, output=output)
        running = asyncio.create_task(supervisor.run())
        await eventually(lambda: "up" in output.getvalue())
        pid = supervisor.pids["worker0"]
        supervisor.stop()
        begun = time.monotonic()
        await running
        assert not alive(pid)
        return time.monotonic() - begun

    assert asyncio.run(run()) >= 0.2


def test_what_a_killed_child_had_started_dies_with_it(tmp_path: Path) -> None:
    parent = [
        sys.executable,
        "-c",
        f"import subprocess, sys, time; p = subprocess.Popen({SLEEPER!r})\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); time.sleep(600)",
    ]

    async def kill(supervisor: Supervisor) -> None:
        await eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        grandchild = int((tmp_path / "pid").read_text())
        os.kill(supervisor.pids["worker0"], signal.SIGKILL)
        await eventually(lambda: not alive(grandchild))

    asyncio.run(supervised([Child("worker0", parent)], kill))


INSTALLATION = """
import asyncio, sys
from pathlib import Path
from service.local.supervisor import Child, Supervisor
from service.local import supervisor
from service.local.lock import DataFolderLock
from service.local.valkey import EmbeddedValkey
folder = Path(sys.argv[1])
with DataFolderLock(folder):
    valkey = EmbeddedValkey(folder / "valkey")
    children = [valkey.child(), Child("worker0", sys.argv[2:]), Child("api", sys.argv[2:])]
    asyncio.run(Supervisor(children).run())
"""


def start_installation(folder: Path, *by: str) -> tuple["subprocess.Popen[bytes]", list[int]]:
    command = [*by, sys.executable, "-c", INSTALLATION, str(folder), *SLEEPER]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    heard: set[bytes] = set()
    while len(heard) < 2:
        line = process.stderr.readline()
        assert line, "it ended"
        if line.rstrip().endswith(b"| up"):
            heard.add(line)
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return process, [int(pid) for pid in listed]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_leaves_no_process_no_socket_and_no_lock(tmp_path: Path, number: signal.Signals) -> None:
    process, children = start_installation(tmp_path)
    assert len(children) == 3
    process.send_signal(number)
    assert process.wait(timeout=SOON_S) == 0
    process.stderr.close()
    assert not any(alive(pid) for pid in children)
    left = [path for path in tmp_path.rglob("*") if not path.is_dir() and path.parent.name != "appendonlydir"]
    assert left == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_terminal_that_closes_ends_no_installation_under_nohup(tmp_path: Path) -> None:
    process, children = start_installation(tmp_path, "nohup")
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.0)
    assert all(alive(pid) for pid in children)
    process.terminate()
    assert process.wait(timeout=SOON_S) == 0
    process.stderr.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_children_of_a_killed_supervisor_die(tmp_path: Path) -> None:
    process, children = start_installation(tmp_path)
    process.kill()
    process.wait()
    process.stderr.close()
    asyncio.run(eventually(lambda: not any(alive(pid) for pid in children)))
    with DataFolderLock(tmp_path), EmbeddedValkey(tmp_path / "valkey") as valkey:
        assert valkey.answers()


# The log.


def test_the_log_begins_anew_when_it_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "LOG_BYTES", 1000)
    with serve._Log(tmp_path / "phalar.log") as log:
        for n in range(100):
            log.write(f"api        | INFO line {n}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["phalar.log", "phalar.log.1"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2200
    assert "line 99" in (tmp_path / "phalar.log").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_on_a_full_disk_what_goes_wrong_is_on_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "phalar.log").symlink_to("/dev/full")
    with serve._Log(tmp_path / "phalar.log") as log, suppress(OSError):
        log.write("worker 0   | ERROR phalar.worker: there is no room\n")
    assert "there is no room" in capsys.readouterr().err
