"""This project: check, and repair what the check finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import apsw
import trio

from trio_repair import (
    AutoRepairConfig,
    DivergenceKind,
    RepairJob,
    RepairOutcome,
    Stores,
    SyncStrategy,
    check,
    count_changes,
    open_repair_engine,
)
from trio_repair.demo.workshop import OldEmbedder
from trio_repair.demo.writing import remove_documents, write_documents
from trio_repair.stores._vector_layout import load_sqlite_vec
from trio_repair.stores.sqlite_cache import open_sqlite_cache
from trio_repair.stores.sqlite_text import open_sqlite_text
from trio_repair.stores.sqlite_vector import open_sqlite_vector

from .judge import Copies
from .scenario import CHUNKER, EMBEDDER, SOURCE, Account, Scenario, Way, remove_database, rewritten
from .vectors import collect

VECTOR: Final = "vector.db"
CACHE: Final = "cache.db"

_TEXT: Final = SyncStrategy.TEXT_SOURCE_OF_TRUTH
_FINE: Final = (RepairOutcome.REPAIRED, RepairOutcome.ALREADY_CONSISTENT, RepairOutcome.NEEDS_MANUAL)


async def open_stores(stack: AsyncExitStack, folder: Path, *, create: bool = False, **options: Any) -> Stores:
    """The three stores of a folder; `create` makes what is not there."""
    vector = open_sqlite_vector(folder / VECTOR, embedder=EMBEDDER, chunker=CHUNKER, create=create, **options)
    return Stores(
        text=await stack.enter_async_context(open_sqlite_text(folder / SOURCE, **options)),
        vector=await stack.enter_async_context(vector),
        cache=await stack.enter_async_context(open_sqlite_cache(folder / CACHE, create=create, **options)),
    )


async def _sync(folder: Path, scenario: Scenario) -> None:
    async with AsyncExitStack() as stack:
        stores = await open_stores(stack, folder, create=True, synchronous="normal")
        assert stores.cache is not None
        await write_documents(stores.vector, scenario.documents, role="vector")
        await write_documents(stores.cache, scenario.cached, role="cache")


async def _damage(folder: Path, scenario: Scenario) -> None:
    async with AsyncExitStack() as stack:
        stores = await open_stores(stack, folder, synchronous="normal")
        assert stores.cache is not None
        await remove_documents(stores.vector, scenario.damaged[DivergenceKind.MISSING], role="vector")
        conflicts = [rewritten(one) for one in scenario.of(DivergenceKind.CONFLICT)]
        await write_documents(stores.vector, conflicts, role="vector")
        old = await stack.enter_async_context(
            open_sqlite_vector(folder / VECTOR, embedder=OldEmbedder(), chunker=CHUNKER)
        )
        await write_documents(old, scenario.of(DivergenceKind.STALE_EMBEDDING), role="vector")
        outdated = [rewritten(one, older=True) for one in scenario.of(DivergenceKind.STALE_CACHE)]
        await write_documents(stores.cache, outdated, role="cache")
    connection = _connect(folder / VECTOR)
    with connection:
        for doc_id in scenario.damaged[DivergenceKind.INCOMPLETE]:
            last = connection.execute("SELECT max(chunk_id) FROM chunks WHERE doc_id = ?", (doc_id,)).get
            connection.execute("DELETE FROM chunks WHERE chunk_id = ?", (last,))
            connection.execute(f"DELETE FROM vectors_{EMBEDDER.dimension} WHERE rowid = ?", (last,))
    connection.close()


async def _repair(folder: Path, strategy: SyncStrategy, options: dict[str, Any], *, create: bool = False) -> Account:
    """As docs/embedding-the-engine.md has it: count, check, repair."""
    # Nobody writes meanwhile, and the second look comes without the wait before it, which is no work.
    config = AutoRepairConfig(settle=0.0, **options)
    outcomes: Counter[str] = Counter()
    left: set[str] = set()
    async with AsyncExitStack() as stack:
        stores = await open_stores(stack, folder, create=create)
        (await count_changes(stores, strategy, config)).guard(config)
        engine = await stack.enter_async_context(open_repair_engine(stores, config))
        checking = await stack.enter_async_context(check(stores, config))

        async def jobs() -> AsyncIterator[RepairJob]:
            async for divergence in checking:
                yield RepairJob(doc_id=divergence.doc_id, strategy=strategy)

        results = await stack.enter_async_context(engine.run(jobs()))
        async for result in results:
            assert result.outcome in _FINE, result
            outcomes[result.outcome.value] += 1
            if result.outcome is RepairOutcome.NEEDS_MANUAL:
                left.add(result.doc_id)
    return Account(said=dict(outcomes), left=frozenset(left))


def _repair_now(folder: Path, *, strategy: SyncStrategy = _TEXT, **options: Any) -> Account:
    return trio.run(_repair, folder, strategy, options)


def _anew(folder: Path) -> Account:
    remove_database(folder / VECTOR)
    return trio.run(partial(_repair, create=True), folder, _TEXT, {"allow_mass": True})


def _connect(file: Path) -> apsw.Connection:
    connection = apsw.Connection(str(file), flags=apsw.SQLITE_OPEN_READWRITE)
    load_sqlite_vec(connection)
    return connection


class TrioRepair:
    """Check and repair."""

    @property
    def ways(self) -> Sequence[Way]:
        """Two strategies, one of them with either meaning of an absent source; and everything anew."""
        return (
            Way(name="trio_repair text", how="strategy TEXT_SOURCE_OF_TRUTH", resync=_repair_now),
            Way(
                name="trio_repair text, delete",
                how='strategy TEXT_SOURCE_OF_TRUTH, missing_source="delete"',
                resync=partial(_repair_now, missing_source="delete"),
            ),
            Way(
                name="trio_repair most-recent",
                how="strategy MOST_RECENT",
                resync=partial(_repair_now, strategy=SyncStrategy.MOST_RECENT),
            ),
            Way(
                name="trio_repair anew",
                how="vector store removed; strategy TEXT_SOURCE_OF_TRUTH, allow_mass=True",
                resync=_anew,
            ),
        )

    def sync(self, folder: Path, scenario: Scenario) -> None:
        """Write the vector store, and some documents to the cache."""
        trio.run(_sync, folder, scenario)

    def damage(self, folder: Path, scenario: Scenario) -> None:
        """Write past the engine, and by SQL past the store."""
        trio.run(_damage, folder, scenario)

    def copies(self, folder: Path) -> Copies:
        """Chunks, vectors and cache entries."""
        connection = _connect(folder / VECTOR)
        vectors = f"vectors_{EMBEDDER.dimension}"
        rows = connection.execute(
            f"SELECT c.doc_id, c.text, v.embedding FROM chunks AS c LEFT JOIN {vectors} AS v ON v.rowid = c.chunk_id"
            f" UNION ALL SELECT '', '', embedding FROM {vectors} WHERE rowid NOT IN (SELECT chunk_id FROM chunks)"
        )
        chunks = collect(rows)
        connection.close()
        connection = apsw.Connection(str(folder / CACHE), flags=apsw.SQLITE_OPEN_READWRITE)
        cache = dict(connection.execute("SELECT doc_id, text FROM documents"))
        connection.close()
        return Copies(chunks=chunks, cache=cache)


TOOL: Final = TrioRepair()
