"""arq, with a Redis server of its own on loopback."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import arq
from arq.connections import RedisSettings
from arq.worker import Worker, func

from benchmarks._peers import CONCURRENCY, TIMEOUT, Left, Work

STARTING = 10.0
"""Seconds that the server may take until it listens."""


@contextmanager
def redis_server() -> Iterator[int]:
    """The port of a server on loopback, with a folder of its own and nothing in it that is kept.

    Raises:
        Left: there is no redis-server, or it does not start.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise Left("redis-server is not installed")
    with tempfile.TemporaryDirectory(prefix="trio-repair-") as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            program,
            "--bind",
            "127.0.0.1",
            "--port",
            str(port),
            "--dir",
            folder,
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                ends = time.monotonic() + STARTING
                while True:
                    try:
                        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
                        break
                    except OSError:
                        if server.poll() is not None or time.monotonic() > ends:
                            raise Left("redis-server does not start") from None
                        time.sleep(0.01)
                yield port
            finally:
                server.terminate()  # by its pid; leaving the block waits for it


@contextmanager
def local_redis(count: int) -> Iterator[Work]:
    """Jobs handed in by as many tasks as may run at once, then a worker that stops when the queue is empty."""
    with redis_server() as port:

        async def main() -> int:
            done = 0

            async def job(_context: object) -> None:
                nonlocal done
                await asyncio.sleep(0)
                done += 1

            pool = await arq.create_pool(RedisSettings(host="127.0.0.1", port=port))
            worker = Worker(
                functions=[func(job, name="job")],
                redis_pool=pool,
                burst=True,
                max_jobs=CONCURRENCY,
                job_timeout=TIMEOUT,
                keep_result=0,
                poll_delay=0.001,
                handle_signals=False,
                log_results=False,
            )
            remaining = iter(range(count))

            async def hand_in() -> None:
                for _ in remaining:
                    await pool.enqueue_job("job")

            try:
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(CONCURRENCY):
                        tasks.create_task(hand_in())
                await worker.async_run()
            finally:
                await worker.close()
            return done

        yield lambda: asyncio.run(main())
