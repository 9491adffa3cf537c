"""Claim: when 10,000 hung repairs meet one deadline, the p99 of lateness is at most twice that of bare Trio.

Every repair hangs in `observe`: the text store does not answer before all is over. All of them run at once and share
one absolute deadline. The lateness of a repair is the moment at which its result is in the caller's hands, minus the
deadline. Four contenders:

    trio       the floor: as many tasks in a nursery, each `with move_on_at(deadline): await sleep_forever()`, which
               then takes down the time
    stream     the engine: the moment at which `async for result in results` gives the result
    settled    the engine: the moment at which an instrument is told SETTLED, with the result
    handles    the engine: as many tasks that wait in `execute_repair_job`, each of which then takes down the time

A run counts only if every repair was hanging before the deadline came, and if every result says TIMED_OUT.
"""

from __future__ import annotations

import argparse
import datetime as dt
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from benchmarks import _harness
from benchmarks._figures import Finding, Limit, Measure, Panel, Shown, Spread, bars
from trio_repair import (
    AutoRepairConfig,
    EngineEvent,
    EventKind,
    Observation,
    RepairExecutionEngine,
    RepairJob,
    RepairOutcome,
    RepairResult,
    StoreError,
    Stores,
    SyncStrategy,
    open_repair_engine,
)
from trio_repair.stores.memory import MemoryStore

EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
FAR = 3_600.0
CLAIMED = 10_000
"""Repairs of which the claim is made."""
PERCENTS = {"p50": 50, "p99": 99, "max": 100}


class HungStore(MemoryStore):
    """A text store that takes every question and answers none before it is released."""

    def __init__(self, count: int) -> None:
        super().__init__("text")
        # As many calls as there are documents: however they are gathered, none has to wait its turn.
        self._traits = attrs.evolve(self._traits, max_calls=count, max_batch=count)
        self.hanging = 0
        self.last_asked_at = -math.inf
        self.released = trio.Event()

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        """Hang. **If cancelled:** nothing has changed."""
        self.hanging += len(doc_ids)
        self.last_asked_at = trio.current_time()
        await self.released.wait()
        return await super().observe(doc_ids)


@attrs.define
class Run:
    """One run: all repairs under way before the deadline, and what became of them."""

    count: int
    deadline: float
    """On the Trio clock."""
    store: HungStore
    moments: list[float] = attrs.Factory(list)

    @classmethod
    def of(cls, count: int, lead: float) -> Run:
        """A run whose deadline is `lead` seconds from now."""
        return cls(count, trio.current_time() + lead, HungStore(count))

    def jobs(self) -> Iterator[RepairJob]:
        """One for each document, all with the same deadline, and no other limit that would come first."""
        deadline = EPOCH + dt.timedelta(seconds=self.deadline)
        for number in range(self.count):
            yield RepairJob(
                id=str(number),
                doc_id=f"document-{number}",
                strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH,
                deadline=deadline,
                timeout=FAR,
            )

    @asynccontextmanager
    async def engine(self, instruments: Sequence[Any] = ()) -> Any:
        """An engine with room for all of them."""
        config = AutoRepairConfig(max_concurrent_jobs=self.count, store_call_timeout=FAR)
        stores = Stores(text=self.store, vector=MemoryStore("vector"), cache=MemoryStore("cache"))
        async with open_repair_engine(
            # The time of day that the deadline is meant in is the Trio clock's: what is measured is no clock's jitter.
            stores,
            config,
            instruments=instruments,
            wall_clock=lambda: EPOCH + dt.timedelta(seconds=trio.current_time()),
        ) as opened:
            yield opened
            # Nobody waits any more; calls that are cut off when the engine closes would be warned of.
            self.store.released.set()

    def take(self, result: RepairResult) -> None:
        """The caller has the result now."""
        self.moments.append(trio.current_time())
        assert result.outcome is RepairOutcome.TIMED_OUT, result

    def lateness(self) -> list[float]:
        """Seconds after the deadline, one for each repair."""
        assert len(self.moments) == self.count
        assert self.store.hanging == self.count
        if self.store.last_asked_at >= self.deadline:
            raise SystemExit("not every repair was under way at the deadline; give it a longer --lead")
        return [moment - self.deadline for moment in self.moments]


async def bare_trio(count: int, lead: float) -> list[float]:
    """Tasks in a nursery, and nothing else."""
    run = Run.of(count, lead)

    async def hang() -> None:
        run.store.hanging += 1
        run.store.last_asked_at = trio.current_time()
        with trio.move_on_at(run.deadline):
            await trio.sleep_forever()
        run.moments.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(hang)
    return run.lateness()


async def by_stream(count: int, lead: float) -> list[float]:
    """`engine.run`."""
    run = Run.of(count, lead)
    async with run.engine() as engine, engine.run(run.jobs()) as results:
        async for result in results:
            run.take(result)
    return run.lateness()


async def by_instrument(count: int, lead: float) -> list[float]:
    """`engine.run`, watched by an instrument."""
    run = Run.of(count, lead)

    class Watch:
        def on_event(self, event: EngineEvent) -> None:
            if event.kind is EventKind.SETTLED:
                assert event.result is not None
                run.take(event.result)

    async with run.engine([Watch()]) as engine, engine.run(run.jobs()) as results:
        async for _result in results:
            pass
    return run.lateness()


async def by_handles(count: int, lead: float) -> list[float]:
    """`execute_repair_job`, a task for each."""
    run = Run.of(count, lead)

    async def caller(engine: RepairExecutionEngine, job: RepairJob) -> None:
        run.take(await engine.execute_repair_job(job))

    async with run.engine() as engine, trio.open_nursery() as nursery:
        for job in run.jobs():
            nursery.start_soon(caller, engine, job)
    return run.lateness()


CONTENDERS: dict[str, Callable[..., Any]] = {
    "trio": bare_trio,
    "stream": by_stream,
    "settled": by_instrument,
    "handles": by_handles,
}


def main(arguments: list[str]) -> None:
    """Measure, print, and save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks deadline_lateness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repairs", type=int, default=CLAIMED)
    parser.add_argument("--lead", type=float, default=5.0, help="seconds from the start of a run to its deadline")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)

    def measured(contender: Callable[..., Any]) -> Callable[[], dict[str, float]]:
        def once() -> dict[str, float]:
            lateness = trio.run(contender, options.repairs, options.lead)
            found = {name: _harness.percentile(lateness, percent) for name, percent in PERCENTS.items()}
            return {**found, "min": min(lateness), "count": len(lateness)}

        return once

    contenders = {name: measured(contender) for name, contender in CONTENDERS.items()}
    runs = _harness.run_rounds(contenders, rounds=options.rounds)
    print(
        f"{options.repairs} hung repairs with one deadline, {options.rounds} interleaved rounds; ms after the deadline"
    )
    milliseconds: dict[str, dict[str, dict[str, float]]] = {}
    p99_over_trio: dict[str, dict[str, float]] = {}
    bare = [one["p99"] for one in runs["trio"]]
    for name, done in runs.items():
        # In ms; a datetime counts microseconds, and both the deadline and the time of day are rounded to them.
        assert all(one["min"] >= -0.002 for one in done), "a result came before the deadline"
        assert {one["count"] for one in done} == {options.repairs}
        milliseconds[name] = {each: _harness.scaled([one[each] for one in done], 1e3) for each in ("min", *PERCENTS)}
        shown = "   ".join(f"{each} {_harness.told(milliseconds[name][each], 1)}" for each in PERCENTS)
        print(f"  {name:8} {shown}")
    for name in runs:
        if name != "trio":
            p99_over_trio[name] = _harness.spread(_harness.ratios([one["p99"] for one in runs[name]], bare))
            print(f"  p99 of {name:8} over p99 of trio {_harness.told(p99_over_trio[name])}")
    figures = {
        "repairs": options.repairs,
        "lead_seconds": options.lead,
        "rounds": options.rounds,
        "counted": {name: done[0]["count"] for name, done in runs.items()},
        "lateness_milliseconds": milliseconds,
        "p99_over_trio": p99_over_trio,
    }
    print(f"written to {_harness.save('deadline_lateness', figures, prog=parser.prog, options=options)}")


def shown(saved: Mapping[str, Any]) -> Shown:
    """The way in which results come latest is the claim; the bars are all ways, and bare Trio."""
    latest = max(saved["p99_over_trio"], key=lambda name: saved["p99_over_trio"][name]["median"])
    # Of other numbers of repairs the claim says nothing.
    limit = Limit(words="at most twice", high=2) if saved["repairs"] == CLAIMED else None
    claim = Finding(
        what=f"p99 of lateness of {saved['repairs']:,} hung repairs ({latest}, the latest)",
        against="as many bare Trio tasks",
        ratio=Spread.of(saved["p99_over_trio"][latest]),
        limit=limit,
    )
    late = [
        Measure(f"{name}, {percent}", Spread.of(found[percent]))
        for name, found in saved["lateness_milliseconds"].items()
        for percent in PERCENTS
    ]
    return Shown(
        findings=[claim],
        panels=[
            Panel(title="After the deadline", unit="ms", measures=late),
            bars("p99 over the p99 of bare Trio", "times", saved["p99_over_trio"], limit=limit and limit.high),
        ],
        notes=[f"{saved['repairs']:,} repairs, {saved['rounds']} interleaved rounds"],
    )
