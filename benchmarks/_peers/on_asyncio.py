"""What asyncio itself offers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks._peers import CONCURRENCY, TIMEOUT, Work


@contextmanager
def task_group(count: int) -> Iterator[Work]:
    """A task for each job, its permit taken before it is created."""

    async def main() -> int:
        semaphore = asyncio.Semaphore(CONCURRENCY)
        done = 0

        async def job() -> None:
            nonlocal done
            try:
                async with asyncio.timeout(TIMEOUT):
                    await asyncio.sleep(0)
                    done += 1
            finally:
                semaphore.release()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(count):
                await semaphore.acquire()
                tasks.create_task(job())
        return done

    yield lambda: asyncio.run(main())
