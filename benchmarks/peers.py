"""Claim: per job, the engine costs less than every task queue, and at most 4 times what any bare task group costs.

The same work, so many jobs of one checkpoint each (or what is nearest to it: `await asyncio.sleep(0)`, an empty
function), 64 at a time and each under a timeout, is run by this engine, its repair replaced by that checkpoint, and by
others. They are not equal, and the price buys different things:

    floor             a pool of 64 Trio tasks on a memory channel: a timeout; nothing else
    engine            this project: a queue with priorities and aging, one repair at a time for each document,
                      deadlines, a result with a receipt for each job, statistics, cancelling, pausing; in memory
    trio nursery      a task for each job and a limiter: a timeout, the first error ends all
    asyncio           a TaskGroup and a semaphore: the same
    anyio on trio, anyio on asyncio
                      a task group and a limiter: the same on either event loop
    aiometer          the same in one call, with rates where wanted; the timeout is the job's own
    taskiq            its in-memory broker: named tasks, serialized messages, labels, middlewares, the last 100
                      results; the broker is meant for tests, and those that persist or reach other processes cost
                      more. The limit of 64 is a semaphore of ours: this broker has none
    dramatiq          its stub broker and a worker with 64 threads: named actors, encoded messages, retries, time
                      limits, threads that also carry blocking work; no results; the broker is meant for tests
    celery eager      called in place, one at a time, no time limit: named tasks, signals, states; no queue at all
    celery in memory  its in-memory broker and a pool of 64 threads: messages, acknowledgements, retries; the pool
                      enforces no time limit; no results. It looks at an empty queue every 10 ms, not every second
    arq               a Redis server on loopback, started here: jobs that outlive this process and that other
                      machines may take, retries, a timeout; results are not kept. The server writes nothing to disk

All run in this process; only arq has another one, the server, beside it. Getting ready (making the jobs of the floor
and the engine, starting workers and servers) is not measured, except that whatever runs on an event loop starts and
ends its loop, and that arq connects. Peers with a queue of messages run fewer jobs; times are per job. A peer whose
library or server is not installed is left out, and the reason is printed and recorded: the extra `bench` brings all but
Redis.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import attrs

from benchmarks import _harness
from benchmarks._figures import Finding, Limit, Listing, Shown, Spread, bars
from benchmarks._peers import CONCURRENCY, TIMEOUT, Contender, Left


@attrs.frozen
class Peer:
    """One of those that are compared."""

    module: str
    contender: str
    distribution: str | None = None
    """Whose version is recorded; None: the standard library's."""
    queue: bool = False
    """It runs `--queue-jobs` jobs."""

    def load(self) -> Contender:
        """Its contender.

        Raises:
            Left: its library is not installed.
        """
        try:
            module = importlib.import_module(f"benchmarks._peers.{self.module}")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] in {"benchmarks", "trio_repair"}:
                raise
            raise Left(f"{error.name} is not installed") from error
        contender: Contender = getattr(module, self.contender)
        return contender


PEERS = {
    "floor": Peer("on_trio", "floor", "trio"),
    "engine": Peer("on_trio", "engine", "trio-repair"),
    "trio nursery": Peer("on_trio", "nursery", "trio"),
    "asyncio": Peer("on_asyncio", "task_group"),
    "anyio on trio": Peer("on_anyio", "on_trio", "anyio"),
    "anyio on asyncio": Peer("on_anyio", "on_asyncio", "anyio"),
    "aiometer": Peer("with_aiometer", "run_on_each", "aiometer"),
    "taskiq": Peer("with_taskiq", "in_memory", "taskiq", queue=True),
    "dramatiq": Peer("with_dramatiq", "stub_broker", "dramatiq", queue=True),
    "celery eager": Peer("with_celery", "eager", "celery", queue=True),
    "celery in memory": Peer("with_celery", "in_memory", "celery", queue=True),
    "arq": Peer("with_arq", "local_redis", "arq", queue=True),
}


def once(contender: Contender, count: int) -> float:
    """Seconds a job."""
    with contender(count) as work:
        done: list[int] = []
        seconds = _harness.stopwatch(lambda: done.append(work()))
    assert done == [count], f"{done} of {count} jobs were done"
    return seconds / count


def measured(contender: Contender, count: int) -> Callable[[], float]:
    """`once`, to be called in rounds."""
    return lambda: once(contender, count)


def main(arguments: list[str]) -> None:
    """Measure, print, and save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--queue-jobs", type=int, default=2_000, help="jobs for peers with a queue of messages")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=PEERS, default=[], help="these, and the floor and the engine")
    options = parser.parse_args(arguments)
    contenders: dict[str, Callable[[], float]] = {}
    jobs: dict[str, int] = {}
    left_out: dict[str, str] = {}
    for name, peer in PEERS.items():
        if options.only and name not in {"floor", "engine", *options.only}:
            continue
        count = options.queue_jobs if peer.queue else options.jobs
        try:
            contender = peer.load()
            once(contender, min(count, CONCURRENCY))  # and its server starts
        except Left as why:
            left_out[name] = str(why)
            continue
        contenders[name] = measured(contender, count)
        jobs[name] = count
    for name, why_not in left_out.items():
        print(f"  {name} is left out: {why_not}")
    comparison = _harness.interleave(contenders, baseline="floor", rounds=options.rounds)
    print(f"{CONCURRENCY} at a time, {options.rounds} interleaved rounds")
    rows: dict[str, dict[str, Any]] = {}
    for name, seconds in comparison.seconds.items():
        distribution = PEERS[name].distribution
        rows[name] = {
            "version": None if distribution is None else metadata.version(distribution),
            "jobs": jobs[name],
            "microseconds_per_job": _harness.scaled(seconds, 1e6),
            "over_floor": _harness.spread(comparison.ratios(name)),
            "over_engine": _harness.spread(comparison.ratios(name, to="engine")),
            "engine_over": _harness.spread(comparison.ratios("engine", to=name)),
        }
        print(
            f"  {name:17} {_harness.told(rows[name]['microseconds_per_job'], 1)} us a job,"
            f" {_harness.told(rows[name]['over_floor'])} times the floor,"
            f" {_harness.told(rows[name]['over_engine'])} times the engine"
        )
    figures = {
        "concurrency": CONCURRENCY,
        "timeout_seconds": TIMEOUT,
        "rounds": options.rounds,
        "peers": rows,
        "left_out": left_out,
    }
    print(f"written to {_harness.save('peers', figures, prog=parser.prog, options=options)}")


def shown(saved: Mapping[str, Any]) -> Shown:
    """Either half of the claim against the peer that is hardest to beat; the bars are all peers."""
    rows = saved["peers"]

    def cheapest(*, queue: bool) -> list[str]:
        names = [name for name in rows if name not in {"floor", "engine"} and PEERS[name].queue is queue]
        return sorted(names, key=lambda name: rows[name]["over_engine"]["median"])[:1]

    findings = [
        Finding(
            what=f"a job through {name}, the cheapest task queue",
            against="a job through the engine",
            ratio=Spread.of(rows[name]["over_engine"]),
            limit=Limit(words="less than every task queue", low=1),
        )
        for name in cheapest(queue=True)
    ] + [
        Finding(
            what="a job through the engine",
            against=f"a job through {name}, the cheapest task group",
            ratio=Spread.of(rows[name]["engine_over"]),
            limit=Limit(words="at most 4 times", high=4),
        )
        for name in cheapest(queue=False)
    ]
    each = [[name, row["version"] or "standard library", f"{row['jobs']:,}"] for name, row in rows.items()]
    return Shown(
        findings=findings,
        panels=[
            bars("Time of a job", "µs", {name: row["microseconds_per_job"] for name, row in rows.items()}),
            bars("Time of a job, over the engine's", "times", {name: row["over_engine"] for name, row in rows.items()}),
        ],
        listings=[Listing(title="What ran", header=("peer", "version", "jobs"), rows=each)],
        notes=[
            f"{saved['concurrency']} jobs at a time, {saved['rounds']} interleaved rounds",
            *(f"{name} is left out: {reason}" for name, reason in saved["left_out"].items()),
        ],
    )
