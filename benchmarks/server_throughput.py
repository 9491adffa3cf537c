"""Claim: on servers, at least half the throughput of a bulk script, and by 30 % at most more memory for ten times more.

Documents of some 400 characters lie in PostgreSQL (text), in pgvector and in Redis: servers that are started for this,
on loopback, with fsync. A part of them is damaged: missing in pgvector, newer in the text store than in the two others,
or stale in Redis. In every round, each on servers that are as they were:

    check     every document, without the wait between two looks
    read      id, number and digest of the same rows and entries once, by plain calls; nothing is compared
    engine    this project mends what is damaged: a task, a deadline, a fence, a read-back and a receipt for each
    script    plain calls of the same drivers, 1,024 documents a transaction: read versions, read content, COPY into
              temporary tables, write by one statement where the revision is still the one that was read, pipelines of
              conditional writes for Redis, read back

Opening the stores is part of it. A check after each repair must find nothing. What the server takes to sort a vector
into an HNSW index is paid by both sides alike and hides what else they cost, so there are figures with that index and,
by `--index none`, without. Vectors have 64 numbers.

Memory is the most that a process of its own holds, interpreter and imports included, while it checks or repairs, at
each of the sizes of `--memory`, with as many repairs at a time as `--memory-concurrency` says: fewer than the smallest
size has damaged documents, so that as much is under way at each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import trio

from benchmarks import _harness, _servers
from benchmarks._figures import Finding, Limit, Measure, Panel, Shown, Spread, bars
from benchmarks._servers import Place, Servers
from benchmarks.check_scan import count_divergences
from trio_repair import AutoRepairConfig, RepairJob, SyncStrategy, open_repair_engine

FILES: Final = {
    "server_throughput_hnsw": ("server_throughput",),
    "server_throughput_none": ("server_throughput", "--index", "none"),
}
CLAIMED: Final = (10_000, 100_000)
"""From where to where the claim about memory is made."""
CHUNK: Final = 1024
WORKS: Final = ("check", "repair")


async def check(place: Place) -> int:
    """How many documents a check finds."""
    async with AsyncExitStack() as stack:
        return await count_divergences(await _servers.open_stores(stack, place))


async def counts(place: Place) -> dict[str, int]:
    """How many documents the stores say that they hold."""
    async with AsyncExitStack() as stack:
        stores = await _servers.open_stores(stack, place)
        return {name: await store.count() for name, store in stores.by_name.items()}


async def engine(place: Place, ids: Sequence[str], concurrency: int) -> int:
    """This project. How many copies it replaced."""
    replaced = 0
    async with AsyncExitStack() as stack:
        stores = await _servers.open_stores(stack, place)
        jobs = (RepairJob(doc_id=doc_id, strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH) for doc_id in ids)
        config = AutoRepairConfig(max_concurrent_jobs=concurrency)
        async with open_repair_engine(stores, config) as opened, opened.run(jobs) as results:
            async for result in results:
                assert result.success, result
                assert result.updated_systems, result
                assert not result.warnings, result
                replaced += len(result.updated_systems)
    return replaced


def check_once(dsn: str, url: str, _ids: str, _concurrency: int) -> tuple[int, float]:
    """Documents that the check found, and seconds. Called in a process of its own."""
    started = time.perf_counter()
    found = trio.run(check, Place(dsn, url))
    return found, time.perf_counter() - started


def repair_once(dsn: str, url: str, ids: str, concurrency: int) -> tuple[int, float]:
    """Documents that were repaired, and seconds. Called in a process of its own."""
    damaged = Path(ids).read_text().split()
    started = time.perf_counter()
    assert trio.run(engine, Place(dsn, url), damaged, concurrency) >= len(damaged)
    return len(damaged), time.perf_counter() - started


def compare(servers: Servers, options: argparse.Namespace) -> dict[str, Any]:
    """The rounds, and what they come to."""
    from benchmarks._bulk_servers import script  # noqa: PLC0415 - the drivers may be missing

    count = options.documents
    damaged = servers.prepare(count, options.damaged)
    replaced: set[int] = set()

    def mends(work: Callable[..., Any], *arguments: Any) -> Callable[[], float]:
        def once() -> float:
            with servers.fresh(count) as place:
                seconds = _harness.stopwatch(lambda: replaced.add(trio.run(work, place, damaged, *arguments)))
                assert trio.run(check, place) == 0
            return seconds / len(damaged)

        return once

    def reads(work: Callable[[Place], Any], expected: Any) -> Callable[[], float]:
        def once() -> float:
            found = []
            with servers.fresh(count) as place:
                seconds = _harness.stopwatch(lambda: found.append(work(place)))
            assert [expected] == found
            return seconds / count

        return once

    with servers.fresh(count) as place:
        held = trio.run(counts, place)
    comparison = _harness.interleave(
        {
            "script": mends(script, options.chunk),
            "engine": mends(engine, options.concurrency),
            "check": reads(lambda place: trio.run(check, place), len(damaged)),
            "read": reads(_servers.read_all, held),
        },
        baseline="engine",
        rounds=options.rounds,
    )
    assert len(replaced) == 1, f"not the same was mended: {replaced}"
    return {
        "documents": count,
        "damaged": len(damaged),
        "replaced": replaced.pop(),
        "chunk": options.chunk,
        "concurrency": options.concurrency,
        "index": options.index,
        "dimension": _servers.EMBEDDER.dimension,
        "rounds": options.rounds,
        # Throughput: seconds a document of the script over seconds a document of the engine.
        "throughput_over": {"script": _harness.spread(comparison.ratios("script"))},
        "check_over_read": _harness.spread(comparison.ratios("check", "read")),
        "microseconds_per_document": {
            name: _harness.scaled(values, 1e6) for name, values in comparison.seconds.items()
        },
    }


def remember(servers: Servers, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Peak memory at each size, by the kind of work."""
    sizes = sorted(set(options.memory))
    contenders: dict[str, Callable[[], _harness.Apart]] = {}
    for count in sizes:
        damaged = servers.prepare(count, options.damaged)
        ids = directory / f"{count}.ids"
        ids.write_text("\n".join(damaged))
        for work, function in zip(WORKS, (check_once, repair_once), strict=True):

            def once(count: int = count, ids: Path = ids, function: Callable[..., Any] = function) -> _harness.Apart:
                with servers.fresh(count) as place:
                    return _harness.peak_apart(function, place.dsn, place.url, str(ids), options.memory_concurrency)

            contenders[f"{work} {count}"] = once
    runs = _harness.run_rounds(contenders, rounds=options.memory_rounds)
    rows: dict[str, list[dict[str, Any]]] = {work: [] for work in WORKS}
    for work in WORKS:
        smallest = [one.peak_rss for one in runs[f"{work} {sizes[0]}"]]
        for count in sizes:
            done = runs[f"{work} {count}"]
            handled = len(servers.prepare(count, options.damaged))
            assert {handled} == {one.value[0] for one in done}
            peaks = [one.peak_rss for one in done]
            rows[work].append(
                {
                    "documents": count,
                    "damaged": handled,
                    "peak_rss_bytes": _harness.spread(peaks),
                    "peak_rss_over_smallest": _harness.spread(_harness.ratios(peaks, smallest)),
                }
            )
    return {"memory": rows, "memory_concurrency": options.memory_concurrency, "memory_rounds": options.memory_rounds}


def main(arguments: list[str]) -> None:
    """Measure, print, and save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks server_throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--damaged", type=float, default=0.05, help="part of the documents, of 1; at least one")
    parser.add_argument("--chunk", type=int, default=CHUNK, help="documents in a transaction of the script")
    parser.add_argument("--index", choices=("hnsw", "none"), default="hnsw", help="over the vectors")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=1024)
    parser.add_argument("--memory", type=int, nargs="+", default=list(CLAIMED), help="sizes at which memory is taken")
    parser.add_argument("--memory-concurrency", type=int, default=256)
    parser.add_argument("--memory-rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    reason = _servers.why_not()
    if reason is not None:
        print(f"server_throughput is left out: {reason}")
        return
    with tempfile.TemporaryDirectory(prefix="trio-repair-") as temporary:
        directory = Path(temporary)
        with Servers(directory, index=options.index == "hnsw") as servers:
            figures = {**compare(servers, options), **remember(servers, options, directory)}
            figures["servers"] = servers.versions
    print(
        f"{figures['damaged']} of {options.documents} documents damaged, {options.concurrency} repairs at a time,"
        f" index {options.index}, {options.rounds} interleaved rounds, {versions_of(figures)}"
    )
    for name, spread in figures["microseconds_per_document"].items():
        print(f"  {name:7} {_harness.told(spread, 1)} us a document that is handled")
    print(f"  throughput of the engine over script {_harness.told(figures['throughput_over']['script'])}")
    print(f"  check over read {_harness.told(figures['check_over_read'])}")
    for work, rows in figures["memory"].items():
        for row in rows:
            peak = _harness.scaled([row["peak_rss_bytes"]["median"]], 2**-20)["median"]
            over = _harness.told(row["peak_rss_over_smallest"])
            print(f"  {work:7} at {row['documents']:8}: {peak:.1f} MiB at most, {over} times")
    name = f"server_throughput_{options.index}"
    print(f"written to {_harness.save(name, figures, prog=parser.prog, options=options)}")


def versions_of(saved: Mapping[str, Any]) -> str:
    """The servers, for people."""
    return ", ".join(f"{name} {version}" for name, version in saved["servers"].items())


def _indexed(saved: Mapping[str, Any]) -> str:
    return "with an HNSW index" if saved["index"] == "hnsw" else "without an index over vectors"


def shown(saved: Mapping[str, Any]) -> Shown:
    """Both halves of the claim, and what a check costs over reading, of which nothing is claimed."""
    findings = [
        Finding(
            what=f"documents a second through the engine on PostgreSQL, pgvector and Redis, {_indexed(saved)}",
            against=f"a script of COPY, conditional statements and pipelines, {saved['chunk']:,} documents each",
            ratio=Spread.of(saved["throughput_over"]["script"]),
            limit=Limit(words="at least half the throughput", low=0.5),
        ),
        Finding(
            what=f"a check of {saved['documents']:,} documents on those servers",
            against="reading id, number and digest of the same rows and entries once",
            ratio=Spread.of(saved["check_over_read"]),
        ),
    ]
    memory = saved["memory"]
    sizes = {row["documents"] for row in memory["check"]}
    claimed = (min(sizes), max(sizes)) == CLAIMED  # figures of other sizes hold and miss nothing
    for work in WORKS:
        largest = max(memory[work], key=lambda row: row["documents"])
        findings.append(
            Finding(
                what=f"{work} of {largest['documents']:,} documents on those servers, peak memory of the process",
                against=f"{work} of {min(sizes):,} documents",
                ratio=Spread.of(largest["peak_rss_over_smallest"]),
                limit=Limit(words="by 30 % at most", high=1.3) if claimed else None,
            )
        )
    measures = [
        Measure(work, Spread.of(row["peak_rss_bytes"], 2**-20), row["documents"])
        for work in WORKS
        for row in memory[work]
    ]
    return Shown(
        findings=findings,
        panels=[
            bars("Time of a document that is handled", "µs", saved["microseconds_per_document"]),
            bars("Throughput of the engine over that of", "times", saved["throughput_over"], limit=0.5),
            Panel(title="Peak memory of the process", unit="MiB", measures=measures, sizes="documents"),
        ],
        notes=[
            f"{saved['damaged']:,} of {saved['documents']:,} documents damaged",
            f"{saved['concurrency']:,} repairs at a time, {saved['rounds']} rounds",
            f"memory: {saved['memory_concurrency']:,} repairs at a time, {saved['memory_rounds']} rounds",
            f"{versions_of(saved)}; vectors of {saved['dimension']} numbers",
        ],
    )
