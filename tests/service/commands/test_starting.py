"""`phalar serve` as it starts: what it refuses, in one line, and what a start and its end leave behind."""

import os
import re
import socket
import sys
from pathlib import Path

import httpx
import pytest

from service.local.valkey import EmbeddedValkey
from service.settings import Settings
from tests import servers
from tests.command import files_guarded, phalar, phalar_alone
from tests.installation import START_S, Installation, encode, eventually, free_port, noise_bursts, serving


def test_a_second_start_on_the_same_folder_or_port_is_refused(installation: Installation, tmp_path: Path) -> None:
    again = phalar_alone("serve", "--data", installation.folder / "data", "--port", str(free_port()))
    assert again.returncode == 1
    assert "in use" in again.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = phalar_alone("serve", "--data", tmp_path / "data", "--port", str(port))
    assert refused.returncode == 1
    assert f"port {port}" in refused.stderr
    open_to_all = phalar_alone("serve", "--data", tmp_path / "data", "--host", "0.0.0.0", "--port", str(free_port()))
    assert open_to_all.returncode == 1
    assert "API keys" in open_to_all.stderr


def test_of_two_starts_on_one_port_at_once_one_is_refused(tmp_path: Path, small_checkpoint: Path) -> None:
    port, environment = free_port(), {"PHALAR_CHECKPOINT": str(small_checkpoint)}
    both = [Installation(tmp_path / name, environment, port=port).start(wait=False) for name in "ab"]
    try:
        refused = eventually(lambda: next((one for one in both if one.ended is not None), None))
        assert refused.ended == 1
        assert f"port {port} on 127.0.0.1 is in use" in refused.log
        assert "is ready" not in refused.log
        assert [one.ended for one in both if one is not refused] == [None]
    finally:
        for one in both:
            if one.ended is None:
                one.stop()


@pytest.mark.parametrize("folder", ["file", "file/below", "circle", "/proc/phalar", "x" * 300])
def test_a_data_folder_that_cannot_be_one_is_named_in_one_line(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for command in (("serve", "--port", str(free_port())), ("keys", "list"), ("api",)):
        said = phalar(*command, PHALAR_DATA=str(tmp_path / folder))
        assert said.exit_code == 1, said.stderr
        assert said.stderr.startswith("phalar: ")
        assert said.stderr.count("\n") == 1
        assert folder.split("/")[0] in said.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="root's rights are Linux capabilities here")
def test_a_data_folder_that_may_not_be_written_is_named_in_one_line(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("read-only", "below a read-only one/data", "another user's", "was in use")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert phalar("keys", "list", PHALAR_DATA=str(folders[3])).exit_code == 0  # makes a catalog
    folders[1].rmdir()
    for guarded in (folders[0], folders[1].parent, folders[3]):
        guarded.chmod(0o500)
    if os.geteuid() == 0:
        os.chown(folders[2], 65534, 65534)
    else:
        folders[2] = Path("/phalar")
    for folder in folders:
        for command in (("serve", "--port", str(free_port())), ("keys", "list"), ("api",)):
            with files_guarded():
                said = phalar(*command, PHALAR_DATA=str(folder))
            assert said.exit_code == 1, (command, folder, said.stderr)
            assert said.stderr.startswith("phalar: "), (command, folder, said.stderr)
            assert said.stderr.count("\n") == 1, (command, folder, said.stderr)
            assert tmp_path.name in said.stderr or str(folders[2]) in said.stderr, said.stderr


def test_a_data_folder_may_have_any_name_and_no_parent(tmp_path: Path, small_checkpoint: Path) -> None:
    data = tmp_path / "not there" / "odd ?#%41&;=@:\u00e9"
    with EmbeddedValkey(data / "valkey") as valkey:
        chosen = Settings(data=data, redis_url=valkey.url, checkpoint=small_checkpoint)
        assert Settings(data=data).resolved_redis_url == valkey.url
        with serving(chosen) as url, httpx.Client(base_url=url) as client:
            sent = client.post("/stems", files={"files": ("a.flac", encode(noise_bursts(0, 2.0)))}).json()
            assert client.get(f"/stems/{sent['items'][0]['stem_id']}/audio").status_code == 200
    assert {"audio", "catalog.sqlite", "valkey"} <= {path.name for path in data.iterdir()}


def test_the_first_screen_is_short_and_ctrl_c_leaves_no_process_no_lock_and_no_socket(
    tmp_path: Path, small_checkpoint: Path
) -> None:
    running = Installation(tmp_path, {"PHALAR_CHECKPOINT": str(small_checkpoint)}, port=0, options=()).start(wait=False)
    eventually(lambda: "Ctrl-C ends it." in running.log, START_S)
    url = re.search(r"^Phalar Retrieval is ready: (.*)$", running.log, re.MULTILINE)
    assert url is not None
    assert httpx.get(f"{url[1]}/readyz").status_code == 200, "of port 0, it says which one was free"
    assert "INFO" not in running.log  # of any library: that is for the log
    assert "INFO" in (tmp_path / "data" / "phalar.log").read_text()
    pids = running.pids()
    assert set(pids) == {"api", "worker"} if servers.wanted() else {"api", "worker", "valkey"}
    environments = {name: Path(f"/proc/{pid}/environ").read_text().split("\0") for name, pid in pids.items()}
    gives_back = "MALLOC_MMAP_THRESHOLD_=8388608"
    assert [name for name, environment in environments.items() if gives_back in environment] == ["api"]
    assert running.stop() == 0
    assert [name for name, pid in pids.items() if Path(f"/proc/{pid}").exists()] == []
    left = {path.name for path in (tmp_path / "data").iterdir()}
    embedded = set() if servers.wanted() else {"catalog.sqlite", "valkey"}
    assert left == {"audio", "checkpoints", "index", "phalar.log"} | embedded
    assert not (tmp_path / "data" / "valkey" / "valkey.sock").exists()


def test_the_catalog_that_keys_are_made_in_is_its_users_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o755)  # as an earlier release left it
    assert phalar_alone("keys", "list", PHALAR_DATA=str(tmp_path / "data")).returncode == 0
    for path in (tmp_path / "data", tmp_path / "data" / "catalog.sqlite"):
        assert not path.stat().st_mode & 0o077, path
