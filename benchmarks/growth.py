"""Claim: from 10,000 to a million documents, time per document grows by 20 % at most, and peak memory by 30 % at most.

For each size the three embedded SQLite stores are built once, a given part of the documents damaged: missing in the
vector store, newer in the text store, or stale in the cache. Two pieces of work are measured on them:

    check     every document, without the wait between two looks
    repair    the damaged documents, at most `--repairs` of them, by TEXT_SOURCE_OF_TRUTH through `engine.run`, on a
              copy of the files

Every measurement is made in a process of its own, in rounds that go through all sizes. Time is that of the work on open
stores; peak memory is the most that the process ever held, the interpreter and all imports included. Time is compared
with the size that `--against` names, memory with the smallest size: it grows until SQLite's page caches are full, 2 MiB
for each of the three files, and should stay there. A size with few damaged documents says little about the time of one
repair: what an engine costs once is part of it.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import trio

from benchmarks import _harness
from benchmarks._corpus import NAMES, damaged_ids, open_stores, prepared
from benchmarks._figures import Finding, Limit, Measure, Panel, Shown, Spread
from benchmarks.check_scan import count_divergences
from trio_repair import AutoRepairConfig, RepairJob, SyncStrategy, open_repair_engine

CONCURRENCY = 64
CLAIMED = (10_000, 1_000_000)
"""From where to where the claim is made."""
WORKS = ("check", "repair")


async def _check(folder: Path, _repairs: int) -> tuple[int, float]:
    async with AsyncExitStack() as stack:
        stores = await open_stores(stack, folder)
        started = time.perf_counter()
        found = await count_divergences(stores)
        return found, time.perf_counter() - started


async def _repair(folder: Path, repairs: int) -> tuple[int, float]:
    repaired = 0
    async with AsyncExitStack() as stack:
        stores = await open_stores(stack, folder)
        started = time.perf_counter()
        jobs = (
            RepairJob(doc_id=doc_id, strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH)
            for doc_id in islice(damaged_ids(folder), repairs)
        )
        config = AutoRepairConfig(max_concurrent_jobs=CONCURRENCY)
        async with open_repair_engine(stores, config) as engine, engine.run(jobs) as results:
            async for result in results:
                assert result.success, result
                assert result.updated_systems, result
                assert not result.warnings, result
                repaired += 1
        return repaired, time.perf_counter() - started


def check_once(folder: str, repairs: int) -> tuple[int, float]:
    """Documents that the check found, and seconds. Called in a process of its own."""
    return trio.run(_check, Path(folder), repairs)


def repair_once(folder: str, repairs: int) -> tuple[int, float]:
    """Documents that were repaired, and seconds. Called in a process of its own."""
    return trio.run(_repair, Path(folder), repairs)


def measured(work: str, folder: Path, repairs: int) -> Callable[[], _harness.Apart]:
    """One measurement of this kind, on files that nothing has mended yet."""

    def check() -> _harness.Apart:
        return _harness.peak_apart(check_once, str(folder), repairs)

    def repair() -> _harness.Apart:
        # Beside the originals: on the disk that was asked for, whatever holds temporary files.
        with tempfile.TemporaryDirectory(prefix="copy-", dir=folder) as copy:
            for name in (*(f"{store}.db" for store in NAMES), "damaged.txt"):
                shutil.copy(folder / name, copy)
            return _harness.peak_apart(repair_once, copy, repairs)

    return {"check": check, "repair": repair}[work]


def figures_of(work: str, sizes: dict[int, Path], runs: dict[str, list[_harness.Apart]], against: int) -> list[Any]:
    """A row for each size."""
    per_document = {}
    rows = []
    for count in sizes:
        done = runs[f"{work} {count}"]
        handled = count if work == "check" else done[0].value[0]
        per_document[count] = [one.value[1] / handled for one in done]
        rows.append({"documents": count, "handled": handled, "found": done[0].value[0]})
    smallest = [one.peak_rss for one in runs[f"{work} {min(sizes)}"]]
    for row in rows:
        count = row["documents"]
        memory = [one.peak_rss for one in runs[f"{work} {count}"]]
        row["microseconds_per_document"] = _harness.scaled(per_document[count], 1e6)
        row["time_over_reference"] = _harness.spread(_harness.ratios(per_document[count], per_document[against]))
        row["peak_rss_bytes"] = _harness.spread(memory)
        row["peak_rss_over_smallest"] = _harness.spread(_harness.ratios(memory, smallest))
    return rows


def main(arguments: list[str]) -> None:
    """Measure, print, and save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--against", type=int, default=10_000, help="the size whose times the others are compared with")
    parser.add_argument("--damaged", type=float, default=0.001, help="part of the documents, of 1; at least one")
    parser.add_argument("--repairs", type=int, default=100_000, help="repair no more than so many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="build the stores here, and use those that are here already")
    options = parser.parse_args(arguments)
    if options.against not in options.documents:
        parser.error(f"--against {options.against} is none of the sizes")
    with tempfile.TemporaryDirectory(prefix="trio-repair-") as temporary:
        root = Path(temporary) if options.dir is None else options.dir.resolve()
        sizes = {count: prepared(root, count, options.damaged) for count in sorted(set(options.documents))}
        contenders = {
            f"{work} {count}": measured(work, folder, options.repairs)
            for count, folder in sizes.items()
            for work in WORKS
        }
        runs = _harness.run_rounds(contenders, rounds=options.rounds)
        damaged = {count: sum(1 for _ in damaged_ids(folder)) for count, folder in sizes.items()}
    for count in sizes:
        assert {one.value[0] for one in runs[f"check {count}"]} == {damaged[count]}
        assert {one.value[0] for one in runs[f"repair {count}"]} == {min(damaged[count], options.repairs)}
    figures: dict[str, Any] = {
        "damaged": options.damaged,
        "repairs": options.repairs,
        "concurrency": CONCURRENCY,
        "against": options.against,
        "rounds": options.rounds,
    }
    print(f"{options.damaged:.2%} damaged, {options.rounds} rounds, times against {options.against} documents")
    for work in WORKS:
        figures[work] = figures_of(work, sizes, runs, options.against)
        for row in figures[work]:
            memory = _harness.scaled([row["peak_rss_bytes"]["median"]], 2**-20)["median"]
            print(
                f"  {work:6} {row['handled']:8} of {row['documents']:8}:"
                f" {_harness.told(row['microseconds_per_document'], 1)} us each,"
                f" {_harness.told(row['time_over_reference'])} times;"
                f" {memory:.1f} MiB at most, {_harness.told(row['peak_rss_over_smallest'])} times"
            )
    print(f"written to {_harness.save('growth', figures, prog=parser.prog, options=options)}")


def shown(saved: Mapping[str, Any]) -> Shown:
    """Claims: the slowest of the sizes beyond the reference, and the most memory at any size; for either work."""
    against = saved["against"]
    measured_sizes = {row["documents"] for row in saved["check"]}
    claimed = against == CLAIMED[0] and CLAIMED[1] in measured_sizes  # figures of other sizes hold and miss nothing
    findings = []
    for work in WORKS:
        rows = saved[work]
        beyond = [row for row in rows if row["documents"] > against] or [
            row for row in rows if row["documents"] == against
        ]
        slowest = max(beyond, key=lambda row: row["time_over_reference"]["median"])
        largest = max(rows, key=lambda row: row["peak_rss_bytes"]["median"])
        findings += [
            Finding(
                what=f"{work} of {slowest['documents']:,} documents, time for each that is handled",
                against=f"{work} of {against:,} documents",
                ratio=Spread.of(slowest["time_over_reference"]),
                limit=Limit(words="by 20 % at most", high=1.2) if claimed else None,
            ),
            Finding(
                what=f"{work} of {largest['documents']:,} documents, peak memory of the process",
                against=f"{work} of {min(row['documents'] for row in rows):,} documents",
                ratio=Spread.of(largest["peak_rss_over_smallest"]),
                limit=Limit(words="peak memory by 30 % at most", high=1.3) if claimed else None,
            ),
        ]

    def panel(title: str, unit: str, key: str, factor: float = 1.0, limit: float | None = None) -> Panel:
        measures = [
            Measure(work, Spread.of(row[key], factor), row["documents"]) for work in WORKS for row in saved[work]
        ]
        return Panel(title=title, unit=unit, measures=measures, sizes="documents", limit=limit)

    return Shown(
        findings=findings,
        panels=[
            panel("Time of a document that is handled", "µs", "microseconds_per_document"),
            panel(
                f"That, over {against:,} documents",
                "times",
                "time_over_reference",
                limit=2 if claimed else None,
            ),
            panel("Peak memory of the process", "MiB", "peak_rss_bytes", 2**-20),
        ],
        notes=[
            f"{saved['damaged']:.2%} damaged, at most {saved['repairs']:,} of them repaired",
            f"{saved['concurrency']} repairs at a time, {saved['rounds']} rounds",
        ],
    )
