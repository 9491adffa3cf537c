"""A tantivy index in a directory of its own: who may use it, what its rows are, and what the driver's errors mean.

A row is one document of the index. Everything that an observation shows lies in columns of numbers ("fast fields"), so
that a thousand documents are looked at by a few calls, and no text is unpacked for it. The driver's classes are not
for many threads: all of this runs in the store's thread.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import attrs
import tantivy

from trio_repair import StoreUnavailable

from ._directory import StoreDirectory, check_label
from ._directory_errors import LOCK_SECONDS, CommitInDoubt, DriverFailed
from ._directory_session import DirectorySession, SpooledSnapshot
from ._spool import Spool
from ._tantivy_directory import DIGEST_FIELDS, NUMBERS, SIGNED, make_schema
from ._tantivy_errors import driver_errors

_LOCK: Final = ".tantivy-writer.lock"

_HEAP_BYTES: Final = 64 * 2**20


def id_key(doc_id: str) -> tuple[int, int]:
    """128 bits that stand for an id in the columns: whose row is whose is found without unpacking a row."""
    key = hashlib.sha256(doc_id.encode()).digest()
    return int.from_bytes(key[:8], "big"), int.from_bytes(key[8:16], "big")


@attrs.frozen(kw_only=True)
class Columns:
    """What the columns say of one row; None where a column has no value."""

    id_high: int | None
    id_low: int | None
    revision: int | None
    session: int | None
    number: int | None
    digest: tuple[int | None, ...]
    deleted: bool | None
    updated_at: int | None
    updated_offset: int | None


@attrs.define(eq=False)
class Snapshot(SpooledSnapshot):
    """One moment of the index."""

    searcher: tantivy.Searcher
    spooled: int = 0
    """Rows that lie in the spool."""
    lowest: int | None = 0
    """Rows of this revision and those above do not lie there; None at the end."""

    @property
    def filled(self) -> bool:
        return self.lowest is None


class Session(DirectorySession[Snapshot]):
    """The open index of one store thread."""

    lock_name = _LOCK

    def __init__(self, directory: StoreDirectory) -> None:
        super().__init__(directory)
        self.schema = make_schema()
        self._index: tantivy.Index | None = None
        self._writer: tantivy.IndexWriter | None = None
        self._searcher: tantivy.Searcher | None = None
        self._committed = 0

    def open(self) -> None:
        if self._writer is not None:
            return
        check_label(self.directory)
        writer: tantivy.IndexWriter | None = None
        try:
            with driver_errors():
                index = tantivy.Index.open(str(self.directory.path))
                index.config_reader("manual")
                writer = self._lock(index)
                index.reload()
                searcher = index.searcher()
                _probe(searcher, self.schema)
                self._committed = writer.commit_opstamp
        except DriverFailed as error:
            if writer is not None:
                _end(writer)
            raise self.directory.error(f"cannot be used: {error.problem}") from error
        self._identity = self._seen()
        self.salt = secrets.randbits(63)
        self._index, self._writer, self._searcher = index, writer, searcher

    @property
    def index(self) -> tantivy.Index:
        """The index; opened when first needed."""
        self.open()
        assert self._index is not None
        return self._index

    @property
    def searcher(self) -> tantivy.Searcher:
        """What was last committed; opened when first needed."""
        self.open()
        assert self._searcher is not None
        return self._searcher

    @property
    def next_revision(self) -> int:
        """Above every revision in the index.

        tantivy counts operations, keeps the count in the very file that commits, and goes on from it: each row takes
        two of them, so that as many revisions as rows are never given twice.
        """
        self.open()
        return self._committed + 1

    def commit(self, erased: Sequence[str], added: Sequence[tantivy.Document]) -> None:
        """Take the rows of these ids away and put these in their place: one commit, all or nothing.

        Raises:
            StoreUnavailable: nothing was written.
            CallAbandoned: the caller has gone; nothing was written.
            CommitInDoubt: the driver failed in the commit itself.
        """
        self.open()
        assert self._writer is not None
        assert self._index is not None
        if self.call is not None:
            # Before anything is handed to the writer: what it holds need never be taken back. A rollback would restart
            # it beside merges that are under way.
            self.call.begin_commit()
        fed = done = False
        try:
            with driver_errors():
                for doc_id in erased:
                    self._writer.delete_documents_by_term("doc_id", doc_id)
                for row in added:
                    self._writer.add_document(row)
                fed = True
                self._committed = self._writer.commit()
                self._index.reload()
                self._searcher = self._index.searcher()
                done = True
        except DriverFailed as error:
            problem = StoreUnavailable(self.store, error.problem)
            if fed:
                raise CommitInDoubt(problem) from error
            raise problem from error
        finally:
            if not done:
                self.close()  # with all that was not committed; the next call opens the index as it is then

    def open_snapshot(self, after: str | None) -> Snapshot:
        snapshot = Snapshot(Spool(after), self.searcher)
        self._snapshots.add(snapshot)
        return snapshot

    def close(self) -> None:
        super().close()
        writer, self._writer = self._writer, None
        self._index = self._searcher = None
        if writer is not None:
            _end(writer)

    def _lock(self, index: tantivy.Index) -> tantivy.IndexWriter:
        """The one writer. One thread of it: each makes a segment of its own in every commit."""
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return index.writer(heap_size=_HEAP_BYTES, num_threads=1)
            except ValueError as error:
                if "LockBusy" not in str(error) or time.monotonic() > deadline:
                    raise
            self.raise_if_abandoned()
            time.sleep(0.02)


def columns_of(searcher: tantivy.Searcher, addresses: list[tantivy.DocAddress]) -> list[Columns]:
    """What the columns say of these rows, in order."""
    held: dict[str, list[Any]] = {
        name: searcher.fast_field_values(name, addresses) for name in (*NUMBERS, *SIGNED, "deleted")
    }
    digests = zip(*(held.pop(name) for name in DIGEST_FIELDS), strict=True)
    names = list(held)
    rest = zip(*held.values(), strict=True)
    return [
        Columns(digest=digest, **dict(zip(names, values, strict=True)))
        for digest, values in zip(digests, rest, strict=True)
    ]


def _probe(searcher: tantivy.Searcher, schema: tantivy.Schema) -> None:
    """See that the fields are there and can be read, on any one row."""
    for query in (tantivy.Query.all_query(), tantivy.Query.term_query(schema, "deleted", field_value=True)):
        columns_of(searcher, [address for _, address in searcher.search(query, limit=1, count=False).hits])


def _end(writer: tantivy.IndexWriter) -> None:
    """Give up the lock, when merges have ended: one that goes on could write over what the next writer commits."""
    with suppress(DriverFailed), driver_errors():
        writer.wait_merging_threads()
