"""A stream of jobs that can be turned off, so that a run ends in order instead of being cut."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Literal, TypeAlias

import attrs
import trio

from .. import PlannedJob, RepairJob

Stop: TypeAlias = Literal["interrupted", "max-duration", "receipts"]


@attrs.define
class JobTap(AsyncIterator[RepairJob | PlannedJob]):
    """Hands on jobs until it is turned off or its time is up. Then it is at its end, even if its source hangs."""

    _jobs: AsyncIterator[RepairJob | PlannedJob]
    _deadline: float = math.inf
    """On the clock of `trio.current_time()`."""
    stopped: Stop | None = None
    """Why it was turned off; None if it was not, so that the source came to its own end."""
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def stop(self, reason: Stop) -> None:
        """Take no further job."""
        if self.stopped is None:
            self.stopped = reason
        self._scope.cancel()

    async def __anext__(self) -> RepairJob | PlannedJob:
        """The next job. **If cancelled:** the source is not to be used any more."""
        if self.stopped is not None:
            raise StopAsyncIteration
        with trio.CancelScope(deadline=self._deadline) as self._scope:
            await trio.lowlevel.checkpoint()
            return await self._jobs.__anext__()
        if self.stopped is None:
            self.stopped = "max-duration"
        raise StopAsyncIteration
