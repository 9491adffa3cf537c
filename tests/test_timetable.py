"""The timetable: timers fire once, in order, on time, and cancelled ones do not pile up."""

from __future__ import annotations

import random

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from trio_repair._timetable import Timetable


async def test_timers_fire_in_order_of_time_and_then_of_making(autojump_clock):
    """Timers fire by time; those of one moment in the order in which they were made."""
    fired = []
    table = Timetable()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(table.serve)
        start = trio.current_time()
        for name, when in (("c", 2), ("a", 1), ("d", 2), ("b", 1)):
            table.at(start + when, lambda name: fired.append((name, trio.current_time() - start)), name)
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    assert [("a", 1), ("b", 1), ("c", 2), ("d", 2)] == fired
    assert 0 == len(table)


async def test_an_earlier_timer_wakes_the_sleeper(autojump_clock):
    """A timer made while the task sleeps for a later one still fires on time."""
    fired = []
    table = Timetable()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(table.serve)
        start = trio.current_time()
        table.at(start + 100, fired.append, "late")
        await trio.sleep(1)
        table.at(start + 2, fired.append, "early")
        await trio.sleep(2)
        assert ["early"] == fired
        nursery.cancel_scope.cancel()


async def test_of_several_timers_made_in_one_step_the_earliest_wakes_the_sleeper(autojump_clock):
    """However many timers are made while the task sleeps, and in whatever order, it wakes for the earliest."""
    fired = []
    table = Timetable()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(table.serve)
        start = trio.current_time()
        table.at(start + 100, fired.append, 100)
        await trio.sleep(1)
        for after in (5, 3, 4):
            table.at(start + after, fired.append, after)
        await trio.sleep(2.5)
        assert [3] == fired
        await trio.sleep(2)
        assert [3, 4, 5] == fired
        nursery.cancel_scope.cancel()


async def test_a_time_that_has_passed_fires_at_the_next_opportunity(autojump_clock):
    """A timer in the past is not lost, whether the task sleeps or has not started."""
    fired = []
    table = Timetable()
    table.at(trio.current_time() - 5, fired.append, "before the task")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(table.serve)
        await trio.testing.wait_all_tasks_blocked()
        table.at(trio.current_time() - 5, fired.append, "while it sleeps")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert ["before the task", "while it sleeps"] == fired


async def test_timers_made_and_cancelled_by_a_timer(autojump_clock):
    """A callback may make timers, due at once or later, and cancel others that are due in the same moment."""
    fired = []
    table = Timetable()
    start = trio.current_time()

    def first() -> None:
        fired.append("first")
        table.cancel(victim)
        table.at(start, fired.append, "at once")
        table.at(start + 2, fired.append, "later")

    table.at(start + 1, first)
    victim = table.at(start + 1, fired.append, "cancelled")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(table.serve)
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    assert ["first", "at once", "later"] == fired


async def test_cancelling_twice_or_too_late_does_nothing(autojump_clock):
    """Cancelling a timer that fired, or was cancelled, changes nothing, not even the estimate."""
    fired = []
    table = Timetable()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(table.serve)
        timer = table.at(trio.current_time() + 1, fired.append, "fired")
        other = table.at(trio.current_time() + 9, fired.append, "never")
        await trio.sleep(2)
        table.cancel(timer)
        assert 0 == table._cancelled_estimate
        table.cancel(other)
        table.cancel(other)
        assert 1 == table._cancelled_estimate
        await trio.sleep(20)
        assert 0 == table._cancelled_estimate
        nursery.cancel_scope.cancel()
    assert ["fired"] == fired


def test_cancelled_timers_do_not_pile_up():
    """A million made and cancelled leave the heap small; the control never cancels through the table and grows."""
    table, control = Timetable(), Timetable()
    keep = [table.at(1e9 + index, print) for index in range(100)]
    for index in range(20_000):
        table.cancel(table.at(1e6 + index, print))
        control.at(1e6 + index, print).cancel()
    assert len(table) <= 2 * len(keep) + 130
    assert 20_000 == len(control)


def test_cancelled_timers_are_dropped_once_they_are_the_greater_part():
    """More than 64 cancelled timers, and more than half of the heap: not one sooner, so that dropping stays cheap."""
    for kept in (0, 100):
        table = Timetable()
        for index in range(kept):
            table.at(1e9 + index, print)
        made = max(65, kept + 2)
        timers = [table.at(1e6 + index, print) for index in range(made)]
        for timer in timers[:-1]:
            table.cancel(timer)
        assert kept + made == len(table)
        table.cancel(timers[-1])
        assert (kept, 0) == (len(table), table._cancelled_estimate)


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=300), st.randoms(use_true_random=False))
def test_exactly_the_timers_that_were_not_cancelled_fire(plan: list[tuple[int, bool]], rng: random.Random):
    """Whatever is made and cancelled in whatever order: the rest fire, once each, in order."""
    fired: list[int] = []

    async def main() -> None:
        table = Timetable()
        timers = [(index, table.at(when, fired.append, index)) for index, (when, _cancel) in enumerate(plan)]
        doomed = [timer for index, timer in timers if plan[index][1]]
        rng.shuffle(doomed)
        for timer in doomed:
            table.cancel(timer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(table.serve)
            await trio.sleep(100)
            nursery.cancel_scope.cancel()
        assert 0 == len(table)

    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(main, clock=clock)
    expected = [index for index, (_when, cancel) in enumerate(plan) if not cancel]
    assert sorted(expected, key=lambda index: (plan[index][0], index)) == fired
