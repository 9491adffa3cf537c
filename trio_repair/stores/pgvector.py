"""The vector store on PostgreSQL with pgvector: chunks of documents in a plain table, found by an HNSW index.

``documents`` has a row for each document and tombstone, ``chunks`` a row for each chunk, with its vector. Triggers
notice whatever anybody else does to either. Vectors are compared by cosine distance; HNSW finds nearly all of the
nearest, not always all. Vectors of more than 4,000 numbers have no index and are compared one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import attrs
import psycopg

from trio_repair import (
    AbsentMeans,
    ContentDefinition,
    Document,
    Fence,
    Prepared,
    StoreError,
    StoreTraits,
    WriteAnswer,
)
from trio_repair.abc import Chunker, Embedder

from ._embedding import Vector
from ._encoding import check_limit
from ._fence import Change
from ._jsonb import check_jsonb
from ._nearest_hit import NearestHit
from ._pgvector_layout import (
    Packed,
    VectorWriter,
    check_identity,
    find_extension,
    identity_key,
    make_index,
    statements,
    vector_looking,
)
from ._pgvector_mapped import MappedVectorStore, chunk_finder
from ._postgres import Server, Session, check_schema, literal
from ._postgres_errors import without_content
from ._postgres_layout import View
from ._postgres_mapped import open_mapped, refuse_beside
from ._postgres_mapping import chunk_mapping
from ._postgres_settings import (
    LOCK_TIMEOUT,
    SERVER_SETTINGS,
    STATEMENT_TIMEOUT,
    make_server,
    schema_setting,
    server_setting,
)
from ._postgres_tables import OwnTablesStore, Tables
from ._settings import chunker_setting, embedder_setting, refuse_unknown
from ._threaded_store import opened
from ._vector_preparing import VectorPreparing

__all__ = [
    "MappedVectorStore",
    "NearestHit",
    "PgvectorStore",
    "open_pgvector",
    "open_pgvector_table",
    "pgvector_from_settings",
]

SCHEMA: Final = "trio_repair_vector"
_MAX_BATCH: Final = 256
_MAX_BATCH_BYTES: Final = 2**20
"""HNSW takes about a millisecond for each vector that it sorts in: a call must end long before it is given up."""
_MAX_NEIGHBOURS: Final = 4096
_MOST_SEARCHED: Final = 1000
"""The most that pgvector takes for hnsw.ef_search."""


class PgvectorStore(OwnTablesStore):
    """A vector store in one schema of a PostgreSQL database; made by `open_pgvector`."""

    def __init__(
        self, server: Server, traits: StoreTraits, tables: Tables, preparing: VectorPreparing, *, create: bool
    ) -> None:
        identity = preparing.identity
        view = View(server.store, tables.content, vector_looking(tables.prefix, identity))
        self._vectors = VectorWriter(tables.prefix, identity)
        super().__init__(server, traits, view, self._vectors)
        self._tables = tables
        self._create = create
        self._preparing = preparing
        self._identity = identity

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        """Check, chunk and embed documents, without any effect. A text that was embedded lately is not embedded again.

        `StoreRejected` for one whose digest is not that of its content, that PostgreSQL cannot hold, or that chunker or
        embedder cannot take; `StoreUnavailable` for one for which the embedder failed in a way that may pass.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.

        **If cancelled:** nothing has changed.
        """
        return await self._preparing.prepare(await super().prepare(documents))

    async def nearest(self, text: str, limit: int = 10) -> Sequence[NearestHit]:
        """Find the live documents whose chunks are nearest to a text, nearest first, each document once.

        Only documents of the present embedding identity are compared; distances between models mean nothing. The
        distance is that of the vectors scaled to length 1. A text with the zero vector is near nothing.

        Args:
            text: the query; it is embedded as it is.
            limit: at most so many documents, from 1 to 4,096.

        Raises:
            InvalidValue: `limit` is not usable.
            StoreRejected: the embedder cannot take the query.
            StoreUnavailable: the embedder failed, or the server cannot be asked now.

        **If cancelled:** nothing has changed.
        """
        check_limit(limit, maximum=_MAX_NEIGHBOURS)
        vector = await self._preparing.embed_query(text)
        return await self._run(self._nearest_call, vector, limit)

    def _prepare(self, document: Document) -> Prepared | StoreError:
        answer = super()._prepare(document)
        if isinstance(answer, StoreError):
            return answer
        refused = check_jsonb(self._name, self._tables.content, document)
        return answer if refused is None else refused

    def _change_call(self, session: Session, changes: Sequence[Change]) -> list[WriteAnswer]:
        if any(one.prepared is not None and not one.prepared.document.version.deleted for one in changes):
            self._vectors.index_first(session)
        return super()._change_call(session, changes)

    def _nearest_call(self, session: Session, vector: Vector, limit: int) -> list[NearestHit]:
        extension = find_extension(session)
        if extension is None:
            raise self._without_extension()
        kind = extension.indexed(self._identity) or f"{extension.prefix}vector({self._identity.dimension})"
        chunks, documents = f"{self._tables.prefix}chunks", f"{self._tables.prefix}documents"
        sql = (
            "WITH near AS MATERIALIZED (SELECT c.doc_id, c.ordinal, c.start, c.text,"
            f" c.embedding::{kind} OPERATOR({extension.prefix}<=>) %(vector)b::{extension.prefix}vector::{kind} AS far"
            f" FROM {chunks} AS c WHERE c.identity = {literal(identity_key(self._identity))}"
            " ORDER BY far LIMIT %(asked)s)"
            " SELECT n.doc_id, n.start, n.text, n.far, d.doc_id IS NOT NULL FROM near AS n"
            f" LEFT JOIN {documents} AS d ON d.doc_id = n.doc_id AND NOT d.deleted AND {self._view.looking.current}"
            " ORDER BY n.far, n.doc_id, n.ordinal"
        )
        asked = min(limit * 2, _MAX_NEIGHBOURS)
        session.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY")
        if extension.iterates:
            session.execute("SET LOCAL hnsw.iterative_scan = strict_order")
        while True:
            session.execute(f"SET LOCAL hnsw.ef_search = {max(40, min(asked, _MOST_SEARCHED))}")
            rows = session.execute(sql, {"vector": Packed(vector), "asked": asked}).fetchall()
            best: dict[str, NearestHit] = {}
            for doc_id, start, text, far, current in rows:
                if current and not math.isnan(far):
                    best.setdefault(doc_id, NearestHit(doc_id, start, text, math.sqrt(max(0.0, 2.0 * far))))
            if len(best) >= limit or len(rows) < asked or asked == _MAX_NEIGHBOURS:
                session.execute("ROLLBACK")
                return list(best.values())[:limit]
            asked = min(asked * 4, _MAX_NEIGHBOURS)

    def _open_call(self, session: Session) -> None:
        if self._create:
            self._make_extension(session)
        extension = find_extension(session)
        if extension is None:
            raise self._without_extension()
        made = statements(self._tables.prefix, self._tables.content, f"{extension.prefix}vector")
        self._tables = attrs.evolve(self._tables, statements=made)
        super()._open_call(session)
        if self._create:
            make_index(session, self._tables.prefix, self._identity, extension)

    def _make_extension(self, session: Session) -> None:
        failure: psycopg.Error
        try:
            session.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateObject):
            return  # somebody else has made it at the same moment
        except psycopg.Error as error:
            failure = error
        else:
            return
        raise self._without_extension() from without_content(failure)

    def _without_extension(self) -> StoreError:
        return self._server.error(
            "the extension pgvector is not there; install it on the server, and run CREATE EXTENSION vector in the"
            " database as a user who may"
        )


def open_pgvector(
    dsn: str,
    *,
    embedder: Embedder,
    chunker: Chunker,
    schema: str = SCHEMA,
    content: ContentDefinition | None = None,
    create: bool = False,
    statement_timeout: float = STATEMENT_TIMEOUT,
    lock_timeout: float = LOCK_TIMEOUT,
    name: str = "vector",
) -> AbstractAsyncContextManager[PgvectorStore]:
    """Open a vector store in one schema of a PostgreSQL database with pgvector, and close it on the way out.

    Documents that were embedded by another model or in other chunks stay readable; a check finds them, and a repair
    embeds them anew, in the same tables.

    Args:
        dsn: the database, as libpq is told it: a URI, or ``key=value`` pairs. What it leaves out, libpq's environment
            variables and files say, such as the password.
        embedder: makes the vectors, of at most 8,192 numbers.
        chunker: cuts the texts.
        schema: where the store's tables are.
        content: what a document's digest covers; None: the text alone. A store remembers what it was made for.
        create: make the extension, the schema, its tables and the embedding's index if they are not there.
        statement_timeout: seconds after which the server stops a statement of this store.
        lock_timeout: seconds that a lock which another transaction holds is waited for.
        name: the store's name in errors.

    Raises (at once, or on entering):
        InvalidValue: an argument is not usable; `schema` too, if it holds no store, or one of another kind.
        StoreUnavailable: the server cannot be reached, does not let us in, or has no such database or extension.

    **If cancelled:** the connections are closed. The tables may have been made; never in part.
    """
    server = make_server(name, dsn, statement_timeout=statement_timeout, lock_timeout=lock_timeout)
    return _open(server, embedder=embedder, chunker=chunker, schema=schema, content=content, create=create)


def open_pgvector_table(
    dsn: str,
    table: Mapping[str, Any],
    *,
    embedder: Embedder,
    chunker: Chunker,
    content: ContentDefinition | None = None,
    statement_timeout: float = STATEMENT_TIMEOUT,
    lock_timeout: float = LOCK_TIMEOUT,
    name: str = "vector",
) -> AbstractAsyncContextManager[MappedVectorStore]:
    """Open a table of chunks that an application has made, and close it on the way out. Nothing is added to it.

    Args:
        dsn: the database, as `open_pgvector` is told it.
        table: which table and which columns are what: `name`, `document`, `text`, `embedding` and more, as in a
            configuration file; see docs/servers.md.
        embedder: makes the vectors that are written, as the application's own are made.
        chunker: cuts the texts, as the application does.
        content: what a document's digest covers; None: the text alone. There is no place for metadata.
        statement_timeout: seconds after which the server stops a statement of this store.
        lock_timeout: seconds that a lock which another transaction holds is waited for.
        name: the store's name in errors.

    Raises (at once, or on entering):
        InvalidValue: an argument is not usable, or the table is not what `table` says; the key is named.
        StoreUnavailable: the server cannot be reached, does not let us in, or lets us not look at the table.

    **If cancelled:** the connections are closed.
    """
    server = make_server(name, dsn, statement_timeout=statement_timeout, lock_timeout=lock_timeout)
    definition = ContentDefinition() if content is None else content
    return open_mapped(server, chunk_finder(server, chunk_mapping(table), definition, embedder, chunker))


def _open(
    server: Server,
    *,
    embedder: Embedder,
    chunker: Chunker,
    schema: str,
    content: ContentDefinition | None,
    create: bool,
) -> AbstractAsyncContextManager[PgvectorStore]:
    preparing = VectorPreparing(server.store, embedder, chunker)
    check_identity(preparing.identity)
    tables = Tables(
        schema=check_schema(schema),
        kind="pgvector",
        content=ContentDefinition() if content is None else content,
        meta={},
        statements=(),  # they need to know where the extension is
    )
    traits = StoreTraits(
        fence=Fence.STRONG,
        holds_text=True,
        keeps_tombstones=True,
        absent=AbsentMeans.MISSING,
        max_batch=_MAX_BATCH,
        max_batch_bytes=_MAX_BATCH_BYTES,
        embedding=preparing.identity,
    )
    return opened(PgvectorStore(server, traits, tables, preparing, create=create))


def pgvector_from_settings(
    settings: Mapping[str, Any], *, name: str, directory: Path, content: ContentDefinition, create: bool
) -> AbstractAsyncContextManager[PgvectorStore | MappedVectorStore]:
    """The kind "pgvector" of a configuration file: which server, and perhaps `schema` or `table`, and how to embed.

    The server is named as for "postgres-text", embedder and chunker are as for "sqlite-vector".

    Raises:
        InvalidValue: a setting is unknown, missing or wrong; its key is named.
    """
    del directory  # no setting is a path of ours
    refuse_unknown(settings, (*SERVER_SETTINGS, "schema", "table", "embedder", "chunker"))
    if "table" in settings:
        refuse_beside(settings, "schema")
        mapping = chunk_mapping(settings["table"])
        server = server_setting(settings, name)
        embedder, chunker = embedder_setting(settings), chunker_setting(settings)
        return open_mapped(server, chunk_finder(server, mapping, content, embedder, chunker))
    return _open(
        server_setting(settings, name),
        embedder=embedder_setting(settings),
        chunker=chunker_setting(settings),
        schema=schema_setting(settings, SCHEMA),
        content=content,
        create=create,
    )
