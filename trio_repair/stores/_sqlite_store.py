"""The part of a SQLite store that does not depend on what a document's rows look like.

Each call is one function in the store's thread. Results come out of SQLite as one JSON value and rows go in by one
statement with many rows, because the driver lets go of the interpreter lock at every step: with a busy event loop
beside it, a thousand steps are a thousand waits for that lock.
"""

from __future__ import annotations

import abc
import datetime as dt
import functools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias, TypeVar

import apsw
import attrs
import trio

from trio_repair import (
    Document,
    DocumentVersion,
    EmbeddingIdentity,
    InvalidValue,
    Observation,
    Prepared,
    Presence,
    Removal,
    StoredDocument,
    StoreError,
    StoreRejected,
    StoreTraits,
    StoreUnavailable,
    Write,
    WriteAnswer,
    WriteStatus,
)
from trio_repair.abc import ScanPage

from ._encoding import check_limit, load_json, load_metadata, metadata_json, moment_text, parse_moment
from ._sqlite import Session, SqliteFile, describe, is_document_error, open_file, translate, unavailable
from ._thread import Call, CallAbandoned, StoreThread

T = TypeVar("T")
S = TypeVar("S", bound="SqliteStore")

ABSENT_TOKEN: Final = "absent"  # noqa: S105 - a fence token
"""The token of everything that is not held. One is enough: to be absent again is to be in the observed state, and a
document that is written again gets a token that was never there before."""

_ABSENT: Final = Observation(presence=Presence.ABSENT, token=ABSENT_TOKEN)
_PAGE_ROWS: Final = 1000
_ROWS_PER_INSERT: Final = 500
DIGEST: Final = "nullif(d.digest, '')"
_NO_DIGEST: Final = f"{DIGEST} IS NULL"

Row: TypeAlias = list[Any]
"""One document as JSON: doc_id, number, digest, deleted, updated_at, rev; parts, the parts that are there, and whole,
the parts that should be; embedding, an identity's fields or null; text and metadata, null unless they are needed."""

ROW_NAMES: Final = "doc_id, number, digest, deleted, updated_at, rev, parts, whole, embedding, text, metadata"


@attrs.frozen
class Put:
    """A write that passed the fence, what it replaces, and the revision that it gets."""

    document: Document
    payload: Any
    before: Observation
    revision: int


@attrs.frozen
class _Change:
    doc_id: str
    token: str
    prepared: Prepared | None


_Passed: TypeAlias = tuple[_Change, Observation, int]
"""A change that passed the fence, what was held before, and the revision that it gets."""


class SqliteStore(abc.ABC):
    """The methods of `trio_repair.abc.Store` on top of a few statements that each kind of store supplies."""

    def __init__(self, file: SqliteFile, traits: StoreTraits, clock: Callable[[], float]) -> None:
        self._file = file
        self._traits = traits
        self._clock = clock
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

    # What differs from kind to kind.

    @abc.abstractmethod
    def _columns(self, connection: apsw.Connection, content: str) -> str:
        """The SQL expressions of a `Row`, over ``documents AS d``; `content` is the condition for text and metadata."""

    @abc.abstractmethod
    def _put(self, session: Session, puts: Sequence[Put]) -> None:
        """Write these documents with rev = their revision, in the transaction that is open."""

    @abc.abstractmethod
    def _erase(self, session: Session, ids: str) -> None:
        """Take away all rows of the documents in a JSON array."""

    def _visible(self) -> str:
        """The SQL condition for rows that count as held."""
        return "TRUE"

    def _text(self, raw: Any) -> str | None:
        """The text from a `Row`'s text column; None if it cannot be had."""
        return raw if isinstance(raw, str) else None

    def _now_text(self) -> str:
        """The present moment, for a column."""
        return moment_text(dt.datetime.fromtimestamp(self._clock(), dt.timezone.utc))

    # The seam.

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        """Look at documents without their content.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: the file cannot be read now.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(doc_ids))
        return await self._run(self._observe_call, list(doc_ids))

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        """Read documents. `StoreRejected` for one whose content is not what its digest says.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: the file cannot be read now.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(doc_ids))
        return await self._run(self._read_call, list(doc_ids))

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        """Check that digest and content agree and that the metadata is JSON; `StoreRejected` otherwise.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(documents))
        await trio.lowlevel.checkpoint()
        return [self._check_document(document) for document in documents]

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """Replace each document whose expected token still holds, all in one transaction.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: nothing was written.

        **If cancelled:** all of it may have landed, or nothing; never after Cancelled was raised, unless the disk
        takes longer than 0.1 s over a commit that had begun.
        """
        self._check_batch(len(writes))
        changes = [_Change(one.prepared.document.doc_id, one.token, one.prepared) for one in writes]
        return await self._change(changes)

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        """Take each document's rows away, tombstones too, where the expected token still holds, in one transaction.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: nothing was removed.

        **If cancelled:** as `write`.
        """
        self._check_batch(len(removals))
        return await self._change([_Change(one.doc_id, one.token, None) for one in removals])

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

    async def count(self) -> int:
        """How many documents and tombstones the store holds.

        Raises:
            StoreUnavailable: the file cannot be read now.

        **If cancelled:** nothing has changed.
        """
        return await self._run(
            lambda session: int(
                session.main.execute(f"SELECT count(*) FROM documents AS d WHERE {self._visible()}").get
            )
        )

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
            self._select(session.main, "FROM documents AS d LIMIT 1")  # the schema is there and can be read
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

    def _check_document(self, document: Document) -> Prepared | StoreError:
        if document.text is None:
            return Prepared(document=document, payload="{}")
        problem = None
        try:
            if self._file.content.digest(document.text, document.metadata) != document.version.digest:
                problem = "its digest is not that of its content; use one ContentDefinition in all stores"
            document.text.encode()
            metadata = metadata_json(document.metadata)
        except UnicodeEncodeError:
            problem = "its text or metadata holds a lone surrogate, which is not UTF-8"
        except (InvalidValue, TypeError, ValueError, RecursionError) as error:
            problem = f"its content is not text and JSON ({type(error).__name__})"
        if problem is not None:
            return StoreRejected(self._name, problem, document.doc_id)
        return Prepared(document=document, payload=metadata)

    async def _change(self, changes: list[_Change]) -> Sequence[WriteAnswer]:
        if len({change.doc_id for change in changes}) < len(changes):
            raise InvalidValue("batch", "names a document twice; one call writes each document once")
        return await self._run(self._change_call, changes)

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

    def _select(self, connection: apsw.Connection, tail: str, *bindings: Any, content: str = _NO_DIGEST) -> list[Row]:
        """Rows as one value: see the module's docstring. `tail` starts at FROM."""
        sql = (
            f"SELECT CAST(json_group_array(json_array({ROW_NAMES})) AS BLOB)"
            f" FROM (SELECT {self._columns(connection, content)} {tail})"
        )
        rows: list[Row] = load_json(connection.execute(sql, bindings).get)
        return rows

    def _rows(self, session: Session, doc_ids: Sequence[str], content: str = _NO_DIGEST) -> dict[str, Row]:
        tail = (
            f"FROM json_each(?) AS wanted CROSS JOIN documents AS d ON d.doc_id = wanted.value WHERE {self._visible()}"
        )
        rows = self._select(session.main, tail, json.dumps(doc_ids, ensure_ascii=False), content=content)
        return {row[0]: row for row in rows}

    def _observations(self, session: Session, doc_ids: Sequence[str]) -> list[Observation]:
        rows = self._rows(session, doc_ids)
        return [self._observation(rows[doc_id]) if doc_id in rows else _ABSENT for doc_id in doc_ids]

    def _observe_call(self, session: Session, doc_ids: list[str]) -> list[Observation | StoreError]:
        return [*self._observations(session, doc_ids)]

    def _observation(self, row: Row) -> Observation:
        _, number, digest, deleted, updated_at, _, parts, whole, embedding, _, _ = row
        moment = parse_moment(updated_at)
        if deleted:
            version = DocumentVersion(number=number, deleted=True, updated_at=moment)
            return Observation(presence=Presence.TOMBSTONE, token=_token(row), version=version)
        if digest is None:
            digest = self._digest(row)
        return Observation(
            presence=Presence.LIVE,
            token=_token(row),
            version=DocumentVersion(number=number, digest=digest, updated_at=moment),
            intact=parts == whole and digest != "",
            embedding=None if embedding is None else _identity(embedding),
        )

    def _digest(self, row: Row) -> str:
        """The digest of the content in a row; "" if there is no content that could have one."""
        text = self._text(row[9])
        metadata = load_metadata(row[10])
        if text is None or metadata is None:
            return ""
        try:
            return self._file.content.digest(text, metadata)
        except InvalidValue:
            return ""

    def _read_call(self, session: Session, doc_ids: list[str]) -> list[StoredDocument | StoreError]:
        try:
            rows = self._rows(session, doc_ids, content="TRUE")
        except (apsw.TooBigError, apsw.NoMemError) as error:
            if len(doc_ids) == 1:
                return [StoreRejected(self._name, f"cannot be read: {describe(error)}", doc_ids[0])]
            return [self._read_call(session, [doc_id])[0] for doc_id in doc_ids]
        return [self._stored(doc_id, rows.get(doc_id)) for doc_id in doc_ids]

    def _stored(self, doc_id: str, row: Row | None) -> StoredDocument | StoreError:
        if row is None:
            return StoredDocument(document=None, token=ABSENT_TOKEN)
        _, number, digest, deleted, updated_at, _, _, _, _, text, metadata = row
        moment = parse_moment(updated_at)
        if deleted:
            grave = Document.tombstone(doc_id, number=number, updated_at=moment)
            return StoredDocument(document=grave, token=_token(row))
        proven = self._digest(row)
        if not proven or (digest is not None and proven != digest):
            problem = "its content does not have the digest that is stored with it; repair it from another store"
            return StoreRejected(self._name, problem, doc_id)
        version = DocumentVersion(number=number, digest=proven, updated_at=moment)
        held = load_metadata(metadata)
        assert held is not None  # or it would have no digest
        document = Document(doc_id=doc_id, text=self._text(text), metadata=held, version=version)
        return StoredDocument(document=document, token=_token(row))

    def _scan_call(self, session: Session, reader: apsw.Connection, after: str) -> list[tuple[str, Observation]]:
        session.use_reader(reader)
        tail = f"FROM documents AS d WHERE d.doc_id > ? AND {self._visible()} ORDER BY d.doc_id LIMIT {_PAGE_ROWS}"
        rows = self._select(reader, tail, after)
        try:
            "".join([row[0] for row in rows]).encode()
        except UnicodeEncodeError:
            raise StoreUnavailable(self._name, "holds a doc_id that is not UTF-8; remove that row") from None
        return [(row[0], self._observation(row)) for row in rows]

    def _change_call(self, session: Session, changes: list[_Change]) -> list[WriteAnswer]:
        if not changes:
            return []
        main = session.main
        main.execute("BEGIN IMMEDIATE")
        try:
            answers, landing = self._apply(session, changes)
            if landing:
                session.begin_commit()
                try:
                    main.execute("COMMIT")
                except apsw.IOError as error:
                    # The log may hold the commit although writing it was reported as failed; a crash could revive it.
                    unknown = WriteAnswer(status=WriteStatus.UNKNOWN, error=unavailable(self._name, error))
                    return [unknown if index in landing else answer for index, answer in enumerate(answers)]
            return answers
        finally:
            if main.in_transaction:
                main.execute("ROLLBACK")

    def _apply(self, session: Session, changes: list[_Change]) -> tuple[list[WriteAnswer], frozenset[int]]:
        """All of a write but its commit: the fence, the rows, and what is then held. Also, what would land."""
        main = session.main
        before = self._observations(session, [change.doc_id for change in changes])
        base = int(main.execute("SELECT value FROM revision").get)
        answers = [WriteAnswer(status=WriteStatus.REFUSED, observation=held) for held in before]
        passed = [
            (index, change)
            for index, (change, held) in enumerate(zip(changes, before, strict=True))
            if change.token == held.token
        ]
        failed = self._write_all(session, [(change, before[index], base + 1 + index) for index, change in passed])
        for index, change in passed:
            if change.doc_id in failed:
                answers[index] = WriteAnswer(status=WriteStatus.REJECTED, error=failed[change.doc_id])
        landing = [index for index, change in passed if change.doc_id not in failed]
        if landing:
            # max: a trigger of the application's may have written rows, and raised it, in this transaction.
            main.execute("UPDATE revision SET value = max(value, ?)", (base + len(changes),))
            now = self._observations(session, [changes[index].doc_id for index in landing])
            for index, held in zip(landing, now, strict=True):
                answers[index] = WriteAnswer(status=WriteStatus.LANDED, observation=held)
        return answers, frozenset(landing)

    def _write_all(self, session: Session, changes: list[_Passed]) -> dict[str, StoreError]:
        """Write what passed the fence: all at once, or, if that fails, one by one to find who is to blame."""
        main = session.main
        try:
            main.execute("SAVEPOINT batch")
            self._write_rows(session, changes)
        except Exception as error:
            if not is_document_error(error):
                raise
        else:
            return {}
        main.execute("ROLLBACK TO batch")
        failed: dict[str, StoreError] = {}
        for change, before, revision in changes:
            session.raise_if_abandoned()
            main.execute("SAVEPOINT document")
            try:
                self._write_rows(session, [(change, before, revision)])
            except Exception as error:
                if not is_document_error(error):
                    raise
                main.execute("ROLLBACK TO document")
                problem = f"SQLite refuses it ({type(error).__name__})"
                failed[change.doc_id] = StoreRejected(self._name, problem, change.doc_id)
            main.execute("RELEASE document")
        return failed

    def _write_rows(self, session: Session, changes: list[_Passed]) -> None:
        puts: list[Put] = []
        erased: list[str] = []
        for change, before, revision in changes:
            prepared = change.prepared
            if prepared is None or (prepared.document.version.deleted and not self._traits.keeps_tombstones):
                erased.append(change.doc_id)
            else:
                puts.append(Put(prepared.document, prepared.payload, before, revision))
        if erased:
            self._erase(session, json.dumps(erased, ensure_ascii=False))
        if puts:
            self._put(session, puts)


@functools.lru_cache(maxsize=64)
def _identity(fields: str) -> EmbeddingIdentity:
    return EmbeddingIdentity(**json.loads(fields))


def _token(row: Row) -> str:
    """The revision, and the parts that are there: not all that can be lost is seen by the triggers behind rev."""
    return f"{row[5]}.{row[6]}"


class _Pages:
    """The pages of one scan; each is a call of its own, so that other calls come in between."""

    def __init__(self, store: SqliteStore, reader: apsw.Connection, after: str | None) -> None:
        self._store = store
        self._reader = reader
        self._after = "" if after is None else after
        self._ended = False

    def __aiter__(self) -> _Pages:
        return self

    async def __anext__(self) -> ScanPage:
        if self._ended:
            raise StopAsyncIteration
        page = await self._store._run(self._store._scan_call, self._reader, self._after)
        self._ended = len(page) < _PAGE_ROWS
        if not page:
            raise StopAsyncIteration
        self._after = page[-1][0]
        return page


def plain_columns(content: str) -> str:
    """The expressions of a `Row` for a table that has the text in its rows; all but parts, whole and embedding."""
    needed = f"CASE WHEN d.deleted = 0 AND ({content})"
    return (
        f"d.doc_id AS doc_id, d.number AS number, {DIGEST} AS digest, d.deleted AS deleted,"
        " d.updated_at AS updated_at, d.rev AS rev,"
        f" {needed} THEN d.text END AS text, {needed} THEN d.metadata END AS metadata"
    )


def insert_rows(connection: apsw.Connection, head: str, rows: Sequence[Sequence[Any]], tail: str = "") -> None:
    """Insert many rows by few statements; `head` ends in VALUES.

    One statement of many rows is two to three times as fast as executemany (FTS5 flushes once for each statement),
    and ten times beside a busy event loop (see the module's docstring).
    """
    width = len(rows[0])
    one = f"({','.join('?' * width)})"
    for start in range(0, len(rows), _ROWS_PER_INSERT):
        some = rows[start : start + _ROWS_PER_INSERT]
        values = ",".join([one] * len(some))
        connection.execute(f"{head} {values} {tail}", [value for row in some for value in row])


@asynccontextmanager
async def opened(store: S) -> AsyncGenerator[S, None]:
    """A store whose file was looked at, closed on the way out."""
    try:
        await store._open()
        yield store
    finally:
        await store.aclose()
