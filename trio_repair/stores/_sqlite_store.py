"""The seam `trio_repair.abc.Store` on a SQLite file: each call is one function in the store's thread."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import apsw

from trio_repair import (
    InvalidValue,
    Observation,
    StoredDocument,
    StoreError,
    StoreTraits,
    StoreUnavailable,
    Write,
    WriteAnswer,
)
from trio_repair.abc import ScanPage

from ._encoding import check_limit, load_json, moment_text
from ._fence import Change
from ._layout import Layout
from ._ranges import SqliteRanges
from ._sqlite import Session, SqliteFile, open_file
from ._sqlite_errors import describe, translate
from ._thread import Call, CallAbandoned, StoreThread
from ._threaded_store import Pages, ThreadedStore
from ._writing import make_changes

MAX_BATCH: Final = 1024
"""Documents to a call: with four times fewer, a commit and its statements cost each of them a quarter more."""

T = TypeVar("T")
S = TypeVar("S", bound="SqliteStore")


class SqliteStore(ThreadedStore[Session]):
    """The methods of `trio_repair.abc.Store` on top of a `Layout`."""

    def __init__(self, file: SqliteFile, traits: StoreTraits, layout: Layout) -> None:
        thread: StoreThread[Session] = StoreThread(
            file.store,
            open_resource=lambda: Session(file),
            close_resource=Session.close,
            interrupt=Session.interrupt,
        )
        super().__init__(file.store, repr(str(file.path)), file.content, traits, thread)
        self._file = file
        self._layout = layout

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """Replace each document whose expected token still holds, all in one transaction.

        Raises:
            InvalidValue: more documents than `traits.max_batch`, or one twice.
            StoreUnavailable: nothing was written.

        **If cancelled:** all of it may have landed, or nothing; never after Cancelled was raised, unless the disk
        takes longer than 0.1 s over a commit that had begun.
        """
        return await super().write(writes)

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> AsyncGenerator[AsyncIterator[ScanPage], None]:
        """One snapshot of all documents and tombstones with doc_id > `after`, in byte order, 1,000 to a page.

        The snapshot has a connection of its own; while it is open, SQLite's write-ahead log can only grow.

        Raises:
            StoreUnavailable: the file cannot be read now.

        **If cancelled:** nothing has changed, and the snapshot is let go.
        """
        async with self._snapshot(Session.open_reader, Session.close_reader) as reader:
            yield Pages(lambda last: self._run(self._layout.page, reader, last), after)

    @asynccontextmanager
    async def open_ranges(self, after: str | None = None) -> AsyncGenerator[SqliteRanges, None]:  # noqa: ARG002
        """As `open_scan`, by ranges, which cost a check a small part of what observations do.

        Raises:
            StoreUnavailable: the file cannot be read now.

        **If cancelled:** nothing has changed, and the snapshot is let go.
        """
        async with self._snapshot(Session.open_reader, Session.close_reader) as reader:
            yield SqliteRanges(self._run, self._layout, reader)

    async def _open(self) -> None:
        await self._thread.run(self._open_call)

    # In the store's thread.

    def _open_call(self, call: Call[Session]) -> None:
        session = call.resource
        session.begin(call)
        try:
            open_file(self._file)
            self._layout.select(session.main, "FROM documents AS d LIMIT 1")  # the tables are there and can be read
        except (apsw.BusyError, apsw.LockedError, apsw.IOError, apsw.FullError, apsw.NoMemError) as error:
            problem = f"{self._file.path} cannot be used now: {describe(error)}"
            raise StoreUnavailable(self._name, problem) from error
        except (apsw.Error, OSError) as error:
            raise self._file.error(f"cannot be used: {describe(error)}") from error
        except ValueError as error:
            raise self._file.error("does not say what it was made for; it is damaged") from error

    def _call(self, call: Call[Session], work: Callable[..., T], args: tuple[Any, ...]) -> T:
        session = call.resource
        try:
            session.begin(call)
            return work(session, *args)
        except (StoreError, apsw.Error, OSError, CallAbandoned, UnicodeDecodeError) as error:
            translated = translate(self._name, error)
            if translated is error:
                raise
            raise translated from error
        finally:
            session.call = None  # an idle thread must not keep the last call's documents alive

    def _observe_call(self, session: Session, doc_ids: Sequence[str]) -> list[Observation]:
        return self._layout.observations(session, doc_ids)

    def _read_call(self, session: Session, doc_ids: Sequence[str]) -> list[StoredDocument | StoreError]:
        return self._layout.documents(session, doc_ids)

    def _count_call(self, session: Session) -> int:
        return self._layout.count(session)

    def _change_call(self, session: Session, changes: Sequence[Change]) -> list[WriteAnswer]:
        return make_changes(session, self._layout, changes)


class TombstoneStore(SqliteStore):
    """A store that keeps tombstones, and can list them for a purge."""

    async def tombstones(
        self, before: dt.datetime | None = None, *, after: str | None = None, limit: int = 1000
    ) -> Sequence[str]:
        """Ids of tombstones that were written before a moment, in byte order: one page of them.

        For the next page, pass the last id as `after`; an empty page is the end.

        Args:
            before: written earlier than this, timezone-aware; None: all.
            after: ids greater than this; None: from the start.
            limit: ids to a page, at least 1.

        Raises:
            InvalidValue: `before` is naive, or `limit` is less than 1.
            StoreUnavailable: the file cannot be read now.

        **If cancelled:** nothing has changed.
        """
        if before is not None and before.tzinfo is None:
            raise InvalidValue("before", "must be a timezone-aware datetime; use datetime.now(timezone.utc)")
        check_limit(limit)
        bound = None if before is None else moment_text(before)
        sql = (
            "SELECT CAST(json_group_array(doc_id) AS BLOB) FROM (SELECT doc_id FROM documents WHERE deleted = 1"
            " AND doc_id > ?1 AND (?2 IS NULL OR written_at < ?2) ORDER BY doc_id LIMIT ?3)"
        )
        floor = "" if after is None else after
        return await self._run(lambda session: load_json(session.main.execute(sql, (floor, bound, limit)).get))
