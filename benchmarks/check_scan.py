"""Claim: a check of 100,000 documents or more takes at most 1.3 times as long as reading the stores once, in order.

That is with 0.1 % of the documents damaged. With few documents, it shows what a check costs once, however many there
are: a check of a hundred documents is measured beside the others to tell. With more damage, it shows what it costs to
look at each suspect.

Three SQLite stores hold the same documents, of which given parts are damaged: missing in the vector store, newer in the
text store, or stale in the cache. Opening the stores is part of the check. The baseline reads id, number, digest and
deleted of every row of all three files in order of id, one file after the other, with plain SQL, and compares nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import tracemalloc
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import apsw
import trio

from benchmarks import _harness
from benchmarks._corpus import NAMES, damaged_ids, open_stores, prepared
from benchmarks._figures import Finding, Limit, Measure, Panel, Shown, Spread
from trio_repair import AutoRepairConfig, Stores, check

_LITTLE: Final = 0.001
"""The part that is damaged, of 1, and from how many documents on, for the claim."""
_MANY: Final = 100_000
_LARGE: Final = 1_000_000
_FEW: Final = 100
"""Documents whose check takes no longer than what each check does once: threads, connections, calls, second looks."""
FILES: Final = {
    "check_scan": ("check_scan",),
    "check_scan_large": ("check_scan", "--documents", f"{_LARGE}", "--damaged", f"{_LITTLE}"),
}
"""Stores of a million documents and more, which take long to build, have a file of their own."""


def read_sorted(folder: Path) -> None:
    """Every row of every file, in order."""
    for name in NAMES:
        connection = apsw.Connection(str(folder / f"{name}.db"), flags=apsw.SQLITE_OPEN_READONLY)
        deleted = "0" if name == "cache" else "deleted"
        rows = connection.execute(f"SELECT doc_id, number, digest, {deleted} FROM documents ORDER BY doc_id")
        last = ""
        for doc_id, _number, _digest, _deleted in rows:
            last = str(doc_id)
        assert last
        connection.close()


async def count_divergences(stores: Stores) -> int:
    """The check, without its wait between two looks, which is no work."""
    found = 0
    async with check(stores, AutoRepairConfig(settle=0.0)) as checking:
        async for _divergence in checking:
            found += 1
    return found


async def run_check(folder: Path, expected: int) -> None:
    """Open the stores and check them."""
    async with AsyncExitStack() as stack:
        assert expected == await count_divergences(await open_stores(stack, folder))


def measure(folder: Path, count: int, damaged: float, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    expected = sum(1 for _ in damaged_ids(folder))
    comparison = _harness.interleave(
        {
            "read": lambda: _harness.stopwatch(lambda: read_sorted(folder)),
            "check": lambda: _harness.stopwatch(lambda: trio.run(run_check, folder, expected)),
        },
        baseline="read",
        rounds=rounds,
    )
    tracemalloc.start()
    trio.run(run_check, folder, expected)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    ratio = _harness.spread(comparison.ratios("check"))
    per_document = _harness.spread([seconds / count * 1e6 for seconds in comparison.seconds["check"]])
    print(
        f"{count} documents, {expected} damaged: check over read {ratio['median']:.2f}"
        f" ({ratio['min']:.2f} to {ratio['max']:.2f}), {per_document['median']:.1f} us a document,"
        f" {peak / 2**20:.1f} MiB of Python objects at most"
    )
    return {
        "documents": count,
        "damaged": expected,
        "damaged_part": damaged,
        "check_over_read": ratio,
        "microseconds_per_document": per_document,
        "milliseconds": {
            name: _harness.spread([one * 1e3 for one in comparison.seconds[name]]) for name in ("read", "check")
        },
        "peak_python_bytes": peak,
    }


def main(arguments: list[str]) -> None:
    """Measure, print, and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks check_scan", description=__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--damaged", type=float, nargs="+", default=[0.0, 0.001, 0.05])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="build the stores here, and use those that are here already")
    options = parser.parse_args(arguments)
    measured = []
    for count in options.documents:
        for part in options.damaged:
            with tempfile.TemporaryDirectory(prefix="trio-repair-") as temporary:
                root = Path(temporary) if options.dir is None else options.dir.resolve()
                measured.append(measure(prepared(root, count, part), count, part, options.rounds))
    with tempfile.TemporaryDirectory(prefix="trio-repair-") as temporary:
        few = measure(prepared(Path(temporary), _FEW, _LITTLE), _FEW, _LITTLE, options.rounds)
    figures = {"rounds": options.rounds, "measured": measured, "few": few}
    name = "check_scan" if min(options.documents) < _LARGE else "check_scan_large"
    print(f"written to {_harness.save(name, figures, prog=parser.prog, options=options)}")


def shown(saved: Mapping[str, Any]) -> Shown:
    """A row for each size with little damage, and the dearest; the plots go along the sizes, a line for each damage."""
    rows = saved["measured"]
    dearest = max(rows, key=lambda row: row["check_over_read"]["median"])
    told = [row for row in rows if row["damaged_part"] == _LITTLE]
    limit = Limit(words="at most 1.3 times", high=1.3)
    few = saved["few"]["milliseconds"]
    once = (
        f"what a check costs once: {_FEW} documents take {few['check']['median']:.1f} ms to check,"
        f" {few['read']['median']:.1f} ms to read"
    )
    findings = [
        Finding(
            what=f"a check of {row['documents']:,} documents, {row['damaged']:,} of them damaged"
            f"{'' if row in told else ' (the dearest)'}",
            against="reading id, number and digest of the same rows once",
            ratio=Spread.of(row["check_over_read"]),
            limit=limit if row in told and row["documents"] >= _MANY else None,
        )
        for row in (*told, *([] if dearest in told else [dearest]))
    ]

    def panel(title: str, unit: str, value: Callable[[Mapping[str, Any]], Spread]) -> Panel:
        measures = [Measure(f"{row['damaged_part']:.1%} damaged", value(row), row["documents"]) for row in rows]
        return Panel(title=title, unit=unit, measures=measures, sizes="documents")

    return Shown(
        findings=findings,
        panels=[
            panel("Check over reading once", "times", lambda row: Spread.of(row["check_over_read"])),
            panel("Time of a document", "µs", lambda row: Spread.of(row["microseconds_per_document"])),
            panel("Python objects at most", "MiB", lambda row: Spread.only(row["peak_python_bytes"] / 2**20)),
        ],
        notes=[f"{saved['rounds']} interleaved rounds; the memory is that of one more check", once],
    )
