"""Ctrl-C and SIGTERM: the first may ask for an orderly end, the next cancels."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import trio


@attrs.define
class Interruption:
    """What signals have asked for so far."""

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """The work runs in this scope. Cancelled by the first signal, or by the second while `on_first` is set."""
    on_first: Callable[[], None] | None = None
    """Ends the work in an orderly way; None while there is nothing that could be left half done."""
    signals: int = 0

    def take(self) -> None:
        """Act on one signal."""
        self.signals += 1
        if self.signals == 1 and self.on_first is not None:
            self.on_first()
        else:
            self.scope.cancel()


async def _watch(interruption: Interruption, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        task_status.started()
        async for _ in received:
            interruption.take()


@asynccontextmanager
async def open_interruption() -> AsyncIterator[Interruption]:
    """Receive SIGINT and SIGTERM for the duration of the block.

    Run the work in ``with interruption.scope`` and report after it, so that an interrupted command still tells the
    truth about what it did.
    """
    interruption = Interruption()
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda *, task_status: _watch(interruption, task_status=task_status))
        yield interruption
        nursery.cancel_scope.cancel()
