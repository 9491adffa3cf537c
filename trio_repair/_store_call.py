"""One bulk call of a store: what it is for, and how long it keeps the event loop to itself."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import CoroutineType
from typing import Any, Generic, TypeVar

import trio

from ._requests import Operation, Request
from ._timetable import Timer

_T = TypeVar("_T")


class StoreCall:
    """One bulk call under way."""

    __slots__ = ("due", "excused", "given_up", "operation", "requests", "returned", "scope", "suspect", "timer")

    def __init__(self, operation: Operation, requests: list[Request], *, suspect: bool) -> None:
        self.operation = operation
        self.requests = requests
        self.suspect = suspect
        """It is for one document alone, whose last call was given up."""
        # Shielded: neither a repair's deadline nor a cancelled host cuts a write off before its grace is over.
        self.scope = trio.CancelScope(shield=True)
        self.timer: Timer | None = None
        self.due = 0.0
        """On the Trio clock: when it is to be given up."""
        self.excused = False
        """It was due while nothing could run, and has got a moment more."""
        self.given_up = False
        self.returned = False


class Stretches(Generic[_T]):
    """An awaitable that runs a call and notes the longest stretch in which it let nothing else run.

    Only what the call does in its own task is measured, not in tasks that it starts.
    """

    __slots__ = ("_argument", "_call", "longest")

    def __init__(self, call: Callable[[Any], Awaitable[_T]], argument: object) -> None:
        self._call = call
        self._argument = argument
        self.longest = 0.0
        """Seconds of wall time."""

    def __await__(self) -> Generator[Any, Any, _T]:
        clock = time.perf_counter
        longest = 0.0
        value: Any = None
        began = clock()
        try:
            awaitable = self._call(self._argument)
            # One that waits already is another call's; to await it says so, where to send to it would end that call.
            coroutine: Coroutine[Any, Any, _T]
            if isinstance(awaitable, CoroutineType) and awaitable.cr_await is None:
                coroutine = awaitable
            else:
                coroutine = _run(awaitable)
            resume: Callable[[Any], Any] = coroutine.send
            try:
                while True:
                    trap = resume(value)
                    longest = max(longest, clock() - began)
                    try:
                        resume, value = coroutine.send, (yield trap)
                    except BaseException as error:  # noqa: ASYNC103 - thrown into the call, which raises it or does not
                        resume, value = coroutine.throw, error
                    began = clock()
            except StopIteration as stop:
                result: _T = stop.value
                return result
        finally:
            self.longest = max(longest, clock() - began)


async def _run(awaitable: Awaitable[_T]) -> _T:
    return await awaitable
