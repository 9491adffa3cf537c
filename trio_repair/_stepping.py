"""Running a repair outside the scheduler: each step is taken in the task of whoever brought the last answer.

A repair waits some ten times, and always for answers of batchers. Would its task be scheduled for each of them, that
would cost more than everything that the repair does in between. So the task of a repair sleeps under its cancel scope,
and is woken when the repair is over, or cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

import trio

T = TypeVar("T")


class Withdrawable(Protocol):
    """What is asked of a store."""

    def withdraw(self) -> None:
        """Nobody waits for it any more."""
        ...


_NONE: Final[Mapping[str, Withdrawable]] = {}


class Gather:
    """Waits until a number of requests are answered. One coroutine that is run by `Steps` may await it, once.

    **If cancelled:** those of `requests` that are not under way are taken back.
    """

    __slots__ = ("_missing", "requests", "waiter")

    def __init__(self, missing: int) -> None:
        self._missing = missing
        self.waiter: Steps[Any] | None = None
        """Whose next step is to be taken when all is answered; None: nobody's."""
        self.requests: Mapping[str, Withdrawable] = _NONE

    def one_answered(self) -> None:
        """Called once for each request. The last one takes the next step of whoever waits."""
        self._missing -= 1
        if self._missing == 0 and self.waiter is not None:
            waiter, self.waiter = self.waiter, None
            waiter.step()

    def __await__(self) -> Generator[Gather, None, None]:
        try:
            if self._missing > 0:
                yield self
        except BaseException:
            for request in self.requests.values():
                request.withdraw()
            raise
        finally:
            # They hold this gather: what a repair has done with is freed at once, and not by the garbage collector.
            self.requests = _NONE


class Unwinding:
    """Tasks that have nothing left to do but end. Who waits for what has ended already is woken before them.

    Invariant: the first one of them is awake, and wakes the others when it runs.
    """

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: list[trio.lowlevel.Task] = []

    def add(self, task: trio.lowlevel.Task) -> None:
        """It sleeps, and nothing else wakes it."""
        self._tasks.append(task)
        if len(self._tasks) == 1:
            trio.lowlevel.reschedule(task)

    def go_on(self) -> None:
        """One of them runs."""
        tasks, self._tasks = self._tasks, []
        for task in tasks[1:]:
            trio.lowlevel.reschedule(task)


class Steps(Generic[T]):
    """Runs a coroutine that awaits nothing but gathers.

    Args:
        coroutine: what to run.
        cut_off: called when a cancellation has ended it where it waits, in the very step that cancels it: in whatever
            task, or in the scheduler, and while its own task still sleeps. It gives True if nobody waits for that task
            any more. What it raises comes out of `run`.
        unwinding: where such tasks wait to be woken.
    """

    __slots__ = (
        "_cancelled",
        "_coroutine",
        "_cut_off",
        "_error",
        "_over",
        "_task",
        "_unwinding",
        "_value",
        "_waits_for",
    )

    def __init__(
        self, coroutine: Coroutine[Gather, None, T], cut_off: Callable[[], bool], unwinding: Unwinding
    ) -> None:
        self._coroutine = coroutine
        self._cut_off = cut_off
        self._unwinding = unwinding
        self._waits_for: Gather | None = None
        self._task: trio.lowlevel.Task | None = None
        """The task that sleeps, and that nothing has woken yet."""
        self._cancelled = False
        """It was woken by a cancellation, and no step is taken any more."""
        self._over = False
        self._value: T | None = None
        self._error: BaseException | None = None

    async def run(self) -> T | None:
        """Run it to its end. **If cancelled:** the coroutine is closed where it waits, and None is what it gives.

        Cancelled is raised neither in there nor here, unless it was there before the first step: to make, raise and
        catch an exception costs more than to end a repair, and whole flocks of them end at one deadline.
        """
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            self._coroutine.close()
            raise
        self.step()
        if not self._over:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
            if self._cancelled:
                self._unwinding.go_on()
        if not self._over:  # and so it was a cancellation, from within one of its own steps
            self._close()
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # its traceback holds this frame
        return self._value

    def step(self) -> None:
        """Go on to the next wait, or to the end."""
        self._waits_for = None
        try:
            gather = self._coroutine.send(None)
        except StopIteration as stop:
            self._value, self._over = stop.value, True
        except BaseException as failure:  # noqa: ASYNC103 - raised again in the task that runs it
            self._error, self._over = failure, True
        else:
            self._waits_for = gather
            if not self._cancelled:
                gather.waiter = self
            return
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None

    def _close(self) -> None:
        self._over = True
        self._waits_for = None
        self._coroutine.close()

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._cancelled = True
        settled = False
        if self._waits_for is not None:  # or it is from within a step, by an instrument or whoever shares the nursery
            self._waits_for.waiter = None
            try:
                self._close()
                settled = self._cut_off()
            except BaseException as failure:  # noqa: ASYNC103 - raised again in the task that runs it
                self._error = failure
        if self._task is not None:
            if settled:
                self._unwinding.add(self._task)
            else:
                trio.lowlevel.reschedule(self._task)
            self._task = None
        return trio.lowlevel.Abort.FAILED  # it is woken all the same, and without an exception
