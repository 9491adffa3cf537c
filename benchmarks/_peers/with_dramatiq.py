"""dramatiq with its stub broker and a worker in this process."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import dramatiq
from dramatiq.brokers.stub import StubBroker

from benchmarks._peers import CONCURRENCY, TIMEOUT, Work


@contextmanager
def stub_broker(count: int) -> Iterator[Work]:
    """A worker with a thread for each job at a time; the time limit is dramatiq's own."""
    broker = StubBroker()
    ran = itertools.count()  # its next() is one step, whichever thread takes it

    def job() -> None:
        next(ran)

    actor = dramatiq.actor(job, broker=broker, time_limit=TIMEOUT * 1e3)
    worker = dramatiq.Worker(broker, worker_threads=CONCURRENCY)
    worker.start()

    def work() -> int:
        for _ in range(count):
            actor.send()
        broker.join(actor.queue_name)
        worker.join()
        return next(ran)

    try:
        yield work
    finally:
        worker.stop()
        broker.close()
