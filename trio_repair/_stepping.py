"""Running a repair outside the scheduler: each step is taken in the task of whoever brought the last answer.

A repair waits some ten times, and always for answers of batchers. Would its task be scheduled for each of them, that
would cost more than everything that the repair does in between. So the task of a repair sleeps under its cancel scope,
and is woken when the repair is over, or cancelled.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator, Mapping
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


class Steps(Generic[T]):
    """Runs a coroutine that awaits nothing but gathers."""

    __slots__ = ("_cancelled", "_coroutine", "_error", "_over", "_task", "_value", "_waits_for")

    def __init__(self, coroutine: Coroutine[Gather, None, T]) -> None:
        self._coroutine = coroutine
        self._waits_for: Gather | None = None
        self._task: trio.lowlevel.Task | None = None
        """The task that sleeps, and that nothing has woken yet."""
        self._cancelled = False
        """It was woken by a cancellation, and no step is taken any more."""
        self._over = False
        self._value: T
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
        if not self._over:  # and so it was a cancellation
            self._over = True
            self._waits_for = None
            self._coroutine.close()
            return None
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

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        # Perhaps from within a step, by an instrument or by whoever shares the engine's nursery.
        self._cancelled = True
        if self._waits_for is not None:
            self._waits_for.waiter = None
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None
        return trio.lowlevel.Abort.FAILED  # it is woken all the same, and without an exception
