"""Slots by turns, and a budget of samples."""

import asyncio
import gc

import numpy as np
import pytest

from service.work.turns import Budget, Manifold, Turns

pytestmark = pytest.mark.anyio


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Rush:
    """Callers at some slots: who was let in, in order, and how one is let go."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.let_in: list[str] = []
        self._inside: list[tuple[str, asyncio.Event]] = []

    def come(self, who: str) -> "asyncio.Task[None]":
        return asyncio.create_task(self._come(who))

    async def _come(self, who: str) -> None:
        async with self.turns.turn(who):
            done = asyncio.Event()
            self.let_in.append(who)
            self._inside.append((who, done))
            await done.wait()

    async def one_leaves(self, who: str | None = None) -> None:
        place = next(n for n, (name, _) in enumerate(self._inside) if who in (None, name))
        self._inside.pop(place)[1].set()
        await settle()


async def test_callers_are_served_by_turns_however_many_each_sends() -> None:
    rush = Rush(Turns(1))
    tasks = [rush.come("flood") for _ in range(20)]
    await settle()
    tasks += [rush.come("a"), rush.come("b"), rush.come("a")]
    await settle()
    for _ in range(5):
        await rush.one_leaves()
    assert sorted(rush.let_in[1:4]) == ["a", "b", "flood"]
    assert sorted(rush.let_in[4:6]) == ["a", "flood"]
    for task in tasks:
        task.cancel()


async def test_nobody_holds_more_than_half_while_others_are_about() -> None:
    rush = Rush(Turns(4))
    tasks = [rush.come("alone") for _ in range(6)]
    await settle()
    assert rush.let_in == ["alone"] * 4
    tasks.append(rush.come("other"))
    await rush.one_leaves()
    assert rush.let_in[4:] == ["other"]
    await rush.one_leaves("other")
    assert rush.let_in[5:] == [], "three of four are held by one"
    for _ in range(2):
        await rush.one_leaves("alone")
    assert rush.let_in[5:] == ["alone"]
    for task in tasks:
        task.cancel()


async def test_whoever_has_most_in_line_is_turned_away() -> None:
    rush = Rush(Turns(1, waiting=3, full=lambda waiting: OverflowError(waiting)))
    flood = [rush.come("flood") for _ in range(4)]
    await settle()
    late = rush.come("other")
    await settle()
    assert isinstance(flood[3].exception(), OverflowError)
    assert not late.done()
    more = rush.come("flood")
    await settle()
    assert isinstance(more.exception(), OverflowError)
    for task in (*flood, late):
        task.cancel()


async def test_a_slot_given_back_as_the_only_one_in_a_line_is_turned_away_goes_to_the_next() -> None:
    rush = Rush(Turns(1, waiting=1, full=lambda waiting: OverflowError(waiting)))
    holds = rush.come("a")
    await settle()
    away = rush.come("b")
    await settle()
    late = rush.come("c")  # one too many: `b`, of lines equally long the first, is turned away
    await rush.one_leaves("a")  # before `b` has run
    assert holds.exception() is None
    assert isinstance(away.exception(), OverflowError)
    assert rush.let_in == ["a", "c"]
    late.cancel()


async def test_a_slot_is_free_again_however_its_turn_ends() -> None:
    rush = Rush(Turns(1))
    first, second, third = rush.come("a"), rush.come("a"), rush.come("b")
    await settle()
    second.cancel()
    first.cancel()
    await settle()
    assert rush.let_in == ["a", "b"]
    third.cancel()
    await settle()
    rush.come("c").add_done_callback(lambda task: task.exception())
    await settle()
    assert rush.let_in == ["a", "b", "c"]
    # Cancelled in the very moment in which it is given the slot.
    waiting = rush.come("d")
    await settle()
    rush._inside[-1][1].set()
    await asyncio.sleep(0)
    waiting.cancel()
    await settle()
    last = rush.come("e")
    await settle()
    assert rush.let_in[-1] == "e"
    last.cancel()


async def test_whoever_gives_up_as_the_line_overflows_makes_room_for_the_one_who_comes() -> None:
    rush = Rush(Turns(1, waiting=1, full=lambda waiting: OverflowError(waiting)))
    first, given_up = rush.come("a"), rush.come("b")
    await settle()
    late = rush.come("c")
    given_up.cancel()  # it has not run when `c` comes
    await settle()
    assert given_up.cancelled()
    assert not late.done(), "it waits, instead of the one who gave up"
    await rush.one_leaves("a")
    await rush.one_leaves("c")
    assert first.done()
    last = rush.come("d")
    await settle()
    assert rush.let_in == ["a", "c", "d"]
    last.cancel()


async def test_budget_is_given_back_when_the_waveform_is_forgotten() -> None:
    budget = Budget(100)
    waveform = np.zeros(60, np.float32)
    budget.until_forgotten(waveform, await budget.take(60))
    view = waveform[10:]
    waiting = asyncio.create_task(budget.take(50))
    small = asyncio.create_task(budget.take(10))
    await settle()
    del waveform
    await settle()
    assert not waiting.done()
    assert not small.done(), "the first in line is not passed by"
    del view
    gc.collect()
    await settle()
    assert waiting.done()
    assert small.done()


async def test_more_than_the_whole_budget_waits_for_all_of_it() -> None:
    budget = Budget(100)
    first = await budget.take(1)
    large = asyncio.create_task(budget.take(1000))
    await settle()
    assert not large.done()
    given_up = asyncio.create_task(budget.take(5))
    await settle()
    given_up.cancel()
    budget.give_back(first)
    await settle()
    budget.give_back(await large)
    assert await budget.take(100) == 100


async def test_samples_that_come_free_as_their_waiter_gives_up_go_to_the_next() -> None:
    budget = Budget(100)
    first = await budget.take(100)
    given_up, waiting = asyncio.create_task(budget.take(60)), asyncio.create_task(budget.take(100))
    await settle()
    given_up.cancel()
    budget.give_back(first)  # before `given_up` has run
    await settle()
    assert given_up.cancelled()
    assert waiting.done()
    assert await waiting == 100


async def test_whoever_will_hold_several_takes_them_at_once() -> None:
    budget = Budget(100)
    several = Manifold(budget, 3)
    taken = await several.take(30)
    assert taken == 90
    waiting = asyncio.create_task(budget.take(20))
    await settle()
    assert not waiting.done()
    waveform = np.zeros(30, np.float32)
    several.until_forgotten(waveform, taken)
    del waveform
    gc.collect()
    assert await waiting == 20
