"""The tables of the vector store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import apsw
import attrs
import sqlite_vec

from trio_repair import ContentDefinition, EmbeddingIdentity
from trio_repair.embedding import rebuild_text

from ._encoding import moment_text
from ._layout import (
    DATE_DELETE,
    DIGEST,
    DOC_ID_COLUMN,
    METADATA_COLUMN,
    NUMBER_COLUMN,
    SQL_NOW,
    Layout,
    Put,
    Wholeness,
    insert_rows,
    revision_triggers,
)
from ._sqlite import Session
from ._vector_preparing import Payload

T = TypeVar("T")

_NUMBERS_PER_STATEMENT: Final = 2**19
_MOST_VECTORS: Final = 1024
_FEWEST_VECTORS: Final = 64
"""A write to sqlite-vec must not be interrupted (its delete crashes the process when it cannot prepare a statement), so
it comes in pieces of 2 MiB or less, between which a call can be given up: a batch of vectors of 512 numbers is one.
`test_interrupts_do_not_reach_sqlite_vec` exercises this."""

_ROWIDS_IN_A_ROW: Final = 256
"""SQLite takes expressions of a depth of no more than 1,000."""

_MOST_CACHE_KB: Final = 32 * 1024
_DISTRUST: Final = "UPDATE documents SET proven = 0 WHERE rev <= (SELECT value FROM revision) AND doc_id ="

_TABLES: Final = f"""
CREATE TABLE documents (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  {DOC_ID_COLUMN},
  {NUMBER_COLUMN},
  digest TEXT,
  deleted INTEGER NOT NULL DEFAULT 0 CHECK (deleted IN (0, 1)),
  updated_at TEXT,
  written_at TEXT NOT NULL DEFAULT ({SQL_NOW}),
  rev INTEGER NOT NULL DEFAULT 0,
  model TEXT,
  dimension INTEGER,
  chunking TEXT,
  first_chunk INTEGER NOT NULL DEFAULT 0,
  chunk_count INTEGER NOT NULL DEFAULT 0,
  proven INTEGER NOT NULL DEFAULT 0,
  {METADATA_COLUMN},
  CHECK (deleted = 1 OR (model IS NOT NULL AND dimension IS NOT NULL AND chunking IS NOT NULL))
) STRICT;
CREATE INDEX documents_deleted ON documents (doc_id) WHERE deleted = 1;
CREATE TABLE chunks (
  chunk_id INTEGER PRIMARY KEY AUTOINCREMENT,
  doc_id TEXT NOT NULL,
  ordinal INTEGER NOT NULL CHECK (ordinal >= 0),
  start INTEGER NOT NULL CHECK (start >= 0),
  text TEXT NOT NULL,
  UNIQUE (doc_id, ordinal)
) STRICT;
CREATE TRIGGER chunks_inserted AFTER INSERT ON chunks BEGIN {_DISTRUST} NEW.doc_id; END;
CREATE TRIGGER chunks_deleted AFTER DELETE ON chunks BEGIN {_DISTRUST} OLD.doc_id; END;
CREATE TRIGGER chunks_updated AFTER UPDATE ON chunks BEGIN
  {_DISTRUST} OLD.doc_id;
  {_DISTRUST} NEW.doc_id;
END;
CREATE TRIGGER documents_deleted_chunks AFTER UPDATE OF deleted ON documents WHEN NEW.deleted = 1 BEGIN
  DELETE FROM chunks WHERE doc_id = NEW.doc_id;
END;
"""
# `proven`: the chunks are those that the digest was made of. Foreign SQL on chunks or metadata clears it.
# `first_chunk`: the chunks of a document have consecutive ids, so that a vector whose chunk row was lost is still known
# to be this document's, and goes when it is replaced. AUTOINCREMENT: no later chunk gets such an id again.

_INSERT: Final = (
    "INSERT INTO documents (doc_id, number, digest, deleted, updated_at, written_at, rev, model, dimension, chunking,"
    " first_chunk, chunk_count, proven, metadata) VALUES"
)
_UPSERT: Final = (
    "ON CONFLICT (doc_id) DO UPDATE SET number = excluded.number, digest = excluded.digest, deleted = excluded.deleted,"
    " updated_at = excluded.updated_at, written_at = excluded.written_at, rev = excluded.rev, model = excluded.model,"
    " dimension = excluded.dimension, chunking = excluded.chunking, first_chunk = excluded.first_chunk,"
    " chunk_count = excluded.chunk_count, proven = excluded.proven, metadata = excluded.metadata"
)


_DIMENSIONS: Final = (
    "SELECT group_concat(substr(name, 9, length(name) - 15)) FROM sqlite_schema"
    " WHERE type = 'table' AND name GLOB 'vectors_[1-9]*_rowids'"
)
_BEGIN: Final = (
    "SELECT value, (SELECT ifnull(max(seq), 0) FROM sqlite_sequence WHERE name = 'chunks'),"
    f" ({_DIMENSIONS}) FROM revision"
)


@attrs.define
class _Held:
    """What a transaction that writes knows of its tables."""

    last_chunk_id: int
    """The highest that was ever used."""
    dimensions: list[int]


def vector_schema(content: ContentDefinition) -> str:
    """The tables and triggers of a new file."""
    # Metadata that is no part of the content is none of the digest's business.
    proven = "NEW.proven AND NEW.metadata IS OLD.metadata" if content.metadata_keys else "NEW.proven"
    return _TABLES + revision_triggers(f"proven = {proven}, {DATE_DELETE}")


class VectorLayout(Layout):
    """A row for each document and tombstone, rows for its chunks, and a vector for each of these."""

    identity: EmbeddingIdentity

    def __init__(
        self, store: str, content: ContentDefinition, clock: Callable[[], float], identity: EmbeddingIdentity
    ) -> None:
        super().__init__(store, content, clock)
        self.identity = identity
        self._held: dict[apsw.Connection, _Held] = {}
        """Of connections in a transaction that writes."""
        self.partition = f"{identity.model} {identity.chunking}"
        """Keeps vectors of different identities apart inside one table."""
        wanted = (("model", identity.model), ("dimension", identity.dimension), ("chunking", identity.chunking))
        self._same = " AND ".join(f"d.{name} = {apsw.format_sql_value(value)}" for name, value in wanted)
        """The SQL condition for rows that were embedded under it."""

    def begin(self, connection: apsw.Connection) -> int:
        revision, last_chunk_id, names = connection.execute(_BEGIN).get or (None, 0, None)
        self._held[connection] = _Held(int(last_chunk_id), _numbers(names))
        return self._revision(revision)

    def end(self, connection: apsw.Connection) -> None:
        self._held.pop(connection, None)

    def _dimensions(self, connection: apsw.Connection) -> list[int]:
        held = self._held.get(connection)
        return dimensions(connection) if held is None else held.dimensions

    def columns(self, connection: apsw.Connection, content: str) -> str:
        counts = "count(*) || '-' || {} || '-' || ifnull(max(c.ordinal), -1)"
        own = "WHERE c.doc_id = d.doc_id"
        cases = "".join(
            f" WHEN {dimension} THEN (SELECT {counts.format('count(v.rowid)')} FROM chunks AS c"
            f" LEFT JOIN vectors_{dimension}_rowids AS v ON v.rowid = c.chunk_id {own})"
            for dimension in self._dimensions(connection)
        )
        there = f"(SELECT {counts.format(0)} FROM chunks AS c {own})"
        there = f"CASE d.dimension{cases} ELSE {there} END" if cases else there
        needed = f"CASE WHEN d.deleted = 0 AND ({content})"
        chunks = "SELECT start, text FROM chunks AS c WHERE c.doc_id = d.doc_id ORDER BY c.ordinal"
        return (
            f"d.doc_id AS doc_id, d.number AS number, {DIGEST} AS digest, d.deleted AS deleted,"
            " d.updated_at AS updated_at, d.rev AS rev,"
            f" CASE WHEN d.deleted THEN 0 ELSE d.proven || '-' || {there} END AS parts,"
            " format('1-%d-%d-%d', d.chunk_count, d.chunk_count, d.chunk_count - 1) AS whole,"
            f" CASE WHEN d.deleted = 0 THEN CASE WHEN {self._same} THEN 1 ELSE"
            " json_object('model', d.model, 'dimension', d.dimension, 'chunking', d.chunking) || '' END END"
            " AS embedding,"
            f" {needed} THEN (SELECT json_group_array(json_array(start, text)) FROM ({chunks})) || '' END AS text,"
            f" {needed} THEN d.metadata END AS metadata"
        )

    def whole(self, connection: apsw.Connection) -> Sequence[Wholeness]:
        identity = self.identity
        if identity.dimension not in dimensions(connection):
            return [Wholeness(condition="FALSE")]
        vectors = f"vectors_{identity.dimension}_rowids"
        # Ordinals are distinct and not negative, so that as many of them as there should be, all below that number,
        # are all of them. One aggregate, because each costs half as much as the search for the chunks.
        exactly = (
            "d.chunk_count > 0 AND"  # no sum of penalties
            " (SELECT sum(CASE WHEN w.rowid IS NOT NULL AND k.ordinal < d.chunk_count THEN 1 ELSE -1e9 END)"
            f" FROM chunks AS k LEFT JOIN {vectors} AS w ON w.rowid = k.chunk_id WHERE k.doc_id = d.doc_id)"
            " = d.chunk_count"
        )
        # Many documents have one chunk. To look up each of these would cost more than everything else; instead, the
        # chunks of the range are read in order once. Where there are as many as there should be, all with a vector, and
        # the documents that have a first one are the live ones, then each of these has its one chunk, if those that
        # should have more do, and nobody has one too many.
        # `total`, because foreign SQL can put numbers into chunk_count at whose sum SQLite fails.
        live, first = "CASE d.deleted WHEN 0 THEN", "CASE k.ordinal WHEN 0 THEN"
        chunks_due = f"CAST(total({live} d.chunk_count END) AS INTEGER)"
        due = (
            f"{chunks_due} || ' ' || {chunks_due}"
            f" || ' ' || count({live} 1 END) || ' ' || ifnull(group_concat({live} d.doc_id END, char(0)), '')"
        )
        held = (
            f"count(*) || ' ' || count(w.rowid)"
            f" || ' ' || count({first} 1 END) || ' ' || ifnull(group_concat({first} k.doc_id END, char(0)), '')"
        )
        chunks = (
            f"FROM chunks AS k INDEXED BY sqlite_autoindex_chunks_1 LEFT JOIN {vectors} AS w ON w.rowid = k.chunk_id"
            " WHERE k.doc_id > r.after AND k.doc_id <= r.bound"
        )
        return [
            Wholeness(
                condition=f"d.proven = 1 AND {self._same} AND (d.chunk_count = 1 OR {exactly})",
                proof=f"{due} = (SELECT {held} {chunks})",
            ),
            Wholeness(condition=f"d.proven = 1 AND {self._same} AND {exactly}"),
        ]

    def text(self, raw: Any) -> str | None:
        return None if raw is None else rebuild_text(json.loads(raw))

    def put(self, session: Session, puts: Sequence[Put]) -> None:
        main = session.main
        held = self._held[main]
        dimension = self.identity.dimension
        now = self.now_text()
        documents: list[Sequence[Any]] = []
        chunks: list[Sequence[Any]] = []
        vectors: list[Sequence[Any]] = []
        chunk_id = held.last_chunk_id
        for put in puts:
            payload: Payload = put.payload
            version, doc_id = put.document.version, put.document.doc_id
            made = (None, None, None) if version.deleted else (self.identity.model, dimension, self.identity.chunking)
            documents.append(
                (
                    doc_id,
                    version.number,
                    version.digest,
                    int(version.deleted),
                    None if version.updated_at is None else moment_text(version.updated_at),
                    now,
                    put.revision,
                    *made,
                    chunk_id + 1,
                    len(payload.chunks),
                    1,
                    payload.metadata,
                )
            )
            for ordinal, (chunk, vector) in enumerate(zip(payload.chunks, payload.vectors, strict=True)):
                chunk_id += 1
                chunks.append((chunk_id, doc_id, ordinal, chunk.start, chunk.text))
                vectors.append((chunk_id, self.partition, vector))
        ids = json.dumps([put.document.doc_id for put in puts], ensure_ascii=False)
        held.last_chunk_id = chunk_id
        self._drop_vectors(session, ids, held.dimensions)
        insert_rows(main, _INSERT, documents, _UPSERT)  # its rev tells the triggers on chunks that it is us
        self._drop_chunks(main, ids)
        if chunks:
            if dimension not in held.dimensions:
                held.dimensions.append(dimension)
                main.execute(
                    f"CREATE VIRTUAL TABLE vectors_{dimension}"
                    f" USING vec0 (identity TEXT PARTITION KEY, embedding FLOAT[{dimension}])"
                )
            insert_rows(main, "INSERT INTO chunks (chunk_id, doc_id, ordinal, start, text) VALUES", chunks)
            for some in _pieces(vectors, dimension):
                with session.uninterrupted():
                    insert_rows(main, f"INSERT INTO vectors_{dimension} (rowid, identity, embedding) VALUES", some)

    def erase(self, session: Session, ids: str) -> None:
        self._drop_vectors(session, ids, self._dimensions(session.main))
        session.main.execute("DELETE FROM documents WHERE doc_id IN (SELECT value FROM json_each(?))", (ids,))
        self._drop_chunks(session.main, ids)

    @staticmethod
    def _drop_vectors(session: Session, ids: str, known: Sequence[int]) -> None:
        """Delete the vectors of documents: of the chunk rows that are there, and of those that should be."""
        main = session.main
        theirs = "doc_id IN (SELECT value FROM json_each(?1))"
        for dimension in known:
            found = main.execute(
                f"SELECT json_group_array(chunk_id) FROM (SELECT chunk_id FROM chunks WHERE {theirs}"
                f" UNION SELECT v.rowid FROM documents AS d JOIN vectors_{dimension}_rowids AS v"
                f" ON v.rowid >= d.first_chunk AND v.rowid < d.first_chunk + d.chunk_count WHERE d.{theirs})",
                (ids,),
            ).get
            rowids = json.loads(str(found))
            for some in _pieces(rowids, dimension):
                with session.uninterrupted():
                    main.execute(delete_vectors(dimension, len(some)), some)

    @staticmethod
    def _drop_chunks(main: apsw.Connection, ids: str) -> None:
        main.execute("DELETE FROM chunks WHERE doc_id IN (SELECT value FROM json_each(?))", (ids,))


def _pieces(rows: Sequence[T], dimension: int) -> Iterator[Sequence[T]]:
    """So many at a time as one statement may write."""
    size = max(_FEWEST_VECTORS, min(_MOST_VECTORS, _NUMBERS_PER_STATEMENT // dimension))
    return (rows[start : start + size] for start in range(0, len(rows), size))


def delete_vectors(dimension: int, count: int) -> str:
    """A statement that deletes so many vectors, by rowid.

    Not `rowid IN (...)`, for which sqlite-vec reads the whole table: with a million vectors, half a second for each
    hundred. Each `rowid = ?` is looked up. `test_vectors_are_deleted_one_by_one` sees to it.
    """
    rows = [" OR ".join(["rowid = ?"] * min(_ROWIDS_IN_A_ROW, count - at)) for at in range(0, count, _ROWIDS_IN_A_ROW)]
    return f"DELETE FROM vectors_{dimension} WHERE ({') OR ('.join(rows)})"


def cache_for_vectors(dimension: int) -> int:
    """KiB of page cache for sqlite-vec, which keeps 1,024 vectors in one blob, and for each that it writes goes along
    the pages of that blob: when they do not stay in the cache, a write takes twice as long. There is room for three of
    them: that which is filled, and those out of which old vectors go.
    """
    return min(3 * 4 * dimension, _MOST_CACHE_KB)


def dimensions(connection: apsw.Connection) -> list[int]:
    """The dimensions for which there is a table of vectors; asked each time, since another process may add one."""
    return _numbers(connection.execute(_DIMENSIONS).get)


def _numbers(names: object) -> list[int]:
    return [int(name) for name in str(names).split(",") if name.isdecimal()] if names else []


def load_sqlite_vec(connection: apsw.Connection) -> None:
    connection.enable_load_extension(True)  # noqa: FBT003 - the driver takes no keyword
    connection.load_extension(sqlite_vec.loadable_path())
    connection.enable_load_extension(False)  # noqa: FBT003
