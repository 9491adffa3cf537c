"""Claim: a check of all documents takes little more than reading the same stores once, in order.

Three SQLite stores hold the same documents, of which a given part is damaged: missing in the vector store, newer in the
text store, or stale in the cache. The baseline reads id, number, digest and deleted of every row of all three files in
order of id, one file after the other, with plain SQL, and compares nothing.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import tracemalloc
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import apsw
import trio

from benchmarks import _harness
from trio_repair import AutoRepairConfig, ContentDefinition, Document, DocumentVersion, StoreError, Stores, Write, check
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores.sqlite_cache import open_sqlite_cache
from trio_repair.stores.sqlite_text import open_sqlite_text
from trio_repair.stores.sqlite_vector import open_sqlite_vector

CONTENT = ContentDefinition()
NAMES = ("text", "vector", "cache")


async def open_stores(stack: AsyncExitStack, folder: Path, *, create: bool = False) -> Stores:
    """The three embedded stores; vectors are short, since a check never looks at them."""
    options: dict[str, Any] = {"synchronous": "normal", "create": create}
    embedder, chunker = HashingEmbedder(8), WindowChunker()
    return Stores(
        text=await stack.enter_async_context(open_sqlite_text(folder / "text.db", **options)),
        vector=await stack.enter_async_context(
            open_sqlite_vector(folder / "vector.db", embedder=embedder, chunker=chunker, **options)
        ),
        cache=await stack.enter_async_context(open_sqlite_cache(folder / "cache.db", **options)),
    )


def document(number: int, version: int) -> Document:
    """A short text: a check never reads it."""
    text = f"document {number} at version {version}"
    return Document(
        doc_id=f"document-{number:09}",
        text=text,
        version=DocumentVersion(number=version, digest=CONTENT.digest(text, {})),
    )


async def build(folder: Path, count: int, damaged: float) -> int:
    """Fill the stores; how many documents a check has to find."""
    rng = random.Random(count)
    found = 0
    async with AsyncExitStack() as stack:
        stores = await open_stores(stack, folder, create=True)
        for start in range(0, count, 256):
            batches: dict[str, list[Document]] = {name: [] for name in NAMES}
            for number in range(start, min(count, start + 256)):
                versions: dict[str, int | None] = dict.fromkeys(NAMES, 1)
                if rng.random() < damaged:
                    found += 1
                    kind = rng.choice(("missing", "newer", "stale cache"))
                    if kind == "missing":
                        versions["vector"] = None
                    elif kind == "newer":
                        versions["text"] = 2
                    else:
                        versions["cache"] = 0
                for name, version in versions.items():
                    if version is not None:
                        batches[name].append(document(number, version))
            for name, batch in batches.items():
                store = stores.by_name[name]
                views = await store.observe([one.doc_id for one in batch])
                writes = []
                for view, prepared in zip(views, await store.prepare(batch), strict=True):
                    assert not isinstance(view, StoreError)
                    assert not isinstance(prepared, StoreError)
                    writes.append(Write(prepared=prepared, token=view.token))
                await store.write(writes)
    return found


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


async def run_check(folder: Path, expected: int) -> None:
    """The check, without its wait between two looks, which is no work."""
    async with AsyncExitStack() as stack:
        stores = await open_stores(stack, folder)
        checking = await stack.enter_async_context(check(stores, AutoRepairConfig(settle=0.0)))
        found = 0
        async for _divergence in checking:
            found += 1
        assert expected == found


def main(arguments: list[str]) -> None:
    """Measure, print, and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks check_scan", description=__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--damaged", type=float, default=0.001)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    measured = []
    for count in options.documents:
        with tempfile.TemporaryDirectory(prefix="trio-repair-") as directory:
            folder = Path(directory)
            expected = trio.run(build, folder, count, options.damaged)
            comparison = _harness.interleave(
                {
                    "read": lambda folder=folder: _harness.stopwatch(lambda: read_sorted(folder)),  # type: ignore[misc]
                    "check": lambda folder=folder, expected=expected: _harness.stopwatch(  # type: ignore[misc]
                        lambda: trio.run(run_check, folder, expected)
                    ),
                },
                baseline="read",
                rounds=options.rounds,
            )
            tracemalloc.start()
            trio.run(run_check, folder, expected)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        ratio = _harness.spread(comparison.ratios("check"))
        per_document = _harness.spread([seconds / count * 1e6 for seconds in comparison.seconds["check"]])
        measured.append(
            {
                "documents": count,
                "damaged": expected,
                "check_over_read": ratio,
                "microseconds_per_document": per_document,
                "peak_python_bytes": peak,
            }
        )
        print(
            f"{count} documents, {expected} damaged: check over read {ratio['median']:.2f}"
            f" ({ratio['min']:.2f} to {ratio['max']:.2f}), {per_document['median']:.1f} us a document,"
            f" {peak / 2**20:.1f} MiB of Python objects at most"
        )
    figures = {"damaged": options.damaged, "rounds": options.rounds, "measured": measured}
    print(f"written to {_harness.save('check_scan', figures)}")
