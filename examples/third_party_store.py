"""A store of your own, and the one line that proves it; then the same store with its fence taken out, which is caught.

`again` opens a second handle on the same file, as another process would. This store takes one call at a time, so
**without `again` nothing races, and nothing is proved about its fence**: the third store here looks at the fence in one
transaction and writes in another, keeps every promise as long as it is alone, and is caught between two handles.

The driver is the standard library's sqlite3, called in worker threads that a deadline does not abandon: each method is
one transaction in one call, so a cancelled caller waits for it, and nothing is ever half written.
"""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio

from trio_repair import (
    AbsentMeans,
    ContentDefinition,
    Document,
    DocumentVersion,
    Fence,
    InvalidValue,
    Observation,
    Prepared,
    Presence,
    Removal,
    StoredDocument,
    StoreRejected,
    StoreTraits,
    StoreUnavailable,
    Write,
    WriteAnswer,
    WriteStatus,
)
from trio_repair.abc import ScanPage
from trio_repair.testing import ContractBroken, check_store

T = TypeVar("T")
SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
    doc_id TEXT PRIMARY KEY, text TEXT, metadata TEXT NOT NULL, number INTEGER, digest TEXT NOT NULL,
    deleted INTEGER NOT NULL, updated_at TEXT, revision INTEGER NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS counter (revision INTEGER NOT NULL);
INSERT INTO counter SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM counter);
"""
PAGE = 500
ABOUT_THE_FENCE = ("stale-refused", "fence-everywhere", "one-creator", "one-winner", "no-lost-update")
ABSENT = Observation(presence=Presence.ABSENT, token="absent")


def version_of(row: sqlite3.Row) -> DocumentVersion:
    """The version that a row holds."""
    updated_at = None if row["updated_at"] is None else dt.datetime.fromisoformat(row["updated_at"])
    return DocumentVersion(
        number=row["number"], digest=row["digest"], deleted=bool(row["deleted"]), updated_at=updated_at
    )


class PlainStore:
    """Documents in one table. Its token is a revision that grows with every write and is never used twice."""

    traits = StoreTraits(fence=Fence.STRONG, holds_text=True, keeps_tombstones=True, absent=AbsentMeans.MISSING)

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = False

    def _require_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("plain", "is closed; open it again")

    async def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in a worker thread as one transaction."""
        self._require_open()

        def run() -> T:
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=5)
            connection.row_factory = sqlite3.Row
            try:
                connection.execute("BEGIN IMMEDIATE")
                result = work(connection)
                connection.execute("COMMIT")
            finally:
                connection.close()  # rolls back what was not committed
            return result

        try:
            return await trio.to_thread.run_sync(run)
        except sqlite3.Error as error:
            raise StoreUnavailable("plain", type(error).__name__) from error

    @staticmethod
    def _row(connection: sqlite3.Connection, doc_id: str) -> sqlite3.Row | None:
        row: sqlite3.Row | None = connection.execute("SELECT * FROM documents WHERE doc_id = ?", (doc_id,)).fetchone()
        return row

    @staticmethod
    def _observation(row: sqlite3.Row | None) -> Observation:
        if row is None:
            return ABSENT
        presence = Presence.TOMBSTONE if row["deleted"] else Presence.LIVE
        return Observation(presence=presence, token=f"r{row['revision']}", version=version_of(row))

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation]:
        """Look at each document."""
        return await self._transaction(
            lambda connection: [self._observation(self._row(connection, doc_id)) for doc_id in doc_ids]
        )

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument]:
        """Read each document with the token it is read under."""

        def stored(connection: sqlite3.Connection, doc_id: str) -> StoredDocument:
            row = self._row(connection, doc_id)
            if row is None:
                return StoredDocument(document=None, token=ABSENT.token)
            metadata = json.loads(row["metadata"])
            document = Document(doc_id=doc_id, text=row["text"], metadata=metadata, version=version_of(row))
            return StoredDocument(document=document, token=f"r{row['revision']}")

        return await self._transaction(lambda connection: [stored(connection, doc_id) for doc_id in doc_ids])

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreRejected]:
        """Nothing is slow here; what can fail is the document itself."""
        await trio.lowlevel.checkpoint()
        return [self._prepare(document) for document in documents]

    @staticmethod
    def _prepare(document: Document) -> Prepared | StoreRejected:
        text, digest = document.text, document.version.digest
        try:
            if text is not None and ContentDefinition().digest(text, document.metadata) != digest:
                return StoreRejected("plain", "its digest is not that of its content", document.doc_id)
            return Prepared(document=document, payload=json.dumps(dict(document.metadata)))
        except (InvalidValue, TypeError, ValueError) as error:
            return StoreRejected("plain", f"cannot be stored ({type(error).__name__})", document.doc_id)

    def may_write(self, held: Observation, token: str) -> bool:
        """The fence."""
        return held.token == token

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """Replace each document that still holds the expected token: one transaction, so the fence is strong."""

        def put(connection: sqlite3.Connection, write: Write) -> WriteAnswer:
            document, version = write.prepared.document, write.prepared.document.version
            held = self._observation(self._row(connection, document.doc_id))
            if not self.may_write(held, write.token):
                return WriteAnswer(status=WriteStatus.REFUSED, observation=held)
            connection.execute("UPDATE counter SET revision = revision + 1")
            values: tuple[Any, ...] = (
                document.doc_id,
                document.text,
                write.prepared.payload,
                version.number,
                version.digest,
                version.deleted,
                None if version.updated_at is None else version.updated_at.isoformat(),
            )
            connection.execute(
                "INSERT OR REPLACE INTO documents SELECT ?, ?, ?, ?, ?, ?, ?, revision FROM counter", values
            )
            landed = self._observation(self._row(connection, document.doc_id))
            return WriteAnswer(status=WriteStatus.LANDED, observation=landed)

        return await self._transaction(lambda connection: [put(connection, write) for write in writes])

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        """Take the rows away, under the same fence."""

        def take(connection: sqlite3.Connection, removal: Removal) -> WriteAnswer:
            held = self._observation(self._row(connection, removal.doc_id))
            if not self.may_write(held, removal.token):
                return WriteAnswer(status=WriteStatus.REFUSED, observation=held)
            connection.execute("DELETE FROM documents WHERE doc_id = ?", (removal.doc_id,))
            return WriteAnswer(status=WriteStatus.LANDED, observation=ABSENT)

        return await self._transaction(lambda connection: [take(connection, removal) for removal in removals])

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> AsyncGenerator[AsyncIterator[ScanPage], None]:
        """A snapshot in byte order: SQLite's default collation compares UTF-8 bytes."""
        self._require_open()
        connection = await trio.to_thread.run_sync(lambda: sqlite3.connect(self._path, check_same_thread=False))
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM documents WHERE ?1 IS NULL OR doc_id > ?1 ORDER BY doc_id", (after,))

        async def pages() -> AsyncGenerator[ScanPage, None]:
            while page := await trio.to_thread.run_sync(rows.fetchmany, PAGE):
                yield [(row["doc_id"], self._observation(row)) for row in page]

        generator = pages()
        try:
            yield generator
        finally:
            with trio.CancelScope(shield=True):
                await generator.aclose()
                await trio.to_thread.run_sync(connection.close)

    async def count(self) -> int:
        """Documents and tombstones."""
        return await self._transaction(
            lambda connection: int(connection.execute("SELECT count(*) FROM documents").fetchone()[0])
        )

    async def aclose(self) -> None:
        """Take no more calls. Every transaction has a connection of its own: there is nothing else to close."""
        self._closed = True
        await trio.lowlevel.checkpoint()


class StoreWithoutFence(PlainStore):
    """The same, but the last writer wins: exactly what a repair must not do to a document that is being edited."""

    def may_write(self, held: Observation, token: str) -> bool:  # noqa: ARG002 - that is the mistake
        """No fence."""
        return True


class StoreThatLooksFirst(PlainStore):
    """The fence is asked in one transaction and the write is made in another: somebody else's may come between."""

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """Look, and then write blindly what may be written."""
        held = await self.observe([write.prepared.document.doc_id for write in writes])
        answers: list[WriteAnswer] = []
        for seen, write in zip(held, writes, strict=True):
            if seen.token == write.token:
                answers += await StoreWithoutFence(self._path).write([write])
            else:
                answers.append(WriteAnswer(status=WriteStatus.REFUSED, observation=seen))
        return answers


class Files:
    """Opens a store on a new file each time, or `again` on the file that was opened last."""

    def __init__(self, kind: type[PlainStore], directory: Path) -> None:
        self._kind = kind
        self._directory = directory
        self._count = 0

    @property
    def _path(self) -> Path:
        return self._directory / f"{self._kind.__name__} {self._count}.db"

    @asynccontextmanager
    async def open_new(self) -> AsyncGenerator[PlainStore, None]:
        """An empty store."""
        self._count += 1
        connection = sqlite3.connect(self._path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(SCHEMA)
        connection.close()
        yield self._kind(self._path)

    @asynccontextmanager
    async def open_again(self) -> AsyncGenerator[PlainStore, None]:
        """Another handle on the same contents, as another process would have."""
        yield self._kind(self._path)


async def main() -> None:
    """Check all three."""
    with tempfile.TemporaryDirectory() as directory:
        right = Files(PlainStore, Path(directory))
        await check_store(right.open_new, again=right.open_again)
        print("PlainStore keeps its contract")
        for kind in (StoreWithoutFence, StoreThatLooksFirst):
            wrong = Files(kind, Path(directory))
            try:
                await check_store(wrong.open_new, again=wrong.open_again, only=ABOUT_THE_FENCE)
            except ContractBroken as broken:
                print(f"{kind.__name__} breaks: {', '.join(broken.breaches)}")


if __name__ == "__main__":
    trio.run(main)
