"""The event loop's time by turns."""

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from service.api.bodies import HEADS, Body, _in_pieces
from service.api.door import Door
from service.api.pace import BUSY, FORGET_S, LATELY_S, Metered, Pace
from service.settings import Settings


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_who_took_most_of_a_busy_loop_waits_and_nobody_else() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.charge("greedy", 10 * BUSY * LATELY_S)
    assert pace.wait_s("greedy") == 0, "nobody else has come"
    pace.charge("modest", 0.01)
    wait_s = pace.wait_s("greedy")
    assert wait_s > 0
    assert pace.wait_s("modest") == pace.wait_s("new") == 0
    clock.now += wait_s
    assert pace.wait_s("greedy") == 0
    pace.charge("modest", 2 * BUSY * LATELY_S)
    assert pace.wait_s("greedy") == 0, "now it is the other's turn to wait"
    assert pace.wait_s("modest") > 0


def test_long_ago_is_forgotten() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.charge("gone", 0.01)
    clock.now += 2 * FORGET_S
    pace.charge("greedy", 10 * BUSY * LATELY_S)
    assert pace.wait_s("greedy") == 0
    clock.now += 1e6
    assert pace.wait_s("greedy") == 0
    assert pace._taken == {}


def test_turns_of_one_address_come_in_their_order() -> None:
    pace, came = Pace(), []
    pace.charge("modest", 0.01)
    pace.charge("greedy", 1.5 * BUSY * LATELY_S)

    async def come(number: int) -> None:
        await pace.turn("greedy")
        came.append(number)

    async def all_come() -> None:
        await asyncio.gather(*map(come, range(5)))

    asyncio.run(all_come())
    assert came == [0, 1, 2, 3, 4]


def test_a_flood_of_requests_does_not_keep_the_loop_from_another_address(tmp_path: Path) -> None:
    """Without turns, all that flood have a step for each step of the honest one."""
    done: Counter[str] = Counter()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(4):
            time.sleep(0.001)  # noqa: ASYNC251 - what keeps the loop
            await asyncio.sleep(0)
        done[scope["client"][0]] += 1

    async def request(door: Door, address: str) -> None:
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")]}
        await door(scope | {"client": (address, 1)}, receive, send)

    async def receive() -> Message:
        return {}

    async def send(message: Message) -> None:
        raise NotImplementedError  # the application says nothing

    async def meet() -> None:
        door = Door(app, Settings(data=tmp_path))

        async def flood() -> None:
            while done["127.0.0.1"] < 20:
                await request(door, "127.0.0.2")

        floods = [asyncio.create_task(flood()) for _ in range(40)]
        while done["127.0.0.1"] < 20:
            await request(door, "127.0.0.1")
        await asyncio.gather(*floods)

    asyncio.run(meet())
    assert done["127.0.0.2"] < 8 * 40


def test_metered_work_goes_on_as_it_would_and_tells_its_steps() -> None:
    steps: list[float] = []

    async def sleep(error: type[BaseException] | None = None) -> None:
        await asyncio.sleep(0)
        if error is not None:
            raise error

    async def metered(work: Coroutine[Any, Any, None]) -> None:
        await Metered(work, steps.append)

    asyncio.run(metered(sleep()))
    assert len(steps) == 2
    with pytest.raises(NotImplementedError):
        asyncio.run(metered(sleep(NotImplementedError)))
    assert len(steps) == 4

    async def cancelled() -> bool:
        waiting = asyncio.create_task(metered(asyncio.sleep(3600)))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        return waiting.cancelled()

    assert asyncio.run(cancelled())


@pytest.mark.parametrize("more", [True, False])
def test_a_body_of_many_heads_comes_in_pieces(more: bool) -> None:
    body = b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n" * 1000
    pieces = _in_pieces({"type": "http.request", "body": body, "more_body": more})
    assert b"".join(piece["body"] for piece in pieces) == body
    assert max(piece["body"].count(b"\r\n\r\n") for piece in pieces) <= HEADS
    assert [piece["more_body"] for piece in pieces] == [True] * (len(pieces) - 1) + [more]
    audio = {"type": "http.request", "body": bytes(2**16), "more_body": more}
    assert _in_pieces(audio) == [audio]


def test_before_each_piece_of_a_body_its_turn_is_waited_for_and_others_have_the_loop() -> None:
    asked = others = 0

    async def turn() -> None:
        nonlocal asked
        asked += 1

    async def receive() -> Message:
        return {"type": "http.request", "body": b"\r\n\r\n" * 10 * HEADS, "more_body": False}

    async def work() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    async def read() -> int:
        working = asyncio.create_task(work())
        body = Body(receive, Headers({"content-type": "multipart/form-data"}), 2**20, turn)
        pieces = 1
        while (await body())["more_body"]:
            pieces += 1
        working.cancel()
        return pieces

    assert asyncio.run(read()) == asked == 11
    assert others >= 10
