"""Repairs are stepped by whoever brings the last answer, and woken when they are over or cancelled."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import trio
import trio.testing
from engine_world import answered, stepped

from trio_repair._stepping import Gather, Steps, Unwinding


async def test_each_step_is_taken_with_the_last_answer(autojump_clock):
    """The coroutine goes on in the very call that answers, through any number of gathers; its task sleeps through it."""
    log: list[str] = []
    gathers = [Gather(2), Gather(1), Gather(0)]

    async def repair() -> str:
        for number, gather in enumerate(gathers):
            await gather
            log.append(f"gathered {number}")
        return "done"

    async def run() -> None:
        log.append(await stepped(repair()).run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        gathers[0].one_answered()
        assert [] == log
        gathers[0].one_answered()
        assert ["gathered 0"] == log
        gathers[1].one_answered()
        assert ["gathered 0", "gathered 1", "gathered 2"] == log
    assert "done" == log[-1]


async def test_what_was_answered_before_is_not_waited_for(autojump_clock):
    """Answers that come while the requests are made make the gather complete before anybody waits for it."""
    gather = Gather(1)
    gather.one_answered()
    before = trio.current_time()
    await answered(gather)
    assert before == trio.current_time()


async def test_errors_come_out_of_the_task(autojump_clock):
    """What the coroutine raises is raised in its own task, not in the call that brought the answer."""
    gather = Gather(1)

    async def repair() -> None:
        await gather
        raise KeyError("mine")

    caught: list[str] = []

    async def run() -> None:
        with pytest.raises(KeyError, match="mine"):
            await stepped(repair()).run()
        caught.append("KeyError")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        gather.one_answered()
        assert [] == caught
    assert ["KeyError"] == caught


async def test_cancelled_where_it_waits(autojump_clock):
    """The coroutine is closed at the wait and may clean up, nothing is raised, and a later answer finds nobody."""
    gather, log = Gather(1), []

    async def repair() -> str:
        try:
            await gather
        finally:
            log.append("withdrawn")
        return "gathered"

    with trio.move_on_after(1.0) as scope:
        assert await stepped(repair()).run() is None
    assert (True, False) == (scope.cancel_called, scope.cancelled_caught)
    assert ["withdrawn"] == log
    gather.one_answered()
    assert (["withdrawn"], 1.0) == (log, trio.current_time())


async def test_answered_in_the_moment_of_a_cancellation(autojump_clock):
    """The cancellation was first: the answer comes too late for this wait, and does no harm."""
    gather = Gather(1)
    ended: list[type[BaseException]] = []

    async def repair() -> None:
        try:
            await gather
        except BaseException as error:
            ended.append(type(error))
            raise

    async def run(scope: trio.CancelScope) -> None:
        with scope:
            await stepped(repair()).run()

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, scope)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        gather.one_answered()
    assert [GeneratorExit] == ended


async def test_cancelled_before_the_first_step(autojump_clock):
    """Nothing of it runs."""
    log: list[str] = []

    async def repair() -> None:
        log.append("ran")

    with trio.move_on_after(0) as scope:
        await stepped(repair()).run()
    assert scope.cancelled_caught
    assert [] == log


async def test_it_must_not_wait_again_after_a_cancellation(autojump_clock):
    """A coroutine that gathers more when it is closed is told so, and does not hang."""
    first, second = Gather(1), Gather(1)

    async def repair() -> None:
        try:
            await first
        finally:
            await second

    with trio.move_on_after(1.0), pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        await stepped(repair()).run()


async def test_nothing_is_kept_of_a_repair_that_is_over(autojump_clock):
    """No cycle through a traceback keeps what the coroutine held until the garbage collector comes."""

    class Held:
        pass

    gather = Gather(1)

    async def repair(held: Any) -> None:
        await gather
        raise KeyError(held is None)

    async def run() -> weakref.ref[Held]:
        held = Held()
        ref = weakref.ref(held)
        steps = stepped(repair(held))
        del held
        trio.lowlevel.spawn_system_task(_answer_soon, gather)
        with pytest.raises(KeyError) as caught:
            await steps.run()
        del caught
        return ref

    gc.disable()
    try:
        ref = await run()
        await trio.lowlevel.checkpoint()
        assert ref() is None
    finally:
        gc.enable()


async def _answer_soon(gather: Gather) -> None:
    await trio.testing.wait_all_tasks_blocked()
    gather.one_answered()


@pytest.mark.parametrize("over", [True, False])
async def test_cancelled_from_within_a_step(autojump_clock, over: bool):
    """Whoever is told of a step may cancel the repair: it is woken once, and closed where it waits next."""
    first, second = Gather(1), Gather(1)
    scope = trio.CancelScope()
    ended: list[str | None] = []

    async def repair() -> str:
        await first
        scope.cancel()
        if over:
            return "over"
        try:
            await second
        except GeneratorExit:
            ended.append("cancelled")
            raise
        return "gathered"

    async def run() -> None:
        with scope:
            ended.append(await stepped(repair()).run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        first.one_answered()
        # Too late for a step: the cancellation was first.
        second.one_answered()
    assert (["over"] if over else ["cancelled", None]) == ended


async def test_a_cancellation_of_what_is_around_goes_on(autojump_clock):
    """Cut off by a scope around its own, it is closed as well, and the next checkpoint there is cancelled."""
    log: list[str] = []

    async def repair() -> None:
        await Gather(1)

    with trio.move_on_after(1.0) as around:
        with trio.CancelScope() as own:
            assert await stepped(repair()).run() is None
        log.append("own")
        await trio.lowlevel.checkpoint()
        log.append("not cancelled")
    assert (["own"], False, True) == (log, own.cancel_called, around.cancelled_caught)


async def test_told_in_the_step_that_cancels_it(autojump_clock):
    """Whoever cancels it finds it closed, and what becomes of that told, before its own task has run again. Once."""
    around, scope = trio.CancelScope(), trio.CancelScope()
    log: list[str] = []

    async def repair() -> None:
        try:
            await Gather(1)
        finally:
            log.append("closed")

    def cut_off() -> bool:
        log.append("told")
        around.cancel()  # while the first cancellation is being delivered
        return True

    async def run() -> None:
        with around, scope:
            assert await stepped(repair(), cut_off).run() is None
        log.append("unwound")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        assert ["closed", "told"] == log
    assert ["closed", "told", "unwound"] == log


@pytest.mark.parametrize("settled", [True, False])
async def test_who_waits_is_woken_before_what_only_unwinds(autojump_clock, settled: bool):
    """Of many that are cut off at once, what was told is heard before all but one of their tasks have run again.

    Where it was not told, each task has to run first: the control.
    """
    heard = trio.Event()
    log: list[str] = []
    unwinding = Unwinding()

    async def repair() -> None:
        await Gather(1)

    def cut_off() -> bool:
        if settled:
            heard.set()
        return settled

    async def run() -> None:
        with trio.move_on_at(1.0):
            await Steps(repair(), cut_off, unwinding).run()
        log.append("unwound")
        heard.set()

    async def hear() -> None:
        await heard.wait()
        log.append("heard")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear)
        for _ in range(10):
            nursery.start_soon(run)
    assert 11 == len(log)
    assert (log.index("heard") <= 1) == settled


async def test_what_telling_raises_comes_out_of_the_task(autojump_clock):
    """Not out of the scheduler, which would end the whole program."""

    async def repair() -> None:
        await Gather(1)

    def cut_off() -> bool:
        raise KeyError("mine")

    with trio.move_on_after(1.0), pytest.raises(KeyError, match="mine"):
        await stepped(repair(), cut_off).run()


async def test_those_that_unwind_wait_for_the_first_of_them_alone(autojump_clock):
    """One flock after the other, each is woken, and none twice."""
    unwinding, ended = Unwinding(), []

    async def repair() -> None:
        await Gather(1)

    async def run(deadline: float) -> None:
        with trio.move_on_at(deadline):
            await Steps(repair(), lambda: True, unwinding).run()
        ended.append(deadline)

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(run, 1.0 + number // 4)
    assert [1.0] * 4 + [2.0] * 4 + [3.0] * 4 == ended
