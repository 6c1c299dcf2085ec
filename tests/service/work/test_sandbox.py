"""A decoder that was taken over reaches nothing: no network, no file, no other process."""

import asyncio
import json
import logging
import struct
import sys
from pathlib import Path

import pytest

from model.audio import DecodeFailed
from service.work import uploads
from service.work.sandbox import _ARCHITECTURES, _program
from service.work.uploads import Decoder
from tests.service.work.test_uploads import GOOD, LIMITS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has the filter")

UNFILTERED = "from service.work import decoding, sandbox; sandbox._ARCHITECTURES.clear(); decoding.serve_children()"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(b"every stem")
    path.chmod(0o600)
    return path


async def attacked(folder: Path) -> dict[str, str]:
    """What came of each attempt of a child that somebody else has taken over: `done`, or the error's name."""
    async with Decoder(LIMITS) as decoder:
        if decoder.confinement != "filtered":
            pytest.skip("this kernel lets no process filter its system calls")
        with pytest.raises(DecodeFailed) as caught:
            await decoder.decode(str(folder).encode())
    found: dict[str, str] = json.loads(caught.value.reason)
    return found


def test_decoder_that_was_taken_over_is_refused_everything(monkeypatch: pytest.MonkeyPatch, database: Path) -> None:
    monkeypatch.setattr(uploads, "_SERVER", "from tests.service.work.taken_over import serve; serve()")
    found = asyncio.run(attacked(database.parent))
    assert len(found) > 20
    assert set(found.values()) == {"EPERM"}, found
    assert database.read_bytes() == b"every stem"
    assert database.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in database.parent.iterdir()] == ["catalog.sqlite"]


@pytest.mark.anyio
async def test_system_without_a_filter_decodes_under_limits_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(uploads, "_SERVER", UNFILTERED)
    with caplog.at_level(logging.WARNING, "phalar.uploads"):
        async with Decoder(LIMITS) as decoder:
            assert decoder.confinement == "limits-only"
            for _ in range(2):
                assert (await decoder.decode(GOOD)).duration_s == 2.0
    assert [record.message for record in caplog.records if "no system call filter" in record.message] == [
        caplog.records[0].message
    ]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("foreign", [False, True])
def test_filter_allows_its_list_and_nothing_else(machine: str, foreign: bool) -> None:
    architecture = _ARCHITECTURES[machine]
    program = _program(architecture)
    audit = architecture.audit ^ 1 if foreign else architecture.audit
    allowed = {number for number in range(512) if run_filter(program, audit, number) == 0x7FFF0000}
    assert allowed == (set() if foreign else set(architecture.allowed.values()))
    x32 = 0x40000000
    assert run_filter(program, audit, x32 + architecture.allowed["read"]) == 0x00050001


def run_filter(program: bytes, audit: int, number: int) -> int:
    """What the kernel would answer: the four instructions that the filter is made of."""
    steps = list(struct.iter_unpack("HBBI", program))
    loaded, at = 0, 0
    while True:
        code, if_true, if_false, value = steps[at]
        at += 1
        if code == 0x20:
            loaded = {0: number, 4: audit}[value]
        elif code == 0x15:
            at += if_true if loaded == value else if_false
        else:
            return int(value)
