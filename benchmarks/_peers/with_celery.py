"""Celery: called in place, and through its in-memory broker to a worker in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import celery
from celery.contrib.testing.worker import start_worker

from benchmarks._peers import CONCURRENCY, TIMEOUT, Work

POLLING = 0.01
"""Seconds between two looks at an empty queue. With the default of 1 second nothing else would be measured."""


PATIENCE = 120.0
"""Seconds after which jobs that have not run are lost."""


class _Job:
    """A task that counts, and says when all have run."""

    def __init__(self, app: celery.Celery, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._all = threading.Event()
        self.done = 0

        def job() -> None:
            self._run()

        self.task: Any = app.task(name="job", ignore_result=True, shared=False)(job)

    def _run(self) -> None:
        with self._lock:
            self.done += 1
            if self.done == self._count:
                self._all.set()

    def wait(self) -> int:
        """How many have run, when all have or nobody can expect more."""
        self._all.wait(PATIENCE)
        return self.done


@contextmanager
def eager(count: int) -> Iterator[Work]:
    """`task_always_eager`: in the caller, one at a time, without a time limit."""
    app = celery.Celery("eager", set_as_current=False)
    app.conf.update(task_always_eager=True)
    job = _Job(app, count)

    def work() -> int:
        for _ in range(count):
            job.task.delay()
        return job.wait()

    yield work
    app.close()


@contextmanager
def in_memory(count: int) -> Iterator[Work]:
    """The in-memory broker and a thread pool; such a pool enforces no time limit, though one is set."""
    app = celery.Celery("memory", broker="memory://", set_as_current=False)
    app.conf.update(
        task_time_limit=TIMEOUT,
        broker_transport_options={"polling_interval": POLLING},
        worker_hijack_root_logger=False,
    )
    job = _Job(app, count)
    with start_worker(app, concurrency=CONCURRENCY, pool="threads", perform_ping_check=False):

        def work() -> int:
            for _ in range(count):
                job.task.delay()
            return job.wait()

        yield work
    app.close()
