"""What the tests of the SQLite stores share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import apsw
import sqlite_vec

from trio_repair import Document, Observation, Prepared, RangeDigest
from trio_repair._summary import summarize
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores._sqlite_store import SqliteStore
from trio_repair.stores.sqlite_cache import open_sqlite_cache
from trio_repair.stores.sqlite_text import open_sqlite_text
from trio_repair.stores.sqlite_vector import open_sqlite_vector

GENEROUS = 30.0

Opener = Callable[..., AbstractAsyncContextManager[Any]]

OPENERS: dict[str, Opener] = {
    "text": functools.partial(open_sqlite_text, synchronous="normal"),
    "vector": functools.partial(
        open_sqlite_vector, embedder=HashingEmbedder(8), chunker=WindowChunker(40, 10), synchronous="normal"
    ),
    "cache": functools.partial(open_sqlite_cache, synchronous="normal"),
}


async def prepared(store: SqliteStore, documents: Sequence[Document]) -> list[Prepared]:
    answers = await store.prepare(documents)
    for answer in answers:
        assert isinstance(answer, Prepared), answer
    return [answer for answer in answers if isinstance(answer, Prepared)]


async def scan(store: SqliteStore, after: str | None = None) -> list[tuple[str, Observation]]:
    """What a scan shows. The ranges of the same documents must say the same, or that a look is needed."""
    async with store.open_scan(after) as pages:
        found = [entry async for page in pages for entry in page]
    summarized = await summaries(store, after)
    assert [doc_id for doc_id, _ in found] == [doc_id for doc_id, _, _ in summarized]
    for (_, view), (_, summary, looked) in zip(found, summarized, strict=True):
        assert summary in (summarize(view, store.traits), "")
        assert view == looked
    return found


async def summaries(store: SqliteStore, after: str | None = None) -> list[tuple[str, str, Observation]]:
    """Each document of a snapshot, its summary in the ranges, and a look at it; each range is what its digest says."""
    found: list[tuple[str, str, Observation]] = []
    async with store.open_ranges(after) as held:
        while some := await held.ranges(after, 300, 2):
            for bound, digest in some:
                listing = await held.listing(after, bound)
                assert not listing.more
                assert digest == RangeDigest.of(listing.entries)
                assert [digest] == await held.digests(after, [bound], 300)
                parts = listing.entries.decode().split("\0")[:-1]
                found += zip(parts[::2], parts[1::2], await held.look(parts[::2]), strict=True)
                after = bound
    return found


def sql(path: Path, *statements: str) -> list[tuple[Any, ...]]:
    """Run plain SQL as a foreign program does; the rows of the last statement."""
    connection = apsw.Connection(str(path))
    try:
        connection.enable_load_extension(True)  # noqa: FBT003 - the driver takes no keyword
        connection.load_extension(sqlite_vec.loadable_path())
        connection.set_busy_timeout(5000)
        rows: list[tuple[Any, ...]] = []
        for statement in statements:
            rows = list(connection.execute(statement))
        return rows
    finally:
        connection.close()


def sound(path: Path) -> bool:
    """Whether SQLite finds nothing wrong with the file, its full-text index included."""
    (row,) = sql(path, "PRAGMA integrity_check")
    if sql(path, "SELECT name FROM sqlite_schema WHERE name = 'documents_fts'"):
        sql(path, "INSERT INTO documents_fts (documents_fts) VALUES ('integrity-check')")
    return row == ("ok",)


def whole(path: Path, kind: str) -> bool:
    """Whether every document in the file has all of its rows and no others, by direct SQL."""
    if kind == "text":
        missing = (
            "SELECT count(*) FROM documents WHERE deleted = 0 AND id NOT IN (SELECT id FROM documents_fts_docsize)"
        )
        (count,) = sql(path, missing)[0]
        return count == 0
    if kind == "vector":
        tables = [name for (name,) in sql(path, "SELECT name FROM sqlite_schema WHERE name GLOB 'vectors_*_rowids'")]
        (odd,) = sql(
            path,
            "SELECT count(*) FROM (SELECT d.chunk_count AS n, (SELECT count(*) FROM chunks AS c WHERE c.doc_id = d.doc_id)"
            " AS held FROM documents AS d) WHERE n <> held",
        )[0]
        (chunks,) = sql(path, "SELECT count(*) FROM chunks")[0]
        vectors = sum(sql(path, f"SELECT count(*) FROM {table}")[0][0] for table in tables)
        return bool(odd == 0 and chunks == vectors)
    return True
