"""anyio's task group and limiter, on either event loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import anyio.lowlevel

from benchmarks._peers import CONCURRENCY, TIMEOUT, Work


async def _main(count: int) -> int:
    limiter = anyio.CapacityLimiter(CONCURRENCY)
    done = 0

    async def job(number: int) -> None:
        nonlocal done
        try:
            with anyio.move_on_after(TIMEOUT):
                await anyio.lowlevel.checkpoint()
                done += 1
        finally:
            limiter.release_on_behalf_of(number)

    async with anyio.create_task_group() as tasks:
        for number in range(count):
            await limiter.acquire_on_behalf_of(number)
            tasks.start_soon(job, number)
    return done


@contextmanager
def on_trio(count: int) -> Iterator[Work]:
    """On Trio."""
    yield lambda: anyio.run(_main, count, backend="trio")


@contextmanager
def on_asyncio(count: int) -> Iterator[Work]:
    """On asyncio."""
    yield lambda: anyio.run(_main, count, backend="asyncio")
