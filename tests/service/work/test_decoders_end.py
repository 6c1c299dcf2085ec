"""How a decoder's processes end: what dies with what, and whose fault it is."""

import asyncio
import io
import os
import resource
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
import soundfile

from model.audio import SilentClip
from service.work import uploads
from service.work.answers import FittedAudio
from service.work.decoding import DecodeLimits, DecoderCrashed
from service.work.encoding import Order
from service.work.uploads import Decoder
from tests.service.work.test_uploads import (
    GONE_S,
    GOOD,
    LIMITS,
    SLOW_LIMITS,
    busy_child,
    children,
    nice,
    proc,
    servers,
    until,
)

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="looks for processes under /proc")]


def gone(process: int) -> bool:
    return not Path(f"/proc/{process}").exists()


async def test_crash_of_one_child_leaves_its_neighbour_alone(hour_of_silence: Path) -> None:
    async with Decoder(SLOW_LIMITS) as decoder, busy_child(decoder, hour_of_silence) as (victim, crashing):
        neighbour = asyncio.create_task(decoder.decode(GOOD))
        os.kill(victim, signal.SIGSEGV)
        with pytest.raises(DecoderCrashed):
            await crashing
        assert (await neighbour).duration_s == 2.0


@pytest.mark.parametrize("victim", ["child", "server"])
async def test_a_file_is_not_blamed_for_a_decoder_that_the_system_killed(hour_of_silence: Path, victim: str) -> None:
    async with Decoder(SLOW_LIMITS) as decoder:
        (server,) = servers()
        begun = [asyncio.create_task(decoder.decode(hour_of_silence)) for _ in range(2)]
        await until(lambda: len(children(server)) == 2)
        os.kill(server if victim == "server" else children(server)[0], signal.SIGKILL)
        for task in begun:
            with pytest.raises(SilentClip):
                await task
        (now,) = servers()
        assert (now == server) == (victim == "child")
        os.kill(now, signal.SIGKILL)  # the news of its death may come behind the next request
        assert (await decoder.decode(GOOD)).duration_s == 2.0


@pytest.mark.parametrize("times", [1, 2])
async def test_a_fitted_file_whose_decoder_was_killed_is_begun_anew_once(
    monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    receive, killed, into = uploads.receive_file, list[int](), io.BytesIO()

    async def kill_in_the_middle(sock: socket.socket, limits: DecodeLimits, into: BinaryIO) -> FittedAudio:
        if len(killed) == times:
            return await receive(sock, limits, into)
        into.write(bytes(10**7))  # what came until then
        killed.append(*servers())
        os.kill(killed[-1], signal.SIGKILL)
        with suppress(ConnectionResetError):  # where it ended before it read what was asked
            while await asyncio.get_running_loop().sock_recv(sock, 2**20):
                continue
        raise EOFError

    monkeypatch.setattr(uploads, "receive_file", kill_in_the_middle)
    async with Decoder(LIMITS) as decoder:
        if times == 2:
            with pytest.raises(DecoderCrashed, match="its server ended"):
                await decoder.fit(GOOD, Order(), into)
        else:
            assert (await decoder.fit(GOOD, Order(), into)).frames == 2 * 44_100
            assert len(into.getvalue()) < 10**6
            assert soundfile.info(io.BytesIO(into.getvalue())).duration == 2.0


async def test_cancelled_decode_leaves_no_child_and_frees_its_place(hour_of_silence: Path) -> None:
    async with Decoder(replace(SLOW_LIMITS, processes=1)) as decoder:
        (server,) = servers()
        for _ in range(3):
            async with busy_child(decoder, hour_of_silence) as (_, task):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await until(lambda: not children(server))
        assert (await decoder.decode(GOOD)).duration_s == 2.0


async def test_closed_decoder_leaves_no_process_and_no_descriptor(hour_of_silence: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    decoder = Decoder(SLOW_LIMITS)
    async with decoder:
        (server,) = servers()
        task = asyncio.create_task(decoder.decode(hour_of_silence))
        await until(lambda: children(server))
        (child,) = children(server)
    with pytest.raises(DecoderCrashed):
        await task
    assert not servers()
    assert gone(server)
    await until(lambda: gone(child))
    assert sorted(os.listdir("/proc/self/fd")) == before
    with pytest.raises(RuntimeError, match="closed"):
        await decoder.decode(GOOD)


async def test_children_die_with_the_process_that_asked(hour_of_silence: Path) -> None:
    program = f"""
import asyncio
from pathlib import Path
from service.work.decoding import DecodeLimits
from service.work.uploads import Decoder

async def main():
    async with Decoder({SLOW_LIMITS!r}) as decoder:
        await decoder.decode(Path({str(hour_of_silence)!r}), nice=3)

asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", program])  # noqa: ASYNC220
    try:
        # A server's first child only finds out how the others will be held.
        await until(
            lambda: [child for server in children(parent.pid) for child in children(server) if nice(child) == 3],
            within_s=10 * GONE_S,  # it has to start first
        )
        (server,) = children(parent.pid)
        (child,) = children(server)
    finally:
        parent.kill()
        parent.wait()
    await until(lambda: gone(server))
    await until(lambda: gone(child))


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone sees what a decoder holds")
async def test_a_child_holds_its_file_and_its_answer_however_many_files_are_open(hour_of_silence: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(1200, soft), hard))
    opened = [os.dup(1) for _ in range(1100)]
    try:
        async with Decoder(SLOW_LIMITS) as decoder, busy_child(decoder, hour_of_silence) as (child, _):
            await until(lambda: "Max open files            0" in proc(child, "limits"))
            assert len(os.listdir(f"/proc/{child}/fd")) == 5
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
