"""The embedded vector store: chunks of documents in plain SQLite tables, their vectors in sqlite-vec.

``documents`` has a row for each document and tombstone, ``chunks`` a row for each chunk, and ``vectors_<dimension>``
(a sqlite-vec table, one for each dimension that was ever written, because such a table has only one) a vector for
each chunk, whose rowid is the chunk's ``chunk_id``. sqlite-vec compares a query with *every* vector of the current
embedding identity: some 10 ms for 6,000 vectors of 256 numbers, and in proportion.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import apsw
import attrs
import sqlite_vec

from trio_repair import (
    AbsentMeans,
    ContentDefinition,
    Document,
    EmbeddingIdentity,
    Fence,
    Prepared,
    StoreError,
    StoreRejected,
    StoreTraits,
    StoreUnavailable,
)
from trio_repair.abc import Chunk, Chunker, Embedder
from trio_repair.embedding import rebuild_text

from ._embedding import Failure, Vector, check_embedder, cut, embed_texts
from ._encoding import check_limit, load_json, moment_text
from ._settings import chunker_setting, embedder_setting, path_setting, refuse_unknown, synchronous_setting
from ._sqlite import Session, SqliteFile, Synchronous, revision_triggers
from ._sqlite_store import DIGEST, Put, SqliteStore, insert_rows, opened

__all__ = ["NearestHit", "SQLiteVectorStore", "open_sqlite_vector", "sqlite_vector_from_settings"]

_MAX_NEIGHBOURS: Final = 4096
"""sqlite-vec gives no more."""

_DISTRUST: Final = "UPDATE documents SET proven = 0 WHERE rev <= (SELECT value FROM revision) AND doc_id ="

_SCHEMA: Final = f"""
CREATE TABLE documents (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  doc_id TEXT NOT NULL UNIQUE CHECK (length(CAST(doc_id AS BLOB)) BETWEEN 1 AND 2048),
  number INTEGER CHECK (number BETWEEN 0 AND 9007199254740991),
  digest TEXT,
  deleted INTEGER NOT NULL DEFAULT 0 CHECK (deleted IN (0, 1)),
  updated_at TEXT,
  written_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')),
  rev INTEGER NOT NULL DEFAULT 0,
  model TEXT,
  dimension INTEGER,
  chunking TEXT,
  chunk_count INTEGER NOT NULL DEFAULT 0,
  proven INTEGER NOT NULL DEFAULT 0,
  metadata TEXT NOT NULL DEFAULT '{{}}' CHECK (json_valid(metadata) AND json_type(metadata) = 'object'),
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
""" + revision_triggers("proven = NEW.proven AND NEW.metadata IS OLD.metadata")
# `proven`: the chunks are those that the digest was made of. Foreign SQL on chunks or metadata clears it.
# AUTOINCREMENT: a vector that lost its chunk must not be inherited by a later one.

_INSERT: Final = (
    "INSERT INTO documents (doc_id, number, digest, deleted, updated_at, written_at, rev, model, dimension, chunking,"
    " chunk_count, proven, metadata) VALUES"
)
_UPSERT: Final = (
    "ON CONFLICT (doc_id) DO UPDATE SET number = excluded.number, digest = excluded.digest, deleted = excluded.deleted,"
    " updated_at = excluded.updated_at, written_at = excluded.written_at, rev = excluded.rev, model = excluded.model,"
    " dimension = excluded.dimension, chunking = excluded.chunking, chunk_count = excluded.chunk_count,"
    " proven = excluded.proven, metadata = excluded.metadata"
)


@attrs.frozen
class NearestHit:
    """A document near a query, by its nearest chunk."""

    doc_id: str
    start: int
    """Where the chunk starts in the document's text, in characters."""
    text: str = attrs.field(repr=False)
    """The chunk."""
    distance: float
    """Euclidean; for vectors of length 1, the square root of 2 - 2 * cosine."""


@attrs.frozen
class _Payload:
    metadata: str
    chunks: Sequence[Chunk]
    vectors: Sequence[Vector]


_TOMBSTONE: Final = _Payload("{}", (), ())


class SQLiteVectorStore(SqliteStore):
    """A vector store in one SQLite file; made by `open_sqlite_vector`.

    Whether a vector is there is looked up in ``vectors_<dimension>_rowids``, sqlite-vec's own table of where each
    vector lies: 30 to 100 times as fast as asking for the vector itself, and without it sqlite-vec finds none either.
    What nobody sees is that the numbers *of* a vector were changed by foreign SQL.
    """

    def __init__(
        self,
        file: SqliteFile,
        traits: StoreTraits,
        clock: Callable[[], float],
        embedder: Embedder,
        chunker: Chunker,
        identity: EmbeddingIdentity,
    ) -> None:
        super().__init__(file, traits, clock)
        self._embedder = embedder
        self._chunker = chunker
        self._identity = identity
        self._partition = f"{identity.model} {identity.chunking}"
        self._swept = -float("inf")

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        """Check, chunk and embed documents, without any effect.

        `StoreRejected` for one whose digest is not that of its content, or that chunker or embedder cannot take;
        `StoreUnavailable` for one for which the embedder failed in a way that may pass.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.

        **If cancelled:** nothing has changed.
        """
        checked = list(await super().prepare(documents))
        pieces: dict[int, Sequence[Chunk]] = {}
        for index, (document, answer) in enumerate(zip(documents, checked, strict=True)):
            if isinstance(answer, StoreError):
                continue
            if document.text is None:
                checked[index] = Prepared(document=document, payload=_TOMBSTONE)
                continue
            chunks = cut(self._chunker, document.text)
            if isinstance(chunks, Failure):
                checked[index] = self._failed(chunks, document)
            else:
                pieces[index] = chunks
        texts = [chunk.text for chunks in pieces.values() for chunk in chunks]
        vectors = iter(await embed_texts(self._embedder, texts))
        for index, chunks in pieces.items():
            own = [next(vectors) for _ in chunks]
            failure = next((one for one in own if isinstance(one, Failure)), None)
            answer = checked[index]
            if failure is not None:
                checked[index] = self._failed(failure, documents[index])
            elif isinstance(answer, Prepared):
                good = [one for one in own if not isinstance(one, Failure)]
                checked[index] = attrs.evolve(answer, payload=_Payload(answer.payload, chunks, good))
        return checked

    async def nearest(self, text: str, limit: int = 10) -> Sequence[NearestHit]:
        """Find the live documents whose chunks are nearest to a text, nearest first, each document once.

        Only documents of the present embedding identity are compared; distances between models mean nothing.

        Args:
            text: the query; it is embedded as it is.
            limit: at most so many documents, from 1 to 4,096.

        Raises:
            InvalidValue: `limit` is not usable.
            StoreRejected: the embedder cannot take the query.
            StoreUnavailable: the embedder failed, or the file cannot be read now.

        **If cancelled:** nothing has changed.
        """
        check_limit(limit, maximum=_MAX_NEIGHBOURS)
        (vector,) = await embed_texts(self._embedder, [text])
        if isinstance(vector, Failure):
            raise self._failed(vector, None)
        return await self._run(self._nearest_call, vector, limit)

    def _failed(self, failure: Failure, document: Document | None) -> StoreError:
        kind = StoreUnavailable if failure.transient else StoreRejected
        return kind(self._name, failure.problem, None if document is None else document.doc_id)

    def _nearest_call(self, session: Session, vector: Vector, limit: int) -> list[NearestHit]:
        dimension = self._identity.dimension
        if dimension not in _dimensions(session.main):
            return []
        sql = (
            "WITH near AS MATERIALIZED (SELECT rowid, distance FROM"
            f" vectors_{dimension} WHERE identity = ? AND embedding MATCH ? AND k = ?)"
            " SELECT CAST(json_object('found', (SELECT count(*) FROM near), 'hits',"
            " json_group_array(json_array(doc_id, start, text, distance))) AS BLOB)"
            " FROM (SELECT d.doc_id, c.start, c.text, near.distance FROM near"
            " JOIN chunks AS c ON c.chunk_id = near.rowid JOIN documents AS d ON d.doc_id = c.doc_id"
            " WHERE d.deleted = 0 AND (d.model, d.dimension, d.chunking) = (?, ?, ?)"
            " ORDER BY near.distance, c.chunk_id)"
        )
        identity = (self._identity.model, dimension, self._identity.chunking)
        asked = min(limit * 2, _MAX_NEIGHBOURS)
        while True:
            answer = load_json(session.main.execute(sql, (self._partition, vector, asked, *identity)).get)
            best: dict[str, NearestHit] = {}
            for hit in answer["hits"]:
                best.setdefault(hit[0], NearestHit(*hit))
            if len(best) >= limit or answer["found"] < asked or asked == _MAX_NEIGHBOURS:
                return list(best.values())[:limit]
            asked = min(asked * 4, _MAX_NEIGHBOURS)

    def _columns(self, connection: apsw.Connection, content: str) -> str:
        counts = "count(*) || '-' || {} || '-' || ifnull(max(c.ordinal), -1)"
        own = "WHERE c.doc_id = d.doc_id"
        cases = "".join(
            f" WHEN {dimension} THEN (SELECT {counts.format('count(v.rowid)')} FROM chunks AS c"
            f" LEFT JOIN vectors_{dimension}_rowids AS v ON v.rowid = c.chunk_id {own})"
            for dimension in _dimensions(connection)
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
            " CASE WHEN d.deleted = 0 THEN"
            " json_object('model', d.model, 'dimension', d.dimension, 'chunking', d.chunking) || '' END AS embedding,"
            f" {needed} THEN (SELECT json_group_array(json_array(start, text)) FROM ({chunks})) || '' END AS text,"
            f" {needed} THEN d.metadata END AS metadata"
        )

    def _text(self, raw: Any) -> str | None:
        return None if raw is None else rebuild_text(json.loads(raw))

    def _put(self, session: Session, puts: Sequence[Put]) -> None:
        main = session.main
        dimension = self._identity.dimension
        now = self._now_text()
        documents: list[Sequence[Any]] = []
        chunks: list[Sequence[Any]] = []
        vectors: list[Sequence[Any]] = []
        chunk_id = _last_chunk_id(main)
        for put in puts:
            payload: _Payload = put.payload
            version, doc_id = put.document.version, put.document.doc_id
            made = (None, None, None) if version.deleted else (self._identity.model, dimension, self._identity.chunking)
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
                    len(payload.chunks),
                    1,
                    payload.metadata,
                )
            )
            for ordinal, (chunk, vector) in enumerate(zip(payload.chunks, payload.vectors, strict=True)):
                chunk_id += 1
                chunks.append((chunk_id, doc_id, ordinal, chunk.start, chunk.text))
                vectors.append((chunk_id, self._partition, vector))
        insert_rows(main, _INSERT, documents, _UPSERT)  # first: its rev tells the triggers on chunks that it is us
        self._drop_chunks(main, json.dumps([put.document.doc_id for put in puts], ensure_ascii=False))
        if chunks:
            if dimension not in _dimensions(main):
                main.execute(
                    f"CREATE VIRTUAL TABLE vectors_{dimension}"
                    f" USING vec0 (identity TEXT PARTITION KEY, embedding FLOAT[{dimension}])"
                )
            insert_rows(main, "INSERT INTO chunks (chunk_id, doc_id, ordinal, start, text) VALUES", chunks)
            insert_rows(main, f"INSERT INTO vectors_{dimension} (rowid, identity, embedding) VALUES", vectors)
        if not all(put.before.intact for put in puts):
            self._sweep(main)

    def _erase(self, session: Session, ids: str) -> None:
        session.main.execute("DELETE FROM documents WHERE doc_id IN (SELECT value FROM json_each(?))", (ids,))
        self._drop_chunks(session.main, ids)

    @staticmethod
    def _drop_chunks(main: apsw.Connection, ids: str) -> None:
        theirs = "doc_id IN (SELECT value FROM json_each(?))"
        for dimension in _dimensions(main):
            main.execute(
                f"DELETE FROM vectors_{dimension} WHERE rowid IN (SELECT chunk_id FROM chunks WHERE {theirs})", (ids,)
            )
        main.execute(f"DELETE FROM chunks WHERE {theirs}", (ids,))

    def _sweep(self, main: apsw.Connection) -> None:
        """Delete vectors whose chunk row was lost; they are never found, but would be compared for ever.

        Not more than once a minute, because it looks at every vector.
        """
        if time.monotonic() - self._swept < _SWEEP_SECONDS:
            return
        self._swept = time.monotonic()
        for dimension in _dimensions(main):
            main.execute(
                f"DELETE FROM vectors_{dimension} WHERE rowid IN (SELECT rowid FROM vectors_{dimension}_rowids"
                " WHERE rowid NOT IN (SELECT chunk_id FROM chunks))"
            )


_SWEEP_SECONDS: Final = 60.0


def _dimensions(connection: apsw.Connection) -> list[int]:
    """The dimensions for which there is a table of vectors; asked each time, since another process may add one."""
    names = connection.execute(
        "SELECT group_concat(substr(name, 9, length(name) - 15)) FROM sqlite_schema"
        " WHERE type = 'table' AND name GLOB 'vectors_[1-9]*_rowids'"
    ).get
    return [int(name) for name in str(names).split(",") if name.isdecimal()] if names else []


def _last_chunk_id(connection: apsw.Connection) -> int:
    """The highest chunk_id that was ever used."""
    return int(connection.execute("SELECT ifnull(max(seq), 0) FROM sqlite_sequence WHERE name = 'chunks'").get)


def _load_sqlite_vec(connection: apsw.Connection) -> None:
    connection.enable_load_extension(True)  # noqa: FBT003 - the driver takes no keyword
    connection.load_extension(sqlite_vec.loadable_path())
    connection.enable_load_extension(False)  # noqa: FBT003


def open_sqlite_vector(
    path: str | os.PathLike[str],
    *,
    embedder: Embedder,
    chunker: Chunker,
    content: ContentDefinition | None = None,
    create: bool = False,
    synchronous: Synchronous = "full",
    name: str = "vector",
    clock: Callable[[], float] = time.time,
) -> AbstractAsyncContextManager[SQLiteVectorStore]:
    """Open a vector store in one SQLite file, and close it on the way out.

    Documents that were embedded by another model or in other chunks stay readable; a check finds them, and a repair
    embeds them anew.

    Args:
        path: the file. On a directory that cannot be written to, the store is opened for reading only.
        embedder: makes the vectors, of at most 8,192 numbers.
        chunker: cuts the texts.
        content: what a document's digest covers; None: the text alone. A file remembers what it was made for.
        create: make the file (mode 0600) if it is not there.
        synchronous: how hard commits are pushed to the disk; see `Synchronous`.
        name: the store's name in errors.
        clock: Unix seconds, for the time at which a row was written.

    Raises (at once, or on entering):
        InvalidValue: an argument is not usable.
        StoreFileError: the file is missing, foreign, damaged, locked, or made for other content.

    **If cancelled:** the file is closed. It may have been made; never in part.
    """
    check_embedder(embedder)
    identity = EmbeddingIdentity(model=embedder.model, dimension=embedder.dimension, chunking=chunker.identity)
    file = SqliteFile(
        path=Path(path),
        store=name,
        kind="sqlite-vector",
        content=ContentDefinition() if content is None else content,
        schema=_SCHEMA,
        create=create,
        synchronous=synchronous,
        load_extensions=_load_sqlite_vec,
    )
    traits = StoreTraits(
        fence=Fence.STRONG,
        holds_text=True,
        keeps_tombstones=True,
        absent=AbsentMeans.MISSING,
        embedding=identity,
    )
    return opened(SQLiteVectorStore(file, traits, clock, embedder, chunker, identity))


def sqlite_vector_from_settings(
    settings: Mapping[str, Any], *, name: str, directory: Path, content: ContentDefinition, create: bool
) -> AbstractAsyncContextManager[SQLiteVectorStore]:
    """The kind "sqlite-vector" of a configuration file: `path`, and perhaps `synchronous`, `embedder` and `chunker`.

    `embedder` is a table: ``kind = "hashing"`` (the default) with `dimension`, or ``kind = "package.module:name"``, a
    callable that is called with the table's other keys and returns an embedder. `chunker` likewise: ``kind =
    "windows"`` (the default) with `size` and `overlap`, or a callable.

    Raises:
        InvalidValue: a setting is unknown, missing or wrong; its key is named.
    """
    refuse_unknown(settings, ("path", "synchronous", "embedder", "chunker"))
    return open_sqlite_vector(
        path_setting(settings, directory),
        embedder=embedder_setting(settings),
        chunker=chunker_setting(settings),
        content=content,
        create=create,
        synchronous=synchronous_setting(settings),
        name=name,
    )
