"""One task that calls synchronous functions when their time has come, and sleeps in between.

Deadlines of waiting jobs, back-off, circuit breakers and overdue store calls all live here, so that
the engine needs neither a task for each of them nor a polling loop.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from typing import Any

import trio


class Timer:
    """A call that is due at some time. Cancelling is O(1); the heap forgets cancelled timers as it meets them."""

    __slots__ = ("args", "fn")

    def __init__(self, fn: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.fn: Callable[..., None] | None = fn
        self.args = args

    def cancel(self) -> None:
        """Never call it. Does nothing if it was called already."""
        self.fn = None
        self.args = ()


class Timetable:
    """A heap of timers and the task that serves it.

    Invariant: `_sleeping_until` is the time of the earliest timer that the task knows of; an earlier one wakes it.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._cancelled_estimate = 0
        self._sleeping_until = math.inf
        self._sleep: trio.CancelScope | None = None

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, when: float, fn: Callable[..., None], *args: Any) -> Timer:
        """Call ``fn(*args)`` at `when` on the Trio clock, or at the next opportunity if that has passed."""
        timer = Timer(fn, args)
        heapq.heappush(self._heap, (when, next(self._order), timer))
        if when < self._sleeping_until and self._sleep is not None:
            self._sleeping_until = when
            self._sleep.deadline = when
        return timer

    def cancel(self, timer: Timer) -> None:
        """Cancel, and drop cancelled timers once they are the greater part of the heap, so that it stays bounded."""
        if timer.fn is None:
            return
        timer.cancel()
        self._cancelled_estimate += 1
        if self._cancelled_estimate > 64 and self._cancelled_estimate * 2 > len(self._heap):
            self._heap = [item for item in self._heap if item[2].fn is not None]
            heapq.heapify(self._heap)
            self._cancelled_estimate = 0

    async def serve(self) -> None:
        """Run for ever; cancel it to stop."""
        while True:
            now = trio.current_time()
            while self._heap and self._heap[0][0] <= now:
                timer = heapq.heappop(self._heap)[2]
                if timer.fn is None:
                    self._cancelled_estimate -= 1
                    continue
                fn, args = timer.fn, timer.args
                timer.cancel()
                fn(*args)
            self._sleeping_until = self._heap[0][0] if self._heap else math.inf
            with trio.move_on_at(self._sleeping_until) as self._sleep:
                await trio.sleep_forever()
            self._sleep = None
