"""Claim: an engine, with its queue, deadlines, receipts and statistics, costs at most 1.7 times the floor per job.

The floor is what Trio itself charges: a fixed pool of 64 workers on a memory channel, each job one checkpoint under
its own `move_on_after`. The engine runs the same number of jobs at the same concurrency through `engine.run`, the
repair itself replaced by the same checkpoint. The ratio is taken round by round; both run in every round.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import trio

from benchmarks import _harness
from benchmarks._figures import Finding, Limit, Shown, Spread, bars
from trio_repair import AutoRepairConfig, RepairJob, RepairOutcome, Stores, SyncStrategy, open_repair_engine
from trio_repair.stores.memory import MemoryStore

CONCURRENCY = 64
CLAIMED = 1_000
"""Jobs from which on the claim is made."""
TIMEOUT = 30.0


def jobs(count: int) -> Iterator[RepairJob]:
    """Jobs for as many different documents."""
    for number in range(count):
        yield RepairJob(id=str(number), doc_id=f"document-{number}", strategy=SyncStrategy.MOST_RECENT)


async def floor(made: list[RepairJob]) -> int:
    """A pool of workers on a memory channel; how many jobs were done."""
    done = 0
    send, receive = trio.open_memory_channel[RepairJob](0)

    async def worker() -> None:
        nonlocal done
        async for _job in receive:
            with trio.move_on_after(TIMEOUT):
                await trio.lowlevel.checkpoint()
                done += 1

    async with trio.open_nursery() as nursery:
        for _ in range(CONCURRENCY):
            nursery.start_soon(worker)
        async with send:
            for job in made:
                await send.send(job)
    assert done == len(made)
    return done


async def engine(made: list[RepairJob]) -> int:
    """The engine, its executor replaced by one checkpoint; how many results came."""
    from trio_repair._verdict import Verdict  # noqa: PLC0415 - the one private name that a stand-in executor needs

    done = Verdict(RepairOutcome.ALREADY_CONSISTENT)

    async def executor(_entry: object) -> Verdict:
        await trio.lowlevel.checkpoint()
        return done

    stores = Stores(text=MemoryStore("text"), vector=MemoryStore("vector"), cache=MemoryStore("cache"))
    config = AutoRepairConfig(max_concurrent_jobs=CONCURRENCY, job_timeout_seconds=TIMEOUT)
    count = 0
    async with (
        open_repair_engine(stores, config, executor=executor) as opened,
        opened.run(made) as results,
    ):
        async for result in results:
            count += result.success
    assert count == len(made)
    return count


def main(arguments: list[str]) -> None:
    """Measure, print, and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks engine_cost", description=__doc__)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(arguments)
    # The jobs are the same objects for both, and making them is not measured.
    made = list(jobs(options.jobs))
    comparison = _harness.interleave(
        {
            "floor": lambda: _harness.stopwatch(lambda: trio.run(floor, made)),
            "engine": lambda: _harness.stopwatch(lambda: trio.run(engine, made)),
        },
        baseline="floor",
        rounds=options.rounds,
    )
    ratio = _harness.spread(comparison.ratios("engine"))
    per_job = {
        name: _harness.spread([value / options.jobs * 1e6 for value in values])
        for name, values in comparison.seconds.items()
    }
    print(f"{options.jobs} jobs, {CONCURRENCY} at a time, {options.rounds} interleaved rounds")
    for name, figures in per_job.items():
        print(f"  {name:8} {figures['median']:6.1f} us a job   ({figures['min']:.1f} to {figures['max']:.1f})")
    print(f"  ratio    {ratio['median']:6.2f}            ({ratio['min']:.2f} to {ratio['max']:.2f})")
    saved = {"jobs": options.jobs, "rounds": options.rounds, "ratio": ratio, "microseconds_per_job": per_job}
    print(f"written to {_harness.save('engine_cost', saved, prog=parser.prog, options=options)}")


def shown(saved: Mapping[str, Any]) -> Shown:
    """The ratio is the claim; the bars are what both cost."""
    claim = Finding(
        what="a job through the engine",
        against=f"a pool of {CONCURRENCY} Trio tasks on a memory channel",
        ratio=Spread.of(saved["ratio"]),
        # What an engine costs once, to be opened and closed, is part of every job's share, and of few jobs' most.
        limit=Limit(words="at most 1.7 times", high=1.7) if saved["jobs"] >= CLAIMED else None,
    )
    return Shown(
        findings=[claim],
        panels=[bars("Time of a job", "µs", saved["microseconds_per_job"])],
        notes=[f"{saved['jobs']:,} jobs, {CONCURRENCY} at a time, {saved['rounds']} interleaved rounds"],
    )
