"""The embedded cache: documents in a SQLite table, each for a while.

An entry that has expired is absent to every look, whether its row is still there or not. Rows of expired entries go
in the course of later writes, some with each, or by `SQLiteCacheStore.evict`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import apsw

from trio_repair import AbsentMeans, ContentDefinition, Document, Fence, StoredDocument, StoreTraits

from ._encoding import moment_text
from ._layout import (
    DIGEST_FITS,
    DOC_ID_COLUMN,
    METADATA_COLUMN,
    NUMBER_COLUMN,
    SQL_NOW,
    Layout,
    Put,
    Wholeness,
    insert_rows,
    plain_columns,
    revision_triggers,
)
from ._settings import path_setting, refuse_unknown, seconds_setting, synchronous_setting
from ._sqlite import Session, SqliteFile, Synchronous
from ._sqlite_store import MAX_BATCH, SqliteStore
from ._threaded_store import opened

__all__ = ["SQLiteCacheStore", "open_sqlite_cache", "sqlite_cache_from_settings"]

_EVICTED_PER_WRITE: Final = 512
_EVICTED_PER_CALL: Final = 5000

_SCHEMA: Final = f"""
CREATE TABLE documents (
  id INTEGER PRIMARY KEY,
  {DOC_ID_COLUMN},
  {NUMBER_COLUMN},
  digest TEXT,
  updated_at TEXT,
  written_at TEXT NOT NULL DEFAULT ({SQL_NOW}),
  expires_at REAL,
  rev INTEGER NOT NULL DEFAULT 0,
  text TEXT NOT NULL,
  {METADATA_COLUMN}
) STRICT;
CREATE INDEX documents_expiring ON documents (expires_at) WHERE expires_at IS NOT NULL;
{revision_triggers(DIGEST_FITS)}"""

_INSERT: Final = (
    "INSERT INTO documents (doc_id, number, digest, updated_at, written_at, expires_at, rev, text, metadata) VALUES"
)
_UPSERT: Final = (
    "ON CONFLICT (doc_id) DO UPDATE SET number = excluded.number, digest = excluded.digest,"
    " updated_at = excluded.updated_at, written_at = excluded.written_at, expires_at = excluded.expires_at,"
    " rev = excluded.rev, text = excluded.text, metadata = excluded.metadata"
)
_EVICT: Final = (
    "DELETE FROM documents WHERE id IN (SELECT id FROM documents WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)"
)


class _CacheLayout(Layout):
    """A row for each entry; `expires_at` is Unix seconds, or NULL for never."""

    keeps_tombstones = False

    def __init__(self, store: str, content: ContentDefinition, clock: Callable[[], float], ttl: float | None) -> None:
        super().__init__(store, content, clock)
        self._ttl = ttl

    def columns(self, connection: apsw.Connection, content: str) -> str:  # noqa: ARG002 - other kinds need it
        return f"{plain_columns(content, deleted='0')}, 1 AS parts, 1 AS whole, NULL AS embedding"

    def whole(self, connection: apsw.Connection) -> Sequence[Wholeness]:  # noqa: ARG002 - other kinds need it
        return [Wholeness(condition="TRUE")]

    def visible(self) -> str:
        return "(d.expires_at IS NULL OR d.expires_at > :now)"

    def put(self, session: Session, puts: Sequence[Put]) -> None:
        now = self.now_text()
        expires_at = None if self._ttl is None else self.clock() + self._ttl
        rows = []
        for put in puts:
            document, version = put.document, put.document.version
            updated_at = None if version.updated_at is None else moment_text(version.updated_at)
            rows.append(
                (
                    document.doc_id,
                    version.number,
                    version.digest,
                    updated_at,
                    now,
                    expires_at,
                    put.revision,
                    document.text,
                    put.payload,
                )
            )
        insert_rows(session.main, _INSERT, rows, _UPSERT)
        session.main.execute(_EVICT, (self.clock(), _EVICTED_PER_WRITE))

    def erase(self, session: Session, ids: str) -> None:
        session.main.execute("DELETE FROM documents WHERE doc_id IN (SELECT value FROM json_each(?))", (ids,))

    def evict(self, session: Session) -> int:
        """Delete some rows of expired entries, oldest first; how many."""
        main = session.main
        main.execute("BEGIN IMMEDIATE")
        try:
            main.execute(_EVICT, (self.clock(), _EVICTED_PER_CALL))
            evicted = main.changes()
            session.begin_commit()
            main.execute("COMMIT")
        finally:
            if main.in_transaction:
                main.execute("ROLLBACK")
        return evicted


class SQLiteCacheStore(SqliteStore):
    """A cache in one SQLite file; made by `open_sqlite_cache`."""

    def __init__(self, file: SqliteFile, traits: StoreTraits, layout: _CacheLayout) -> None:
        super().__init__(file, traits, layout)
        self._cache = layout

    async def get(self, doc_id: str) -> Document | None:
        """The cached document; None if it is absent, expired, or not what its digest says.

        Raises:
            StoreUnavailable: the file cannot be read now.

        **If cancelled:** nothing has changed.
        """
        (answer,) = await self.read([doc_id])
        return answer.document if isinstance(answer, StoredDocument) else None

    async def evict(self) -> int:
        """Delete the rows of all expired entries, in transactions of 5,000; returns how many there were.

        Raises:
            StoreUnavailable: the file cannot be written now; some may be deleted.

        **If cancelled:** some may be deleted.
        """
        total = 0
        while True:
            evicted = await self._run(self._cache.evict)
            total += evicted
            if evicted < _EVICTED_PER_CALL:
                return total


def open_sqlite_cache(
    path: str | os.PathLike[str],
    *,
    content: ContentDefinition | None = None,
    ttl: float | None = None,
    create: bool = False,
    synchronous: Synchronous = "full",
    name: str = "cache",
    clock: Callable[[], float] = time.time,
) -> AbstractAsyncContextManager[SQLiteCacheStore]:
    """Open a cache in one SQLite file, and close it on the way out.

    Args:
        path: the file. On a directory that cannot be written to, the cache is opened for reading only.
        content: what a document's digest covers; None: the text alone. A file remembers what it was made for.
        ttl: seconds after which an entry that is written now expires; None: never.
        create: make the file (mode 0600) if it is not there.
        synchronous: how hard commits are pushed to the disk; see `Synchronous`.
        name: the store's name in errors.
        clock: Unix seconds, by which entries expire.

    Raises (at once, or on entering):
        InvalidValue: an argument is not usable.
        StoreFileError: the file is missing, foreign, damaged, locked, or made for other content.

    **If cancelled:** the file is closed. It may have been made; never in part.
    """
    definition = ContentDefinition() if content is None else content
    file = SqliteFile(
        path=Path(path),
        store=name,
        kind="sqlite-cache",
        content=definition,
        schema=_SCHEMA,
        create=create,
        synchronous=synchronous,
    )
    seconds = seconds_setting({"ttl": ttl}, "ttl")
    traits = StoreTraits(
        fence=Fence.STRONG,
        holds_text=True,
        keeps_tombstones=False,
        absent=AbsentMeans.MISSING,
        max_batch=MAX_BATCH,
    )
    return opened(SQLiteCacheStore(file, traits, _CacheLayout(name, definition, clock, seconds)))


def sqlite_cache_from_settings(
    settings: Mapping[str, Any], *, name: str, directory: Path, content: ContentDefinition, create: bool
) -> AbstractAsyncContextManager[SQLiteCacheStore]:
    """The kind "sqlite-cache" of a configuration file: `path`, and perhaps `synchronous` and `ttl` (seconds).

    Raises:
        InvalidValue: a setting is unknown, missing or wrong; its key is named.
    """
    refuse_unknown(settings, ("path", "synchronous", "ttl"))
    return open_sqlite_cache(
        path_setting(settings, directory),
        content=content,
        ttl=seconds_setting(settings, "ttl"),
        create=create,
        synchronous=synchronous_setting(settings),
        name=name,
    )
