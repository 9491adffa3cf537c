"""aiometer, on Trio."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import aiometer
import anyio
import anyio.lowlevel

from benchmarks._peers import CONCURRENCY, TIMEOUT, Work


@contextmanager
def run_on_each(count: int) -> Iterator[Work]:
    """`aiometer.run_on_each` with `max_at_once`; the timeout is the job's own."""

    async def main() -> int:
        done = 0

        async def job(_number: int) -> None:
            nonlocal done
            with anyio.move_on_after(TIMEOUT):
                await anyio.lowlevel.checkpoint()
                done += 1

        await aiometer.run_on_each(job, list(range(count)), max_at_once=CONCURRENCY)
        return done

    yield lambda: anyio.run(main, backend="trio")
