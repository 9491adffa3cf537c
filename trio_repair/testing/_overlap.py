"""Calls that overlap: one that begins later than another, and one that is cut short."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import attrs
import trio

_T = TypeVar("_T")


async def pause(checkpoints: int, seconds: float) -> None:
    """Let other tasks go on for so many checkpoints, and then for so many seconds."""
    for _ in range(checkpoints):
        await trio.lowlevel.checkpoint()
    if seconds > 0:
        await trio.sleep(seconds)


@attrs.frozen
class Ending(Generic[_T]):
    """How a call ended that was to be cut short."""

    returned: tuple[_T, ...]
    """What it returned, alone in a tuple; empty: it raised Cancelled."""
    lasted: float | None
    """Seconds that it went on after it had been cancelled; None: it had ended before."""


async def cut_short(act: Callable[[], Awaitable[_T]], checkpoints: int, seconds: float) -> Ending[_T]:
    """Run `act`, and cancel it after so many checkpoints and then so many seconds, if it still runs."""
    returned: list[_T] = []
    cancelled: list[float] = []
    ended = 0.0

    async def cancel_later(scope: trio.CancelScope) -> None:
        await pause(checkpoints, seconds)
        cancelled.append(trio.current_time())
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_later, nursery.cancel_scope)
        try:
            returned.append(await act())
        finally:
            ended = trio.current_time()
            hit = bool(cancelled)
        nursery.cancel_scope.cancel()
    return Ending(tuple(returned), ended - cancelled[0] if hit else None)


async def begin_cancelled(act: Callable[[], Awaitable[_T]]) -> Ending[_T]:
    """Run `act` in a scope that is cancelled already."""
    returned: list[_T] = []
    begun = trio.current_time()
    with trio.CancelScope() as scope:
        scope.cancel()
        returned.append(await act())
    return Ending(tuple(returned), trio.current_time() - begun)
