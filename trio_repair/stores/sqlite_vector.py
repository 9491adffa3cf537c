"""The embedded vector store: chunks of documents in plain SQLite tables, their vectors in sqlite-vec.

``documents`` has a row for each document and tombstone, ``chunks`` a row for each chunk, and ``vectors_<dimension>``
(a sqlite-vec table, one for each dimension that was ever written, because such a table has only one) a vector for
each chunk, whose rowid is the chunk's ``chunk_id``. sqlite-vec compares a query with *every* vector of the current
embedding identity: some 10 ms for 6,000 vectors of 256 numbers, and in proportion.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

from trio_repair import (
    AbsentMeans,
    ContentDefinition,
    Document,
    Fence,
    Prepared,
    StoreError,
    StoreTraits,
)
from trio_repair.abc import Chunker, Embedder

from ._embedding import Vector
from ._encoding import check_limit, load_json
from ._nearest_hit import NearestHit
from ._settings import chunker_setting, embedder_setting, path_setting, refuse_unknown, synchronous_setting
from ._sqlite import Session, SqliteFile, Synchronous
from ._sqlite_store import MAX_BATCH, TombstoneStore
from ._threaded_store import opened
from ._vector_layout import VectorLayout, cache_for_vectors, dimensions, load_sqlite_vec, vector_schema
from ._vector_preparing import VectorPreparing

__all__ = ["NearestHit", "SQLiteVectorStore", "open_sqlite_vector", "sqlite_vector_from_settings"]

_MAX_NEIGHBOURS: Final = 4096
"""sqlite-vec gives no more."""


class SQLiteVectorStore(TombstoneStore):
    """A vector store in one SQLite file; made by `open_sqlite_vector`.

    Whether a vector is there is looked up in ``vectors_<dimension>_rowids``, sqlite-vec's own table of where each
    vector lies: 30 to 100 times as fast as asking for the vector itself, and without it sqlite-vec finds none either.
    What nobody sees is that the numbers *of* a vector were changed by foreign SQL.
    """

    def __init__(
        self,
        file: SqliteFile,
        traits: StoreTraits,
        layout: VectorLayout,
        preparing: VectorPreparing,
    ) -> None:
        super().__init__(file, traits, layout)
        self._preparing = preparing
        self._identity = layout.identity
        self._partition = layout.partition

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        """Check, chunk and embed documents, without any effect. A text that was embedded lately is not embedded again.

        `StoreRejected` for one whose digest is not that of its content, or that chunker or embedder cannot take;
        `StoreUnavailable` for one for which the embedder failed in a way that may pass.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.

        **If cancelled:** nothing has changed.
        """
        return await self._preparing.prepare(await super().prepare(documents))

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
        vector = await self._preparing.embed_query(text)
        return await self._run(self._nearest_call, vector, limit)

    def _nearest_call(self, session: Session, vector: Vector, limit: int) -> list[NearestHit]:
        dimension = self._identity.dimension
        if dimension not in dimensions(session.main):
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
    preparing = VectorPreparing(name, embedder, chunker)
    definition = ContentDefinition() if content is None else content
    file = SqliteFile(
        path=Path(path),
        store=name,
        kind="sqlite-vector",
        content=definition,
        schema=vector_schema(definition),
        create=create,
        synchronous=synchronous,
        load_extensions=load_sqlite_vec,
        more_cache_kb=cache_for_vectors(embedder.dimension),
    )
    traits = StoreTraits(
        fence=Fence.STRONG,
        holds_text=True,
        keeps_tombstones=True,
        absent=AbsentMeans.MISSING,
        max_batch=MAX_BATCH,
        embedding=preparing.identity,
    )
    layout = VectorLayout(name, definition, clock, preparing.identity)
    return opened(SQLiteVectorStore(file, traits, layout, preparing))


def sqlite_vector_from_settings(
    settings: Mapping[str, Any], *, name: str, directory: Path, content: ContentDefinition, create: bool
) -> AbstractAsyncContextManager[SQLiteVectorStore]:
    """The kind "sqlite-vector" of a configuration file: `path`, and perhaps `synchronous`, `embedder` and `chunker`.

    `embedder` is a table: ``kind = "hashing"`` (the default) with `dimension` and `processes`, or ``kind =
    "package.module:name"``, a callable that is called with the table's other keys and returns an embedder. `chunker`
    likewise: ``kind = "windows"`` (the default) with `size` and `overlap`, or a callable.

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
