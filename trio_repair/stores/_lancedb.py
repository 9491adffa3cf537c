"""A LanceDB table in a directory of its own: who may use it, how it is looked at, changed and kept small.

What is written is one commit of the table, however many documents and rows it has. LanceDB would let several writers
in, and merge what they do; it tells how many rows were replaced, though, not whose. So one handle at a time may use the
table, by a lock on a file beside it. All of this runs in the store's thread.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final

import attrs

from trio_repair import StoreUnavailable

from ._directory import StoreDirectory, check_label, open_private
from ._directory_errors import LOCK_BUSY, LOCK_SECONDS, CommitInDoubt, DriverFailed
from ._directory_session import DirectorySession, SpooledSnapshot
from ._lancedb_directory import COMMON, LOCK, SCHEMA, TABLE, VECTOR, connect, dimensions, vector_field
from ._lancedb_errors import driver_errors
from ._spool import Spool

logger = logging.getLogger("trio_repair.stores")

LOOK: Final = (*COMMON, "ordinal")
"""The columns that make an observation, beside those that tell whether there is a vector."""

_TIDY_COMMITS: Final = 64
"""With fewer of them since the last time, the table is not made small again."""
_TIDY_COMMITS_AT_MOST: Final = 512
_TIDY_SHARE: Final = 0.25
"""To make it small rewrites much of it, and so is done when at least such a share of its rows was written anew."""
_KEPT: Final = timedelta(seconds=10)
"""How long a version stays that is not the present one, for other programs that read the table."""


@attrs.define(eq=False)
class Snapshot(SpooledSnapshot):
    """One moment of the table."""

    batches: Iterator[Any] | None
    """Of the rows that are not spooled yet; None at the end."""

    @property
    def filled(self) -> bool:
        return self.batches is None

    def close(self) -> None:
        self.batches = None
        super().close()


class Session(DirectorySession[Snapshot]):
    """The open table of one store thread."""

    lock_name = LOCK

    def __init__(self, directory: StoreDirectory) -> None:
        super().__init__(directory)
        self._table: Any = None
        self._lock: int | None = None
        self._version = 0
        # Since the table was made small.
        self._commits = 0
        self._written = 0

    def open(self) -> None:
        if self._table is not None:
            return
        check_label(self.directory)
        lock = self._take_lock()
        try:
            with driver_errors():
                table = connect(self.directory.path).open_table(TABLE)
                version = int(table.version)
                _probe(self.directory, table)
                # As many commits as there are versions that were not cleared away.
                self._commits = sum(1 for _ in (self.directory.path / f"{TABLE}.lance" / "_versions").iterdir())
        except DriverFailed as error:
            os.close(lock)
            raise self.directory.error(f"cannot be used: {error.problem}") from error
        except BaseException:
            os.close(lock)
            raise
        self._identity = self._seen()
        self.salt = secrets.randbits(63)
        self._table, self._lock, self._version, self._written = table, lock, version, 0

    @property
    def table(self) -> Any:
        """The table; opened when first needed."""
        self.open()
        return self._table

    @property
    def next_revision(self) -> int:
        """Above every revision in the table: they are numbers of its versions, of which each commit makes one."""
        self.open()
        return self._version + 1

    def look(self, where: str | None, more: Sequence[str] = ()) -> Any:
        """A query of the columns of an observation, and more of them, with one that tells whether a vector is there."""
        table = self.table
        columns = {name: name for name in (*LOOK, *more)}
        there = [f"(dimension = {each} AND {VECTOR}{each} IS NOT NULL)" for each in dimensions(table.schema)]
        columns["embedded"] = " OR ".join(there) or "false"
        query = table.search().select(columns).limit(None)
        return query if where is None else query.where(where)

    def ready(self, dimension: int) -> Any:
        """The schema of rows that can be written, with a column for vectors of so many numbers.

        Raises:
            CallAbandoned: the caller has gone.
            StoreUnavailable: there is a column of that name that is something else.
        """
        table = self.table
        if dimension not in dimensions(table.schema):
            field = vector_field(dimension)
            if field.name in table.schema.names:
                raise StoreUnavailable(self.store, f"the column {field.name} is not one of its vectors; remove it")
            if self.call is not None:
                self.call.raise_if_abandoned()
            with driver_errors():  # a column without a value in any row: no document changes by it
                table.add_columns(field)
                self._version = int(table.version)
        return table.schema

    def commit(self, rows: Any, replaced: str | None) -> None:
        """Put rows into the table and take rows away: one commit, all or nothing.

        Args:
            rows: what to put in, in place of rows with the same doc_id and ordinal; None: nothing.
            replaced: which rows to take away, by SQL, unless they are put in.

        Raises:
            CallAbandoned: the caller has gone; nothing was written.
            CommitInDoubt: the driver failed in the commit itself.
        """
        table = self.table
        if self.call is not None:
            self.call.begin_commit()
        done = False
        try:
            with driver_errors():
                if rows is None:
                    table.delete(replaced)
                else:
                    # The columns of vectors may be empty, in a tombstone all of them: "null" is how LanceDB takes that.
                    _merge(table, replaced).execute(rows, on_bad_vectors="null")
                self._version = int(table.version)
                done = True
        except DriverFailed as error:
            raise CommitInDoubt(StoreUnavailable(self.store, error.problem)) from error
        finally:
            if not done:
                self.close()  # the next call opens the table as it is then
        self._commits += 1
        self._written += 0 if rows is None else rows.num_rows

    def tidy(self) -> None:
        """Make the table small again if it is due: fewer and larger files, the index over all rows, old versions gone.

        Nothing that is looked at changes. While a scan still reads its snapshot, that is not taken away under it.
        """
        if self._table is None or self._commits < _TIDY_COMMITS:
            return
        if self._identity != self._seen():
            return  # the next call will say so
        if any(not snapshot.filled for snapshot in self._snapshots):
            return
        try:
            with driver_errors():
                rows = self._table.count_rows()
                if self._written < rows * _TIDY_SHARE and self._commits < _TIDY_COMMITS_AT_MOST:
                    return
                # Files of writers that were killed belong to no version; nobody else is writing now.
                self._table.optimize(cleanup_older_than=_KEPT, delete_unverified=True)
                self._version = int(self._table.version)
        except DriverFailed as error:
            logger.warning("%s store: its table could not be made small: %s", self.store, error.problem)
        self._commits = self._written = 0

    def open_snapshot(self, after: str | None) -> Snapshot:
        spool = Spool(after)
        try:
            batches = iter(self.look(None).to_batches(1000))
        except BaseException:
            spool.close()
            raise
        snapshot = Snapshot(spool, batches)
        self._snapshots.add(snapshot)
        return snapshot

    def close(self) -> None:
        super().close()
        table, self._table = self._table, None
        lock, self._lock = self._lock, None
        if table is not None:
            with suppress(DriverFailed), driver_errors():
                table.close()
        if lock is not None:
            os.close(lock)

    def _take_lock(self) -> int:
        path = self.directory.path / LOCK
        deadline = time.monotonic() + LOCK_SECONDS
        try:
            lock = open_private(str(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        except OSError as error:
            raise self.directory.error(f"cannot be locked: {error.strerror}") from error
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise self.directory.error(f"cannot be used: {LOCK_BUSY}") from error
                except OSError as error:
                    raise self.directory.error(f"cannot be locked: {error.strerror}; use a local disk") from error
                else:
                    return lock
                self.raise_if_abandoned()
                time.sleep(0.02)
        except BaseException:
            os.close(lock)
            raise


def quoted(doc_ids: Sequence[str]) -> str:
    """A condition on rows: they belong to one of these documents. LanceDB takes no parameters.

    In its SQL a quote is doubled, and nothing else in a string means anything; `test_hostile_ids` exercises this.
    """
    return "doc_id IN (" + ",".join("'" + doc_id.replace("'", "''") + "'" for doc_id in doc_ids) + ")"


def columns_of(found: Any) -> Mapping[str, list[Any]]:
    """An Arrow table or batch as lists."""
    return {name: column.to_pylist() for name, column in zip(found.schema.names, found.columns, strict=True)}


def _merge(table: Any, replaced: str | None) -> Any:
    if replaced is None:
        merge = table.merge_insert(["doc_id", "ordinal"])
        return merge.when_matched_update_all().when_not_matched_insert_all()
    # Also by revision, which is new: so each old row of these documents goes, also one that is double, and all new rows
    # are put in. It costs more, because LanceDB looks at every row then.
    merge = table.merge_insert(["doc_id", "ordinal", "revision"])
    return merge.when_not_matched_insert_all().when_not_matched_by_source_delete(replaced)


def _probe(directory: StoreDirectory, table: Any) -> None:
    """See that the columns are there, and that rows can be read, of some file."""
    lacking = [field.name for field in SCHEMA if field not in table.schema]
    if lacking:
        raise directory.error(f"cannot be used: its table lacks {', '.join(lacking)}")
    table.search().select(list(LOOK)).limit(1).to_arrow()
