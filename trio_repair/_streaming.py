"""`engine.run`: a stream of jobs in, a stream of results out, and no more in between than there are slots for."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Final, TypeAlias

import attrs
import trio

from ._limits import Limits
from ._model import RepairJob, RepairResult
from ._planning import RepairPlan
from ._ticket import Ticket


@attrs.frozen
class PlannedJob:
    """A job that carries out a plan made earlier, and nothing else. A document that moved since is refused."""

    job: RepairJob
    plan: RepairPlan


_Item: TypeAlias = RepairJob | PlannedJob

JobSource: TypeAlias = Iterable[_Item] | AsyncIterable[_Item]
"""Where `engine.run` takes its jobs from; it is pulled as slots free up."""


_JOBS_AT_A_STRETCH: Final = 1024
"""So many jobs are taken in before others get their turn: the stores, who have the first of them to do, among these."""


class ResultStream(AsyncIterator[RepairResult]):
    """Results in order of completion.

    Invariant: `_outstanding` jobs were accepted and their results not yet taken; it never exceeds the window.
    """

    def __init__(
        self,
        jobs: JobSource,
        limits: Limits,
        *,
        accept: Callable[[_Item, ResultStream], None],
        wait_for_room: Callable[[], Awaitable[None]],
        withdraw: Callable[[Ticket], object],
    ) -> None:
        self._jobs = jobs
        self._limits = limits
        self._accept_job = accept
        self._wait_for_room = wait_for_room
        self._withdraw_ticket = withdraw
        self._live: dict[Ticket, None] = {}  # in order of acceptance
        self._ready: deque[RepairResult] = deque()
        self._outstanding = 0
        self._fed = False
        self._failure: BaseException | None = None
        self._wake_reader = trio.Event()
        self._wake_feeder = trio.Event()

    @property
    def _window(self) -> int:
        # As many waiting as running, so that a slot that falls free never waits for the source; but no more than come
        # in at a stretch, for what was accepted long before it runs has left the processor's caches.
        limits = self._limits
        return limits.max_concurrent_jobs + min(limits.max_concurrent_jobs, limits.max_queued_jobs, _JOBS_AT_A_STRETCH)

    async def feed(self) -> None:
        """Pull jobs as slots free up. An error of the source is raised to the reader, after the results so far."""
        try:
            if isinstance(self._jobs, AsyncGenerator):
                # Closed here and now: it may hold scans open, which must not wait for the garbage collector.
                async with aclosing(self._jobs) as items:
                    async for item in items:
                        await self._submit(item)
            elif isinstance(self._jobs, AsyncIterable):
                async for item in self._jobs:
                    await self._submit(item)
            else:
                for number, item in enumerate(self._jobs, 1):
                    if not self._submit_nowait(item):
                        await self._submit(item)
                    if number % _JOBS_AT_A_STRETCH == 0:
                        await trio.lowlevel.checkpoint()
        except Exception as error:
            self._failure = error
        finally:
            self._fed = True
            self._wake_reader.set()

    def _submit_nowait(self, item: _Item) -> bool:
        if self._outstanding >= self._window:
            return False
        try:
            self._accept_job(item, self)
        except trio.WouldBlock:
            return False
        return True

    async def _submit(self, item: _Item) -> None:
        while not self._submit_nowait(item):
            if self._outstanding < self._window:
                await self._wait_for_room()
                continue
            if self._wake_feeder.is_set():
                self._wake_feeder = trio.Event()
            await self._wake_feeder.wait()

    def accepted(self, ticket: Ticket) -> None:
        """Called by the engine in the same step as it accepts a job of this stream."""
        self._outstanding += 1
        self._live[ticket] = None

    def settled(self, ticket: Ticket) -> None:
        """Called by the engine in the same step as it settles the job."""
        self._live.pop(ticket, None)
        assert ticket.result is not None
        self._ready.append(ticket.result)
        self._wake_reader.set()

    def withdraw(self) -> None:
        """Cancel every job that is not settled."""
        for ticket in list(self._live):
            self._withdraw_ticket(ticket)

    def __aiter__(self) -> ResultStream:
        return self

    async def __anext__(self) -> RepairResult:
        """The next result. **If cancelled:** no result is lost; the next call gives it."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._ready:
            if self._fed and self._outstanding == 0:
                if self._failure is not None:
                    failure, self._failure = self._failure, None
                    raise failure
                await trio.lowlevel.cancel_shielded_checkpoint()
                raise StopAsyncIteration
            if self._wake_reader.is_set():
                self._wake_reader = trio.Event()
            await self._wake_reader.wait()
        result = self._ready.popleft()
        self._outstanding -= 1
        self._wake_feeder.set()
        return result
