"""The seam `trio_repair.abc.Store` on a SQLite file: each call is one function in the store's thread."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import apsw
import trio

from trio_repair import (
    Document,
    InvalidValue,
    Observation,
    Prepared,
    Removal,
    StoredDocument,
    StoreError,
    StoreTraits,
    StoreUnavailable,
    Write,
    WriteAnswer,
)
from trio_repair.abc import ScanPage

from ._encoding import check_limit, load_json, moment_text
from ._layout import Layout
from ._preparing import prepare_document
from ._ranges import SqliteRanges
from ._sqlite import Session, SqliteFile, open_file
from ._sqlite_errors import describe, translate
from ._thread import Call, CallAbandoned, StoreThread
from ._writing import Change, make_changes

MAX_BATCH: Final = 1024
"""Documents to a call: with four times fewer, a commit and its statements cost each of them a quarter more."""

T = TypeVar("T")
S = TypeVar("S", bound="SqliteStore")


class SqliteStore:
    """The methods of `trio_repair.abc.Store` on top of a `Layout`."""

    def __init__(self, file: SqliteFile, traits: StoreTraits, layout: Layout) -> None:
        self._file = file
        self._traits = traits
        self._layout = layout
        self._name = file.store
        self._thread: StoreThread[Session] = StoreThread(
            file.store,
            open_resource=lambda: Session(file),
            close_resource=Session.close,
            interrupt=Session.interrupt,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self._file.path)!r}>"

    @property
    def traits(self) -> StoreTraits:
        """What this store promises; constant while it is open."""
        return self._traits

    @property
    def abandoned_threads(self) -> int:
        """How many driver threads hung and were left behind."""
        return self._thread.abandoned

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        """Look at documents without their content.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: the file cannot be read now.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(doc_ids))
        return await self._run(self._layout.observations, list(doc_ids))

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        """Read documents. `StoreRejected` for one whose content is not what its digest says.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: the file cannot be read now.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(doc_ids))
        return await self._run(self._layout.documents, list(doc_ids))

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        """Check that digest and content agree and that the metadata is JSON; `StoreRejected` otherwise.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(documents))
        await trio.lowlevel.checkpoint()
        return [prepare_document(self._name, self._file.content, document) for document in documents]

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """Replace each document whose expected token still holds, all in one transaction.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: nothing was written.

        **If cancelled:** all of it may have landed, or nothing; never after Cancelled was raised, unless the disk
        takes longer than 0.1 s over a commit that had begun.
        """
        self._check_batch(len(writes))
        changes = [Change(one.prepared.document.doc_id, one.token, one.prepared) for one in writes]
        return await self._change(changes)

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        """Take each document's rows away, tombstones too, where the expected token still holds, in one transaction.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: nothing was removed.

        **If cancelled:** as `write`.
        """
        self._check_batch(len(removals))
        return await self._change([Change(one.doc_id, one.token, None) for one in removals])

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> AsyncGenerator[AsyncIterator[ScanPage], None]:
        """One snapshot of all documents and tombstones with doc_id > `after`, in byte order, 1,000 to a page.

        The snapshot has a connection of its own; while it is open, SQLite's write-ahead log can only grow.

        Raises:
            StoreUnavailable: the file cannot be read now.

        **If cancelled:** nothing has changed, and the snapshot is let go.
        """
        reader = await self._run(lambda session: session.open_reader())
        try:
            yield _Pages(self, reader, after)
        finally:
            self._thread.post(lambda call: call.resource.close_reader(reader))

    @asynccontextmanager
    async def open_ranges(self, after: str | None = None) -> AsyncGenerator[SqliteRanges, None]:  # noqa: ARG002
        """As `open_scan`, by ranges, which cost a check a small part of what observations do.

        Raises:
            StoreUnavailable: the file cannot be read now.

        **If cancelled:** nothing has changed, and the snapshot is let go.
        """
        reader = await self._run(lambda session: session.open_reader())
        try:
            yield SqliteRanges(self._run, self._layout, reader)
        finally:
            self._thread.post(lambda call: call.resource.close_reader(reader))

    async def count(self) -> int:
        """How many documents and tombstones the store holds.

        Raises:
            StoreUnavailable: the file cannot be read now.

        **If cancelled:** nothing has changed.
        """
        return await self._run(self._layout.count)

    async def aclose(self) -> None:
        """Close the connections and end the thread; a thread that hangs is left behind. Idempotent.

        **If cancelled:** the store is closed all the same.
        """
        await self._thread.aclose()

    async def _open(self) -> None:
        await self._thread.run(self._open_call)

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

    # In the Trio thread.

    def _check_batch(self, size: int) -> None:
        if size > self._traits.max_batch:
            raise InvalidValue(
                "batch", f"names {size} documents; the {self._name} store takes {self._traits.max_batch}"
            )

    async def _change(self, changes: list[Change]) -> Sequence[WriteAnswer]:
        if len({change.doc_id for change in changes}) < len(changes):
            raise InvalidValue("batch", "names a document twice; one call writes each document once")
        return await self._run(make_changes, self._layout, changes)

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        return await self._thread.run(self._call, work, args)

    # In the store's thread.

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


class _Pages:
    """The pages of one scan; each is a call of its own, so that other calls come in between."""

    def __init__(self, store: SqliteStore, reader: apsw.Connection, after: str | None) -> None:
        self._store = store
        self._reader = reader
        self._after = "" if after is None else after

    def __aiter__(self) -> _Pages:
        return self

    async def __anext__(self) -> ScanPage:
        page = await self._store._run(self._store._layout.page, self._reader, self._after)
        if not page:
            raise StopAsyncIteration
        self._after = page[-1][0]
        return page


@asynccontextmanager
async def opened(store: S) -> AsyncGenerator[S, None]:
    """A store whose file was looked at, closed on the way out."""
    try:
        await store._open()
        yield store
    finally:
        await store.aclose()
