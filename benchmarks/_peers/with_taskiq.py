"""taskiq with its in-memory broker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import taskiq

from benchmarks._peers import CONCURRENCY, TIMEOUT, Work


@contextmanager
def in_memory(count: int) -> Iterator[Work]:
    """Jobs through `kiq`; the broker does not limit how many run at once, so a semaphore does."""

    async def main() -> int:
        broker = taskiq.InMemoryBroker()
        semaphore = asyncio.Semaphore(CONCURRENCY)
        done = 0

        @broker.task(task_name="job", timeout=TIMEOUT)
        async def job() -> None:
            nonlocal done
            try:
                await asyncio.sleep(0)
                done += 1
            finally:
                semaphore.release()

        await broker.startup()
        try:
            for _ in range(count):
                await semaphore.acquire()
                await job.kiq()
            await broker.wait_all()
        finally:
            await broker.shutdown()
        return done

    yield lambda: asyncio.run(main())
