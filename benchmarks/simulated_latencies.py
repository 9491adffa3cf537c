"""Claim: with up to 1,000 repairs at a time, at least 90 % of the wall time is what waiting for the stores takes alone.

The stores are those of the simulation that this project grew out of: text 150 ms, vector 100 ms, cache 50 ms, here for
every call that reaches a store (observe, read, write, remove), one document a call, and as many calls at once as there
are repairs at once. Preparing reaches no store and takes no time. The clock is the real one.

Every document is newer in the text store than in the vector store and the cache. Such a repair has five stages, each as
long as its slowest call, since the calls of a stage run side by side:

    look           observe text, vector and cache         150 ms
    read           read text                              150 ms
    write          write vector                           100 ms
    read back      observe text and vector                150 ms
    cache          write cache (observed while looking)    50 ms

so that the ideal wall time is 600 ms for each of ceil(documents / concurrency) waves. The stores count their calls, and
a run with other calls than these is an error; that they make these stages is tested on a virtual clock, where a lone
repair takes exactly the sum. Two contenders, both with the same stores, in every round:

    engine     `engine.run` with `max_concurrent_jobs` = concurrency
    script     a pool of `concurrency` bare Trio tasks that make the same calls, without deadline, queue or receipt

What both lack of 1.00 is Python's own work, which no waiting hides once it fills the processor.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import trio

from benchmarks import _harness
from benchmarks._figures import Finding, Limit, Measure, Panel, Shown, Spread
from trio_repair import (
    AutoRepairConfig,
    Document,
    Observation,
    Prepared,
    Removal,
    RepairJob,
    RepairOutcome,
    StoredDocument,
    StoreError,
    Stores,
    SyncStrategy,
    Write,
    WriteAnswer,
    WriteStatus,
    open_repair_engine,
)
from trio_repair.abc import Store
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import SEED_LATENCIES, SimulatedStore, make_document

STAGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("observe", ("text", "vector", "cache")),
    ("read", ("text",)),
    ("write", ("vector",)),
    ("observe", ("text", "vector")),
    ("write", ("cache",)),
)
"""Each stage of such a repair: which operation, on which stores side by side."""

IDEAL = sum(max(SEED_LATENCIES[store] for store in stores) for _operation, stores in STAGES)
"""Seconds that one repair takes if nothing but the stores takes time."""

CLAIMED = 1_000
"""Repairs at a time, up to which the claim is made."""

PATIENCE = 3_600.0
"""No deadline comes first: what is measured is how long the work takes, however long."""


class CountingStore(SimulatedStore):
    """Takes its time for every call that reaches it, and counts them."""

    def __init__(self, name: str, concurrency: int, calls: Counter[tuple[str, str]]) -> None:
        inner = MemoryStore(name)
        traits = attrs.evolve(inner.traits, max_calls=concurrency, max_batch=1)
        super().__init__(
            MemoryStore(name, traits=traits),
            dict.fromkeys(("observe", "read", "write", "remove"), SEED_LATENCIES[name]),
        )
        self._name = name
        self._calls = calls

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        """As the store inside, later. **If cancelled:** as the store inside."""
        self._calls["observe", self._name] += len(doc_ids)
        return await super().observe(doc_ids)

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        """As the store inside, later. **If cancelled:** as the store inside."""
        self._calls["read", self._name] += len(doc_ids)
        return await super().read(doc_ids)

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """As the store inside, later. **If cancelled:** as the store inside."""
        self._calls["write", self._name] += len(writes)
        return await super().write(writes)

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        """As the store inside, later. **If cancelled:** as the store inside."""
        self._calls["remove", self._name] += len(removals)
        return await super().remove(removals)


@attrs.frozen
class Drifted:
    """Stores whose vector copies and cache entries are stale."""

    ids: tuple[str, ...]
    concurrency: int
    stores: Stores
    calls: Counter[tuple[str, str]]

    @classmethod
    def of(cls, count: int, concurrency: int) -> Drifted:
        """New stores with so many documents."""
        calls: Counter[tuple[str, str]] = Counter()
        made = {name: CountingStore(name, concurrency, calls) for name in SEED_LATENCIES}
        ids = tuple(f"document-{number}" for number in range(count))
        for name, store in made.items():
            assert isinstance(store.inner, MemoryStore)
            for doc_id in ids:
                number = 2 if name == "text" else 1
                store.inner.put_nowait(make_document(doc_id, f"{doc_id} at version {number}", number=number))
        return cls(ids, concurrency, Stores(**made), calls)

    def check(self) -> None:
        """Everything was mended, by the calls of `STAGES` and no others."""
        for name, store in self.stores.by_name.items():
            assert isinstance(store, CountingStore)
            assert isinstance(store.inner, MemoryStore)
            assert all(store.inner.observe_nowait(doc_id).version.number == 2 for doc_id in self.ids), name  # type: ignore[union-attr]
        expected: Counter[tuple[str, str]] = Counter()
        for operation, stores in STAGES:
            expected.update({(operation, store): len(self.ids) for store in stores})
        assert expected == self.calls


async def engine(drifted: Drifted) -> None:
    """This project."""
    config = AutoRepairConfig(
        max_concurrent_jobs=drifted.concurrency,
        job_timeout_seconds=PATIENCE,
        store_call_timeout=PATIENCE,
        loop_block_seconds=PATIENCE,
    )
    jobs = (RepairJob(doc_id=doc_id, strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH) for doc_id in drifted.ids)
    async with open_repair_engine(drifted.stores, config) as opened, opened.run(jobs) as results:
        async for result in results:
            assert result.outcome is RepairOutcome.REPAIRED, result
            assert result.updated_systems == ("vector", "cache"), result


async def script(drifted: Drifted) -> None:
    """The same calls by hand, as many documents at a time."""
    stores = drifted.stores.by_name
    remaining = iter(drifted.ids)

    async def observed(names: Sequence[str], doc_id: str) -> dict[str, Observation]:
        views: dict[str, Observation] = {}

        async def look(name: str) -> None:
            (view,) = await stores[name].observe([doc_id])
            assert isinstance(view, Observation)
            views[name] = view

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(look, name)
        return views

    async def copied(store: Store, document: Document, token: str) -> None:
        (prepared,) = await store.prepare([document])
        assert isinstance(prepared, Prepared)
        (answer,) = await store.write([Write(prepared=prepared, token=token)])
        assert answer.status is WriteStatus.LANDED

    async def worker(ids: Iterator[str]) -> None:
        for doc_id in ids:
            views = await observed(("text", "vector", "cache"), doc_id)
            (stored,) = await stores["text"].read([doc_id])
            assert isinstance(stored, StoredDocument)
            assert stored.document is not None
            await copied(stores["vector"], stored.document, views["vector"].token)
            again = await observed(("text", "vector"), doc_id)
            assert again["text"].version == again["vector"].version == stored.document.version
            await copied(stores["cache"], stored.document, views["cache"].token)

    async with trio.open_nursery() as nursery:
        for _ in range(drifted.concurrency):
            nursery.start_soon(worker, remaining)


CONTENDERS: dict[str, Callable[[Drifted], Any]] = {"engine": engine, "script": script}


def measured(contender: Callable[[Drifted], Any], count: int, concurrency: int) -> Callable[[], float]:
    """Seconds for new stores; making them is not measured."""

    def once() -> float:
        drifted = Drifted.of(count, concurrency)
        seconds = _harness.stopwatch(lambda: trio.run(contender, drifted))
        drifted.check()
        return seconds

    return once


def main(arguments: list[str]) -> None:
    """Measure, print, and save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks simulated_latencies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--waves", type=int, default=4, help="documents for each repair that runs at once")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    levels = sorted(set(options.concurrency))
    seconds = _harness.run_rounds(
        {
            f"{name} {level}": measured(contender, options.waves * level, level)
            for level in levels
            for name, contender in CONTENDERS.items()
        },
        rounds=options.rounds,
    )
    print(f"{options.waves} waves of {IDEAL * 1e3:.0f} ms, {options.rounds} interleaved rounds")
    rows = []
    for level in levels:
        documents = options.waves * level
        ideal = IDEAL * math.ceil(documents / level)
        row: dict[str, Any] = {"concurrency": level, "documents": documents, "ideal_seconds": ideal}
        for name in CONTENDERS:
            walls = seconds[f"{name} {level}"]
            row[name] = {
                "seconds": _harness.spread(walls),
                "ideal_over_wall": _harness.spread([ideal / wall for wall in walls]),
                "documents_per_second": _harness.spread([documents / wall for wall in walls]),
            }
            print(
                f"  {level:6} at a time, {name}: ideal over wall {_harness.told(row[name]['ideal_over_wall'], 3)},"
                f" {row[name]['documents_per_second']['median']:.0f} documents a second"
            )
        rows.append(row)
    figures = {
        "latencies": dict(SEED_LATENCIES),
        "stages": [{"operation": operation, "stores": list(stores)} for operation, stores in STAGES],
        "ideal_seconds_a_repair": IDEAL,
        "waves": options.waves,
        "rounds": options.rounds,
        "measured": rows,
    }
    print(f"written to {_harness.save('simulated_latencies', figures, prog=parser.prog, options=options)}")


def shown(saved: Mapping[str, Any]) -> Shown:
    """The worst level of those that are claimed is the claim; the plots go along all levels."""
    rows = saved["measured"]
    within = [row for row in rows if row["concurrency"] <= CLAIMED]
    # Of less the claim says nothing.
    claimed = CLAIMED in {row["concurrency"] for row in rows}
    limit = Limit(words="at least 90 %", low=0.9) if claimed else None
    worst = min(within or rows, key=lambda row: row["engine"]["ideal_over_wall"]["median"])
    claim = Finding(
        what=f"waiting for the stores alone, {worst['concurrency']:,} repairs at a time",
        against="wall time of the engine",
        ratio=Spread.of(worst["engine"]["ideal_over_wall"]),
        limit=limit,
    )

    def panel(title: str, unit: str, key: str, line: float | None = None) -> Panel:
        measures = [Measure(name, Spread.of(row[name][key]), row["concurrency"]) for name in CONTENDERS for row in rows]
        return Panel(title=title, unit=unit, measures=measures, sizes="repairs at a time", limit=line)

    return Shown(
        findings=[claim],
        panels=[
            panel("Waiting alone, over wall time", "part of 1", "ideal_over_wall", limit and limit.low),
            panel("Throughput", "documents a second", "documents_per_second"),
        ],
        notes=[
            f"{saved['waves']} waves of {saved['ideal_seconds_a_repair'] * 1e3:.0f} ms, {saved['rounds']} rounds",
            f"the claim is about up to {CLAIMED} repairs at a time",
        ],
    )
