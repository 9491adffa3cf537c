"""`TrioStateMachine`: steps run inside one Trio run for each example, and whatever fails, fails the example."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import hypothesis.stateful
import hypothesis.strategies as st
import pytest
import trio
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis.errors import InvalidDefinition
from hypothesis.stateful import Bundle, run_state_machine_as_test

from trio_repair.testing.stateful import StepTimeout, TrioStateMachine, initialize, invariant, precondition, rule


def run(machine: type[TrioStateMachine], examples: int = 20, steps: int = 6) -> None:
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=True,
        # Explaining a failure traces every line.
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=chosen)


def notes(error: BaseException) -> str:
    return "\n".join(error.__notes__)


class Counting(TrioStateMachine):
    """Counts in a background task."""

    numbers = Bundle("numbers")

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.counted = 0
        self.checked = 0

    @initialize()
    async def begin(self) -> None:
        self.send, receive = trio.open_memory_channel[int](10)
        self.nursery.start_soon(self.count, receive)

    async def count(self, receive: trio.MemoryReceiveChannel[int]) -> None:
        async for number in receive:
            await trio.sleep(number)
            self.counted += 1

    @rule(target=numbers, number=st.integers(0, 100))
    async def ask(self, number: int) -> int:
        await self.send.send(number)
        self.asked += 1
        return number

    async def is_behind(self) -> bool:
        await trio.lowlevel.checkpoint()
        return self.counted < self.asked

    @precondition(is_behind)
    @rule(data=st.data(), number=numbers)
    async def wait(self, data: st.DataObject, number: int) -> None:
        assert self.counted < self.asked
        await trio.sleep(number * data.draw(st.integers(0, 3)))

    @rule()
    def synchronous(self) -> None:
        assert trio.current_time() >= 0

    @invariant()
    async def never_ahead(self) -> None:
        await trio.lowlevel.checkpoint()
        self.checked += 1
        assert self.counted <= self.asked

    async def at_end(self) -> None:
        await trio.sleep(10_000)
        assert self.asked == self.counted


TestCounting = Counting.TestCase
TestCounting.settings = settings(max_examples=30, stateful_step_count=10, deadline=None)


def test_async_steps_see_everything_hypothesis_offers() -> None:
    """Bundles, targets, data, assume, async preconditions and invariants all work, in virtual time."""
    seen: set[str] = set()

    class Watched(Counting):
        @rule(number=Counting.numbers)
        async def look(self, number: int) -> None:
            assume(number > 3)
            seen.add("bundle and assume")

        async def at_end(self) -> None:
            if self.checked:
                seen.add("invariant")
            if trio.current_time() > 0 and self.counted:
                seen.add("background")
            await super().at_end()
            seen.add("end")

    run(Watched, 40, 10)
    assert {"bundle and assume", "invariant", "background", "end"} == seen


def test_interleavings_are_drawn() -> None:
    """Tasks that start together run in different orders in different examples."""
    orders: set[tuple[int, ...]] = set()

    class Racing(TrioStateMachine):
        @rule()
        async def race(self) -> None:
            log: list[int] = []

            async def note(number: int) -> None:
                log.append(number)

            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(note, number)
            orders.add(tuple(log))

    run(Racing)
    assert len(orders) > 5


def test_a_failing_step_is_shrunk() -> None:
    """The shortest program is found and printed."""

    class Failing(Counting):
        @rule()
        async def fail(self) -> None:
            await trio.lowlevel.checkpoint()
            assert self.asked < 2, "asked twice"

    with pytest.raises(AssertionError, match="asked twice") as caught:
        run(Failing, 100, 10)
    assert notes(caught.value).count("state.ask(") == 2
    assert notes(caught.value).count("state.fail()") == 1


def test_a_crash_in_the_background_fails_the_example() -> None:
    """A task that fails between two steps, or during one, is found by the next one, as itself, and shrunk."""

    class Crashing(Counting):
        @rule()
        def start(self) -> None:
            self.nursery.start_soon(self.crash)

        async def crash(self) -> None:
            await trio.sleep(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        run(Crashing)
    assert notes(caught.value).count("state.start()") == 1


@pytest.mark.parametrize("where", ["at_end", "close"])
def test_a_failure_at_the_end_fails_the_example(where: str) -> None:
    """What `at_end` finds, and what raises while the stack closes, is a failure like any other."""

    class Ending(TrioStateMachine):
        @initialize()
        async def begin(self) -> None:
            await self.stack.enter_async_context(self.resource())

        @asynccontextmanager
        async def resource(self) -> AsyncGenerator[None, None]:
            yield
            if where == "close":
                raise ZeroDivisionError

        @rule()
        def step(self) -> None:
            return

        async def at_end(self) -> None:
            if where == "at_end":
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(Ending)


def test_a_step_that_waits_for_nobody_fails() -> None:
    """A deadlock is a failure, not a hung test."""

    class Waiting(TrioStateMachine):
        @rule()
        async def wait(self) -> None:
            await trio.sleep_forever()

    with pytest.raises(StepTimeout, match="did not end"):
        run(Waiting)


class Impatient(TrioStateMachine):
    """Gives everything a moment of real time."""

    real_timeout = 0.1


async def sleep_shielded() -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


def test_a_shielded_step_fails() -> None:
    """A step that cannot be cancelled is ended all the same, and so is what it has started."""

    class Shielded(Impatient):
        @rule()
        async def wait(self) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sleep_shielded)
                await sleep_shielded()

    with pytest.raises(StepTimeout, match="of real time, and was ended"):
        run(Shielded, 2)
    assert trio.run(trio.sleep, 0) is None


def test_a_step_that_keeps_the_clock_from_going_on_fails() -> None:
    """In virtual time no deadline comes as long as somebody can go on: real time is what ends it."""

    class Spinning(Impatient):
        @rule()
        async def spin(self) -> None:
            while True:
                await trio.lowlevel.checkpoint()

    with pytest.raises(StepTimeout, match=r"a step did not end within .* of real time, and was ended"):
        run(Spinning, 2)


@pytest.mark.parametrize("where", ["nursery", "stack"])
def test_a_shielded_end_fails(where: str) -> None:
    """A task in the background, or a resource, that cannot be cancelled does not outlive its example unseen."""

    class Lingering(Impatient):
        @initialize()
        async def begin(self) -> None:
            if where == "nursery":
                self.nursery.start_soon(sleep_shielded)
            else:
                self.stack.push_async_callback(sleep_shielded)

        @rule()
        def step(self) -> None:
            return

    with pytest.raises(StepTimeout, match=r"end of an example did not end within .* of real time"):
        run(Lingering, 2)
    assert trio.run(trio.sleep, 0) is None


def test_a_shielded_task_does_not_hide_a_failure() -> None:
    """What a step found is what is told, even if the example cannot end by itself afterwards."""

    class Failing(Impatient):
        @rule()
        def fail(self) -> None:
            self.nursery.start_soon(sleep_shielded)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(Failing, 2)


def test_a_task_that_catches_cancelled_does_not_hang_the_test() -> None:
    """It cannot be ended, and that is said. (In a thread of its own: Trio runs in it no more.)"""
    released: list[bool] = []
    told: list[BaseException] = []

    class Deaf(Impatient):
        @rule()
        async def wait(self) -> None:
            while not released:
                with contextlib.suppress(trio.Cancelled):
                    await trio.sleep_forever()

    def once() -> None:
        machine = Deaf()
        try:
            machine.wait()
        except StepTimeout as error:
            told.append(error)
        # For the sake of the tests that follow: nothing of it is left.
        released.append(True)
        machine.teardown()

    thread = threading.Thread(target=once)
    thread.start()
    thread.join()
    assert "cannot be ended" in str(told[0])


def test_nothing_leaks_between_examples() -> None:
    """Every example closes what it opened and ends its tasks, the failing ones too, before the next one begins."""
    open_now: list[int] = []
    most: list[int] = []
    cancelled: list[bool] = []

    class Opening(TrioStateMachine):
        @initialize()
        async def begin(self) -> None:
            await self.stack.enter_async_context(self.resource())
            self.nursery.start_soon(self.task)

        @asynccontextmanager
        async def resource(self) -> AsyncGenerator[None, None]:
            open_now.append(1)
            most.append(len(open_now))
            try:
                yield
            finally:
                open_now.pop()

        async def task(self) -> None:
            open_now.append(1)
            most.append(len(open_now))
            try:
                await trio.sleep_forever()
            finally:
                open_now.pop()
                cancelled.append(True)

        @rule(number=st.integers(0, 9))
        def step(self, number: int) -> None:
            assert number < 9

    with pytest.raises(AssertionError):
        run(Opening)
    assert open_now == []
    assert max(most) == 2
    assert cancelled


def test_steps_call_each_other() -> None:
    """Within a step, another one is a function like any other: awaited if it is async."""

    class Calling(Counting):
        @rule()
        async def ask_twice(self) -> None:
            before = self.asked
            await self.ask(1)
            await self.ask(2)
            self.synchronous()
            assert self.asked == before + 2

    run(Calling)


def test_real_clock_and_threads() -> None:
    """With the real clock, steps wait for threads; all of them run in the thread of the test."""
    threads: set[int] = set()

    class Real(TrioStateMachine):
        def clock(self) -> None:
            return None

        @rule(number=st.integers())
        async def work(self, number: int) -> None:
            threads.add(threading.get_ident())
            assert await trio.to_thread.run_sync(lambda: number) == number
            await trio.sleep(0.001)

    run(Real, 5)
    assert {threading.get_ident()} == threads


def test_hypothesis_own_decorators_are_refused_for_async_steps() -> None:
    """An async step that Hypothesis would call and never await is an error, not a test that proves nothing."""

    class Wrong(TrioStateMachine):
        @hypothesis.stateful.rule()
        async def step(self) -> None:
            raise AssertionError

    with pytest.raises(InvalidDefinition, match="trio_repair"):
        run(Wrong)
