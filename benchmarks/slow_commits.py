"""Claim: repairs share slow commits: at least ten times as fast as one for each, at least 0.3 as fast as a script.

Every document is newer in a SQLite text store than in a store whose commits take many milliseconds however little is in
them: an index on tantivy, and a table on LanceDB, each where its driver is installed, and each with figures of its own.
It stands in the vector role, which takes any store. Contenders mend the same store, each on a copy of its own, in every
round:

    script        plain calls of the driver and SQL, 1,024 documents a commit, without threads of its own and without
                  Trio: read versions, read content, look again, write what has not moved, read back
    engine N      this project, N repairs at a time: a task, a deadline, a fence, a read-back and a receipt for each
                  document; how many share a commit is what comes together
    single        the script with one commit for each document (on fewer documents; times are per document)

The claim is about the engine with 1,024 repairs at a time: at least ten times the throughput of "single", and at least
0.3 times that of "script", which knows its chunks beforehand and pays for nothing of the engine's. Commits are told as
well. All close the store at the end; tantivy's waits for merges. On LanceDB all chunk and embed what they write.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from benchmarks import _harness
from benchmarks._corpus import put
from benchmarks._figures import Finding, Limit, Shown, Spread, bars
from benchmarks.repair_throughput import CHUNK, CHUNKER, EMBEDDER, documents
from trio_repair import AutoRepairConfig, RepairJob, Stores, SyncStrategy, open_repair_engine
from trio_repair.stores.sqlite_text import open_sqlite_text

FILES: Final = {
    "slow_commits_lancedb": ("slow_commits", "--stores", "lancedb"),
    "slow_commits_tantivy": ("slow_commits", "--stores", "tantivy"),
}
CLAIMED = 1024
"""Repairs at a time that the claim is about."""


@attrs.frozen(kw_only=True)
class SlowStore:
    """A store whose commits are slow; its driver may not be there."""

    driver: str
    extra: str
    open_name: str
    kind_name: str
    options: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def module(self) -> Any:
        """Where the store is."""
        return importlib.import_module(f"trio_repair.stores.{self.driver}")

    @property
    def script(self) -> Callable[[Path, Sequence[str], int], int]:
        """The hand-written script on its contents."""
        script: Callable[[Path, Sequence[str], int], int] = importlib.import_module(
            f"benchmarks._bulk_{self.driver}"
        ).script
        return script

    def open(self, folder: Path, *, create: bool = False) -> AbstractAsyncContextManager[Any]:
        """Open it in the vector role."""
        opened: AbstractAsyncContextManager[Any] = getattr(self.module, self.open_name)(
            folder / "index", create=create, name="vector", **self.options
        )
        return opened

    def why_not(self) -> str | None:
        """Why it cannot be measured here; None if it can."""
        try:
            importlib.import_module(self.driver)
        except ModuleNotFoundError as error:
            return f"{error.name} is not installed; pip install -e '.[{self.extra}]'"
        return None


STORES: Final = {
    "tantivy": SlowStore(
        driver="tantivy", extra="tantivy", open_name="open_tantivy_text", kind_name="TantivyTextStore"
    ),
    "lancedb": SlowStore(
        driver="lancedb",
        extra="lancedb",
        open_name="open_lancedb_vector",
        kind_name="LanceDBVectorStore",
        options={"embedder": EMBEDDER, "chunker": CHUNKER},
    ),
}


async def build(store: SlowStore, folder: Path, count: int) -> None:
    """Version 2 in the text store, version 1 in the slow one."""
    async with (
        open_sqlite_text(folder / "text.db", create=True, synchronous="normal") as text,
        store.open(folder, create=True) as slow,
    ):
        for one, version, size in ((text, 2, 256), (slow, 1, 4096)):
            made = list(documents(count, version))
            for start in range(0, count, size):
                await put(one, made[start : start + size])


async def engine(store: SlowStore, folder: Path, ids: Sequence[str], concurrency: int) -> int:
    """This project. How many commits that took."""
    commits = 0

    class Counted(getattr(store.module, store.kind_name)):  # type: ignore[misc]
        async def write(self, writes: Any) -> Any:
            nonlocal commits
            commits += 1
            return await super().write(writes)

    async with open_sqlite_text(folder / "text.db") as text, store.open(folder) as slow:
        slow.__class__ = Counted
        config = AutoRepairConfig(max_concurrent_jobs=concurrency)
        jobs = (RepairJob(doc_id=doc_id, strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH) for doc_id in ids)
        async with (
            open_repair_engine(Stores(text=text, vector=slow), config) as opened,
            opened.run(jobs) as results,
        ):
            async for result in results:
                assert result.updated_systems == ("vector",), result
    return commits


def measure(store: SlowStore, options: argparse.Namespace) -> dict[str, Any]:
    """Run the rounds; the figures."""
    script = store.script
    ids = [f"document-{number:07}" for number in range(options.documents)]
    commits: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory(prefix="trio-repair-", dir=options.dir) as directory:
        template = Path(directory, "template")
        template.mkdir()
        trio.run(build, store, template, options.documents)

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
                f"engine {number}", every, lambda folder, number=number: trio.run(engine, store, folder, every, number)
            )
        comparison = _harness.interleave(contenders, baseline="script", rounds=options.rounds)
    engines = [name for name in contenders if name.startswith("engine")]
    return {
        "documents": options.documents,
        "chunk": options.chunk,
        "single": len(few),
        "driver": f"{store.driver} {metadata.version(store.driver)}",
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
    parser.add_argument("--stores", nargs="+", choices=STORES, default=list(STORES))
    options = parser.parse_args(arguments)
    for name in options.stores:
        reason = STORES[name].why_not()
        if reason is None:
            measure_and_save(name, options, prog=parser.prog)
        else:
            print(f"slow_commits on {name} is left out: {reason}")


def measure_and_save(name: str, options: argparse.Namespace, *, prog: str) -> None:
    """One store."""
    figures = measure(STORES[name], options)
    print(
        f"{figures['driver']}: {options.documents} documents, the script {options.chunk} to a commit,"
        f" {options.rounds} interleaved rounds"
    )
    for contender, spread in figures["microseconds_per_document"].items():
        commits = _harness.told(figures["commits"][contender], 0)
        print(f"  {contender:12} {_harness.told(spread, 1)} us a document, {commits} commits")
    for other, ratios in figures["throughput_over"].items():
        for contender, spread in ratios.items():
            print(f"  throughput of {contender:12} over {other} {_harness.told(spread)}")
    own = argparse.Namespace(**{**vars(options), "stores": [name]})
    print(f"written to {_harness.save(f'slow_commits_{name}', figures, prog=prog, options=own)}")


def shown(saved: Mapping[str, Any]) -> Shown:
    """Both halves of the claim, and the bars."""
    over = saved["throughput_over"]
    claimed = f"engine {CLAIMED}"
    name = claimed if claimed in over["single"] else max(over["single"])
    driver = saved["driver"].split()[0]
    what = f"documents a second through the engine on {driver}, {int(name.split()[1]):,} repairs at a time"
    share = Limit(words="at least 0.3 as fast", low=0.3) if name == claimed else None
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
                limit=share,
            ),
        ],
        panels=[
            bars("Time of a document", "µs", saved["microseconds_per_document"]),
            bars("Throughput over that of the script", "times", over["script"], limit=share and share.low),
            bars(
                "Throughput over that of a commit for each document", "times", over["single"], limit=limit and limit.low
            ),
            bars("Commits of a run", "commits", saved["commits"]),
        ],
        notes=[
            f"{saved['documents']:,} documents, {saved['single']:,} for a commit each, {saved['rounds']} rounds",
            saved["driver"],
        ],
    )
