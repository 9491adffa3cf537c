"""Trio alone, and this project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from benchmarks import engine_cost
from benchmarks._peers import CONCURRENCY, TIMEOUT, Work


@contextmanager
def floor(count: int) -> Iterator[Work]:
    """`benchmarks.engine_cost.floor`."""
    made = list(engine_cost.jobs(count))

    def work() -> int:
        return trio.run(engine_cost.floor, made)

    yield work


@contextmanager
def engine(count: int) -> Iterator[Work]:
    """`benchmarks.engine_cost.engine`."""
    made = list(engine_cost.jobs(count))

    def work() -> int:
        return trio.run(engine_cost.engine, made)

    yield work


@contextmanager
def nursery(count: int) -> Iterator[Work]:
    """A task for each job, its permit taken before it is spawned."""

    async def main() -> int:
        limiter = trio.CapacityLimiter(CONCURRENCY)
        done = 0

        async def job(number: int) -> None:
            nonlocal done
            try:
                with trio.move_on_after(TIMEOUT):
                    await trio.lowlevel.checkpoint()
                    done += 1
            finally:
                limiter.release_on_behalf_of(number)

        async with trio.open_nursery() as tasks:
            for number in range(count):
                await limiter.acquire_on_behalf_of(number)
                tasks.start_soon(job, number)
        return done

    yield lambda: trio.run(main)
