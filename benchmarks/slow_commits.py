"""Claim: where commits are slow, repairs share them: at least ten times as fast as with a commit for each.

Every document is newer in a SQLite text store than in an index on tantivy, whose commits take many milliseconds
however little is in them. The index stands in the vector role, which takes any store. Contenders mend the same index,
each on a copy of its own, in every round:

    script        plain calls of tantivy and SQL, 1,024 documents a commit, without threads and without Trio: read
                  versions, read content, look again, write what has not moved, read back
    engine N      this project, N repairs at a time, on `trio_repair.stores.tantivy`: a task, a deadline, a fence, a
                  read-back and a receipt for each document; how many share a commit is what comes together
    single        the script with one commit for each document (on fewer documents; times are per document)

The claim is about the engine with 1,024 repairs at a time, against "single". A script that knows its chunks beforehand
is faster than any of them, because it pays for nothing of the engine's; how much faster is told as well, as are the
commits. All close the index at the end, which waits for merges.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import trio

from benchmarks import _harness
from benchmarks._corpus import put
from benchmarks._figures import Finding, Limit, Shown, Spread, bars
from benchmarks.repair_throughput import CHUNK, documents
from trio_repair import AutoRepairConfig, RepairJob, Stores, SyncStrategy, open_repair_engine
from trio_repair.stores.sqlite_text import open_sqlite_text

CLAIMED = 1024
"""Repairs at a time that the claim is about."""


async def build(folder: Path, count: int) -> None:
    """Version 2 in the text store, version 1 in the index."""
    stores = importlib.import_module("trio_repair.stores.tantivy")
    async with (
        open_sqlite_text(folder / "text.db", create=True, synchronous="normal") as text,
        stores.open_tantivy_text(folder / "index", create=True) as index,
    ):
        for store, version, size in ((text, 2, 256), (index, 1, 4096)):
            made = list(documents(count, version))
            for start in range(0, count, size):
                await put(store, made[start : start + size])


async def engine(folder: Path, ids: Sequence[str], concurrency: int) -> int:
    """This project. How many commits that took."""
    stores = importlib.import_module("trio_repair.stores.tantivy")
    commits = 0

    class Counted(stores.TantivyTextStore):  # type: ignore[name-defined,misc]
        async def write(self, writes: Any) -> Any:
            nonlocal commits
            commits += 1
            return await super().write(writes)

    async with (
        open_sqlite_text(folder / "text.db") as text,
        stores.open_tantivy_text(folder / "index", name="vector") as index,
    ):
        index.__class__ = Counted
        config = AutoRepairConfig(max_concurrent_jobs=concurrency)
        jobs = (RepairJob(doc_id=doc_id, strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH) for doc_id in ids)
        async with (
            open_repair_engine(Stores(text=text, vector=index), config) as opened,
            opened.run(jobs) as results,
        ):
            async for result in results:
                assert result.updated_systems == ("vector",), result
    return commits


def why_not() -> str | None:
    """Why this cannot be measured here; None if it can."""
    try:
        importlib.import_module("tantivy")
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    return None


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the rounds; the figures."""
    script = importlib.import_module("benchmarks._bulk_tantivy").script
    ids = [f"document-{number:07}" for number in range(options.documents)]
    commits: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory(prefix="trio-repair-", dir=options.dir) as directory:
        template = Path(directory, "template")
        template.mkdir()
        trio.run(build, template, options.documents)

        def measured(name: str, mended: Sequence[str], work: Callable[[Path], int]) -> Callable[[], float]:
            def once() -> float:
                folder = Path(directory, "work")
                shutil.copytree(template, folder)
                seconds = _harness.stopwatch(lambda: commits.setdefault(name, []).append(work(folder)))
                shutil.rmtree(folder)
                return seconds / len(mended)

            return once

        every, few = ids, ids[: options.single]
        contenders = {
            "script": measured("script", every, lambda folder: script(folder, every, options.chunk)),
            "single": measured("single", few, lambda folder: script(folder, few, 1)),
        }
        for number in options.concurrency:
            contenders[f"engine {number}"] = measured(
                f"engine {number}", every, lambda folder, number=number: trio.run(engine, folder, every, number)
            )
        comparison = _harness.interleave(contenders, baseline="script", rounds=options.rounds)
    engines = [name for name in contenders if name.startswith("engine")]
    return {
        "documents": options.documents,
        "chunk": options.chunk,
        "single": len(few),
        "tantivy": metadata.version("tantivy"),
        "rounds": options.rounds,
        # Throughputs: seconds a document of the other over seconds a document of the engine.
        "throughput_over": {
            other: {name: _harness.spread(comparison.ratios(other, name)) for name in engines}
            for other in ("script", "single")
        },
        "microseconds_per_document": {
            name: _harness.scaled(values, 1e6) for name, values in comparison.seconds.items()
        },
        "commits": {name: _harness.spread(counts[1:]) for name, counts in commits.items()},
    }


def main(arguments: list[str]) -> None:
    """Measure, print, and save."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks slow_commits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--chunk", type=int, default=CHUNK, help="documents in a commit of the script")
    parser.add_argument("--single", type=int, default=200, help="documents for the script with a commit for each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--dir", type=Path, help="where the stores lie while it runs; None: where temporary files do")
    options = parser.parse_args(arguments)
    reason = why_not()
    if reason is not None:
        print(f"slow_commits is left out: {reason}; pip install -e '.[tantivy]'")
        return
    figures = measure(options)
    print(f"{options.documents} documents, the script {options.chunk} to a commit, {options.rounds} interleaved rounds")
    for name, spread in figures["microseconds_per_document"].items():
        commits = _harness.told(figures["commits"][name], 0)
        print(f"  {name:12} {_harness.told(spread, 1)} us a document, {commits} commits")
    for other, ratios in figures["throughput_over"].items():
        for name, spread in ratios.items():
            print(f"  throughput of {name:12} over {other} {_harness.told(spread)}")
    print(f"written to {_harness.save('slow_commits', figures, prog=parser.prog, options=options)}")


def shown(saved: Mapping[str, Any]) -> Shown:
    """The claim is against a commit for each document; the script that knows its chunks is shown beside it."""
    over = saved["throughput_over"]
    claimed = f"engine {CLAIMED}"
    name = claimed if claimed in over["single"] else max(over["single"])
    what = f"documents a second through the engine, {int(name.split()[1]):,} repairs at a time"
    limit = Limit(words="at least ten times as fast", low=10) if name == claimed else None
    return Shown(
        findings=[
            Finding(
                what=what,
                against="a script with a commit for each document",
                ratio=Spread.of(over["single"][name]),
                limit=limit,
            ),
            Finding(
                what=what,
                against=f"a script with {saved['chunk']:,} documents to a commit",
                ratio=Spread.of(over["script"][name]),
            ),
        ],
        panels=[
            bars("Time of a document", "µs", saved["microseconds_per_document"]),
            bars("Throughput over that of the script", "times", over["script"]),
            bars(
                "Throughput over that of a commit for each document", "times", over["single"], limit=limit and limit.low
            ),
            bars("Commits of a run", "commits", saved["commits"]),
        ],
        notes=[
            f"{saved['documents']:,} documents, {saved['single']:,} for a commit each, {saved['rounds']} rounds",
            f"tantivy {saved['tantivy']}",
        ],
    )
