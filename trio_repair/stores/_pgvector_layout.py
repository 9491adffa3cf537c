"""The tables of the vector store on PostgreSQL.

The column ``embedding`` has no dimension of its own. Each embedding identity that was ever written has an index to
itself, over its own chunks: vectors of different models are never compared, and a change of the model, of the same
dimension or another, needs no other table. What is left of an old identity's index is empty once all is embedded anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs
import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types import TypeInfo

from trio_repair import ContentDefinition, EmbeddingIdentity, InvalidValue
from trio_repair.embedding import rebuild_text

from ._embedding import Vector
from ._postgres import Session, literal, quoted_name
from ._postgres_errors import is_definite
from ._postgres_layout import Looking, Put, iso_moment, sent_moment
from ._postgres_tables import (
    DOC_ID_COLUMN,
    IS_OWN,
    METADATA_COLUMN,
    NUMBER_COLUMN,
    next_revision,
    trigger_function,
    unnest,
)
from ._vector_preparing import Payload

_LONGEST_VECTOR: Final = 2000
_LONGEST_HALF: Final = 4000
"""Numbers of a vector that HNSW takes, as 32-bit floats and as 16-bit floats; longer ones are compared one by one."""
_HALVES_SINCE: Final = (0, 7)
_ITERATIVE_SINCE: Final = (0, 8)

_DOCUMENTS: Final[Mapping[str, str]] = {
    "doc_id": "text",
    "metadata": "text",
    "number": "bigint",
    "digest": "text",
    "deleted": "boolean",
    "updated_at": "text",
    "model": "text",
    "dimension": "integer",
    "chunking": "text",
    "chunk_count": "integer",
    "proven": "boolean",
}
_VALUES: Final = ", ".join(
    f"s.{name}::{kind} AS {name}"
    for name, kind in {**_DOCUMENTS, "metadata": "jsonb", "updated_at": "timestamptz"}.items()
)


def statements(prefix: str, content: ContentDefinition, vector: str) -> list[str]:
    """What makes the tables; `vector` is the type's name, with its schema."""
    # Metadata that is no part of the content is none of the digest's business.
    kept = " AND NEW.metadata IS NOT DISTINCT FROM OLD.metadata" if content.metadata_keys else ""
    written = f"""  NEW.rev := {next_revision(prefix)};
  NEW.written_at := clock_timestamp();
  IF NEW.deleted THEN NEW.digest := ''; END IF;
  IF NOT {IS_OWN} THEN
    IF TG_OP = 'INSERT' THEN NEW.proven := false;
    ELSE NEW.proven := NEW.proven AND OLD.proven AND NEW.digest IS NOT DISTINCT FROM OLD.digest{kept};
    END IF;
  END IF;
  RETURN NEW;"""
    distrust = f"UPDATE {prefix}documents SET proven = false"
    changed = f"""  IF NOT {IS_OWN} THEN
    {distrust} WHERE doc_id IN (SELECT doc_id FROM changed);
  END IF;
  RETURN NULL;"""
    updated = f"""  IF NOT {IS_OWN} THEN
    {distrust} WHERE doc_id IN (SELECT doc_id FROM old_rows UNION SELECT doc_id FROM changed);
  END IF;
  RETURN NULL;"""
    triggers = {
        "documents_written": ("documents", "BEFORE INSERT OR UPDATE", "FOR EACH ROW", written),
        "documents_buried": (
            "documents",
            "AFTER UPDATE OF deleted",
            "FOR EACH ROW WHEN (NEW.deleted AND NOT OLD.deleted)",
            f"  DELETE FROM {prefix}chunks WHERE doc_id = NEW.doc_id;\n  RETURN NULL;",
        ),
        "chunks_inserted": ("chunks", "AFTER INSERT", "REFERENCING NEW TABLE AS changed FOR EACH STATEMENT", changed),
        "chunks_deleted": ("chunks", "AFTER DELETE", "REFERENCING OLD TABLE AS changed FOR EACH STATEMENT", changed),
        "chunks_updated": (
            "chunks",
            "AFTER UPDATE",
            "REFERENCING OLD TABLE AS old_rows NEW TABLE AS changed FOR EACH STATEMENT",
            updated,
        ),
        "chunks_truncated": ("chunks", "AFTER TRUNCATE", "FOR EACH STATEMENT", f"  {distrust};\n  RETURN NULL;"),
    }
    made = [
        f"""CREATE TABLE {prefix}documents (
  {DOC_ID_COLUMN},
  {NUMBER_COLUMN},
  digest text,
  deleted boolean NOT NULL DEFAULT false,
  updated_at timestamptz,
  written_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  rev bigint NOT NULL DEFAULT 0,
  model text,
  dimension integer,
  chunking text,
  chunk_count integer NOT NULL DEFAULT 0,
  proven boolean NOT NULL DEFAULT false,
  {METADATA_COLUMN},
  CHECK (deleted OR (model IS NOT NULL AND dimension IS NOT NULL AND chunking IS NOT NULL))
)""",
        f"CREATE INDEX documents_deleted ON {prefix}documents (doc_id) WHERE deleted",
        f"""CREATE TABLE {prefix}chunks (
  doc_id text COLLATE "C" NOT NULL REFERENCES {prefix}documents ON UPDATE CASCADE ON DELETE CASCADE,
  ordinal integer NOT NULL CHECK (ordinal >= 0),
  start integer NOT NULL CHECK (start >= 0),
  identity text NOT NULL,
  text text NOT NULL,
  embedding {vector} NOT NULL,
  PRIMARY KEY (doc_id, ordinal)
)""",
    ]
    for name, (table, event, how, body) in triggers.items():
        made += [
            trigger_function(prefix, name, body),
            f"CREATE TRIGGER {name} {event} ON {prefix}{table} {how} EXECUTE FUNCTION {prefix}{name}()",
            f"ALTER TABLE {prefix}{table} ENABLE ALWAYS TRIGGER {name}",
        ]
    return made


def identity_key(identity: EmbeddingIdentity) -> str:
    """What stands in ``chunks.identity``: short, so that it costs little in each row and in the name of an index."""
    named = json.dumps([identity.model, identity.dimension, identity.chunking])
    return hashlib.sha256(named.encode()).hexdigest()[:16]


@attrs.frozen(kw_only=True)
class Extension:
    """pgvector, as it is installed in a database."""

    prefix: str
    """Its schema, quoted, and the point behind it."""
    version: tuple[int, ...]
    oid: int
    array_oid: int

    @property
    def iterates(self) -> bool:
        """Whether an index is searched on until enough rows that pass the other conditions were found."""
        return self.version >= _ITERATIVE_SINCE

    def indexed(self, identity: EmbeddingIdentity) -> str | None:
        """The type by which vectors of an identity are indexed; None if they are too long for that."""
        if identity.dimension <= _LONGEST_VECTOR:
            return f"{self.prefix}vector({identity.dimension})"
        if identity.dimension <= _LONGEST_HALF and self.version >= _HALVES_SINCE:
            return f"{self.prefix}halfvec({identity.dimension})"
        return None


def find_extension(session: Session) -> Extension | None:
    """Pgvector in this database; None if it is not installed there."""
    found: Extension | None = session.known.get("pgvector")
    if found is not None:
        return found
    sql = (
        "SELECT n.nspname, e.extversion, t.oid, t.typarray FROM pg_extension AS e"
        " JOIN pg_namespace AS n ON n.oid = e.extnamespace"
        " JOIN pg_type AS t ON t.typnamespace = n.oid AND t.typname = 'vector' WHERE e.extname = 'vector'"
    )
    row = session.execute(sql).fetchone()
    if row is None:
        return None
    schema, version, oid, array_oid = row
    numbers = tuple(int(part) for part in str(version).split(".") if part.isdecimal())
    found = Extension(prefix=f"{quoted_name(schema)}.", version=numbers, oid=oid, array_oid=array_oid)
    dumper = type("_VectorDumper", (_VectorDumper,), {"oid": oid})
    session.main.adapters.types.add(TypeInfo("vector", oid, array_oid))
    session.main.adapters.register_dumper(Packed, dumper)
    session.known["pgvector"] = found
    return found


@attrs.frozen
class Packed:
    """A vector on its way to the server."""

    vector: Vector


class _VectorDumper(Dumper):
    """pgvector's binary form: the dimension, two bytes that are zero, and the numbers, most significant byte first."""

    format = Format.BINARY

    def dump(self, obj: Packed) -> bytes:
        numbers = array("f", obj.vector)
        numbers.byteswap()
        return struct.pack(">HH", len(numbers), 0) + numbers.tobytes()


def make_index(session: Session, prefix: str, identity: EmbeddingIdentity, extension: Extension) -> None:
    """Make the index of an identity, if it is not there and can be."""
    kind = extension.indexed(identity)
    if kind is None:
        return
    key = identity_key(identity)
    operators = f"{extension.prefix}{'halfvec' if 'halfvec' in kind else 'vector'}_cosine_ops"
    # IF NOT EXISTS looks first: of two that make it at the same moment, one is told that it is there.
    with contextlib.suppress(psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable):
        session.execute(
            f"CREATE INDEX IF NOT EXISTS chunks_hnsw_{key} ON {prefix}chunks"
            f" USING hnsw ((embedding::{kind}) {operators}) WHERE identity = {literal(key)}"
        )


def vector_looking(prefix: str, identity: EmbeddingIdentity) -> Looking:
    """How documents are looked at, with their chunks."""
    wanted = f"{literal(identity.model)}, {identity.dimension}, {literal(identity.chunking)}"
    chunks = f"FROM {prefix}chunks AS c WHERE c.doc_id = d.doc_id"
    return Looking(
        table=f"{prefix}documents AS d",
        # Ordinals are distinct and not negative: so many, the last of them one less, are all there are to be.
        join=f"CROSS JOIN LATERAL (SELECT count(*) AS n, coalesce(max(c.ordinal), -1) AS last {chunks}) AS p",
        doc_id="d.doc_id",
        number="d.number",
        digest="d.digest",
        deleted="d.deleted",
        updated_at=iso_moment("d.updated_at"),
        # The parts and xmin besides: they change even where somebody has disabled the triggers.
        token="d.rev::text || '.' || d.xmin::text || '.' || p.n::text || '.' || p.last::text",  # noqa: S106 - no secret
        intact="d.proven AND p.n = d.chunk_count AND p.last = d.chunk_count - 1",
        embedding=("json_build_object('model', d.model, 'dimension', d.dimension, 'chunking', d.chunking)::text"),
        current=f"(d.model, d.dimension, d.chunking) IS NOT DISTINCT FROM ({wanted})",
        text=f"(SELECT json_agg(json_build_array(c.start, c.text) ORDER BY c.ordinal)::text {chunks})",
        metadata="d.metadata::text",
        order="d.doc_id",
        rebuild=_rebuild,
    )


def _rebuild(chunks: str) -> str | None:
    return rebuild_text(json.loads(chunks))


class VectorWriter:
    """A row for each document and tombstone, and one for each chunk with its vector."""

    keeps_tombstones = True

    def __init__(self, prefix: str, identity: EmbeddingIdentity) -> None:
        self._prefix = prefix
        self._identity = identity
        self._key = identity_key(identity)
        table = f"{prefix}documents"
        self._lock = f"SELECT 1 FROM {table} WHERE doc_id = ANY(%s) ORDER BY doc_id FOR UPDATE"
        self._erase = f"DELETE FROM {table} WHERE doc_id = ANY(%s)"
        rows = f"(SELECT {_VALUES} FROM {unnest(_DOCUMENTS)})"
        names = ", ".join(_DOCUMENTS)
        self._insert = (
            f"INSERT INTO {table} ({names}) SELECT {names} FROM {rows} AS n"
            ' ORDER BY n.doc_id COLLATE "C" ON CONFLICT (doc_id) DO NOTHING RETURNING doc_id'
        )
        settings = ", ".join(f"{name} = n.{name}" for name in _DOCUMENTS if name != "doc_id")
        self._update = f"UPDATE {table} AS d SET {settings} FROM {rows} AS n WHERE d.doc_id = n.doc_id"
        self._drop_chunks = f"DELETE FROM {prefix}chunks WHERE doc_id = ANY(%s)"

    def lock(self, session: Session, doc_ids: Sequence[str]) -> None:
        session.execute(self._lock, (list(doc_ids),))

    def put(self, session: Session, puts: Sequence[Put]) -> set[str]:
        held = [put for put in puts if put.existed]
        new = [put for put in puts if not put.existed]
        raced: set[str] = set()
        if held:
            session.execute(self._update, self._bound(held))
            session.execute(self._drop_chunks, ([put.document.doc_id for put in held],))
        if new:
            made = {row[0] for row in session.execute(self._insert, self._bound(new)).fetchall()}
            raced = {put.document.doc_id for put in new} - made
        self._put_chunks(session, [put for put in puts if put.document.doc_id not in raced])
        return raced

    def erase(self, session: Session, doc_ids: Sequence[str]) -> None:
        session.execute(self._erase, (list(doc_ids),))  # and, by the foreign key, their chunks

    def _bound(self, puts: Sequence[Put]) -> dict[str, list[Any]]:
        versions = [put.document.version for put in puts]
        identity = self._identity
        return {
            "doc_id": [put.document.doc_id for put in puts],
            "metadata": [put.payload.metadata for put in puts],
            "number": [version.number for version in versions],
            "digest": [version.digest for version in versions],
            "deleted": [version.deleted for version in versions],
            "updated_at": [sent_moment(version.updated_at) for version in versions],
            "model": [None if version.deleted else identity.model for version in versions],
            "dimension": [None if version.deleted else identity.dimension for version in versions],
            "chunking": [None if version.deleted else identity.chunking for version in versions],
            "chunk_count": [len(put.payload.chunks) for put in puts],
            "proven": [True] * len(puts),
        }

    def _put_chunks(self, session: Session, puts: Sequence[Put]) -> None:
        bound: dict[str, list[Any]] = {"doc_id": [], "ordinal": [], "start": [], "text": [], "embedding": []}
        for put in puts:
            payload: Payload = put.payload
            for ordinal, (chunk, vector) in enumerate(zip(payload.chunks, payload.vectors, strict=True)):
                values = (put.document.doc_id, ordinal, chunk.start, chunk.text, Packed(vector))
                for column, value in zip(bound.values(), values, strict=True):
                    column.append(value)
        if not bound["doc_id"]:
            return
        extension = find_extension(session)
        if extension is None:
            raise psycopg.errors.UndefinedObject("pgvector")
        kinds = {"doc_id": "text", "ordinal": "integer", "start": "integer", "text": "text"}
        session.execute(
            f"INSERT INTO {self._prefix}chunks (doc_id, ordinal, start, identity, text, embedding)"
            f" SELECT s.doc_id, s.ordinal, s.start, {literal(self._key)}, s.text, s.embedding"
            f" FROM {unnest({**kinds, 'embedding': f'{extension.prefix}vector'})}",
            bound,
        )

    def index_first(self, session: Session) -> None:
        """See that this identity has its index before there are vectors to be sorted into it; not in a transaction.

        Who may write may not be the owner, who alone can make an index: then vectors are found without one, slowly.
        """
        if session.known.get("index") == self._key:
            return
        extension = find_extension(session)
        if extension is None:
            raise psycopg.errors.UndefinedObject("pgvector")
        sql = "SELECT 1 FROM pg_class WHERE oid = to_regclass(%s)"
        if session.execute(sql, (f"{self._prefix}chunks_hnsw_{self._key}",)).fetchone() is None:
            try:
                make_index(session, self._prefix, self._identity, extension)
            except psycopg.Error as error:
                if not is_definite(error):
                    raise
        session.known["index"] = self._key


def check_identity(identity: EmbeddingIdentity) -> None:
    """See that the server can hold the names in an identity.

    Raises:
        InvalidValue: one holds NUL.
    """
    if "\0" in identity.model or "\0" in identity.chunking:
        raise InvalidValue("embedder", "its model, or the chunker's identity, holds NUL, which PostgreSQL cannot store")
