"""A hand-written bulk script on the tables and keys of the stores on servers: what the engine does, by plain calls.

Rows go by COPY into temporary tables and from there by one statement each, where the revision is still the one that was
read; entries by a pipeline of one small script each, likewise. The drivers are those of the stores.
"""

from __future__ import annotations

import itertools
import secrets
import struct
from collections.abc import Sequence
from typing import Any, Final

import coredis
import psycopg

from benchmarks._servers import CHUNKER, EMBEDDER, PREFIX, Place
from trio_repair.stores._pgvector_layout import identity_key
from trio_repair.stores._redis_scripts import token_of

Held = tuple[int, str, Any]
"""Number, digest and revision."""
Content = tuple[str, str, str, int, str]
"""Document, text, metadata, number and digest."""

TEXT: Final = "trio_repair_text.documents"
VECTOR: Final = "trio_repair_vector.documents"
CHUNKS: Final = "trio_repair_vector.chunks"
PUT: Final = """
if (redis.call('HGET', KEYS[1], 'rev') or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return 1
"""


def versions(connection: psycopg.Connection[Any], table: str, ids: Sequence[str]) -> dict[str, Held]:
    """Number, digest and revision by document."""
    sql = f"SELECT doc_id, number, digest, rev FROM {table} WHERE doc_id = ANY(%s)"
    return {doc_id: tuple(held) for doc_id, *held in connection.execute(sql, (list(ids),))}  # type: ignore[misc]


def contents(connection: psycopg.Connection[Any], ids: Sequence[str]) -> list[Content]:
    """What the text store holds."""
    sql = f"SELECT doc_id, text, metadata::text, number, digest FROM {TEXT} WHERE doc_id = ANY(%s)"
    return connection.execute(sql, (list(ids),)).fetchall()


class Vectors:
    """The tables of the vector store."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        connection.execute(
            """CREATE TEMPORARY TABLE staged (doc_id text COLLATE "C", number bigint, digest text, metadata text,"""
            " chunk_count integer, rev bigint) ON COMMIT DELETE ROWS"
        )
        connection.execute(
            """CREATE TEMPORARY TABLE staged_chunks (doc_id text COLLATE "C", ordinal integer, start integer,"""
            " text text, embedding vector) ON COMMIT DELETE ROWS"
        )
        model = [EMBEDDER.model, EMBEDDER.dimension, CHUNKER.identity]
        identity = _identity()
        self.update = (
            f"UPDATE {VECTOR} AS d SET number = s.number, digest = s.digest, metadata = s.metadata::jsonb,"
            " chunk_count = s.chunk_count, proven = true, deleted = false, updated_at = NULL, model = %s,"
            " dimension = %s, chunking = %s FROM staged AS s WHERE d.doc_id = s.doc_id AND d.rev = s.rev"
            " RETURNING d.doc_id"
        )
        self.insert = (
            f"INSERT INTO {VECTOR} (doc_id, number, digest, metadata, chunk_count, proven, model, dimension, chunking)"
            " SELECT doc_id, number, digest, metadata::jsonb, chunk_count, true, %s, %s, %s FROM staged"
            " WHERE rev IS NULL ON CONFLICT (doc_id) DO NOTHING RETURNING doc_id"
        )
        self.insert_chunks = (
            f"INSERT INTO {CHUNKS} (doc_id, ordinal, start, identity, text, embedding)"
            f" SELECT doc_id, ordinal, start, '{identity}', text, embedding FROM staged_chunks"
            " WHERE doc_id = ANY(%s)"
        )
        self.model = model

    def write(self, rows: Sequence[Content], held: dict[str, Held]) -> None:
        """Replace these documents, which are held so, in one transaction."""
        pieces = [CHUNKER.chunk(row[1]) for row in rows]
        vectors = iter(EMBEDDER.embed_all([chunk.text for chunks in pieces for chunk in chunks]))
        pack = struct.Struct(f">HH{EMBEDDER.dimension}f").pack
        with self.connection.transaction(), self.connection.cursor() as cursor:
            cursor.execute("SET LOCAL trio_repair.own = 'on'")
            with cursor.copy("COPY staged FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(["text", "int8", "text", "text", "int4", "int8"])
                for (doc_id, _text, metadata, number, digest), chunks in zip(rows, pieces, strict=True):
                    rev = held[doc_id][2] if doc_id in held else None
                    copy.write_row((doc_id, number, digest, metadata, len(chunks), rev))
            with cursor.copy("COPY staged_chunks FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(["text", "int4", "int4", "text", "bytea"])  # a field of bytes goes out as it is
                for row, chunks in zip(rows, pieces, strict=True):
                    for ordinal, chunk in enumerate(chunks):
                        packed = pack(EMBEDDER.dimension, 0, *next(vectors))
                        copy.write_row((row[0], ordinal, chunk.start, chunk.text, packed))
            landed = [row[0] for row in cursor.execute(self.update, self.model)]
            cursor.execute(f"DELETE FROM {CHUNKS} WHERE doc_id = ANY(%s)", (landed,))
            landed += [row[0] for row in cursor.execute(self.insert, self.model)]
            cursor.execute(self.insert_chunks, (landed,))


def _identity() -> str:
    from trio_repair import EmbeddingIdentity  # noqa: PLC0415

    return identity_key(
        EmbeddingIdentity(model=EMBEDDER.model, dimension=EMBEDDER.dimension, chunking=CHUNKER.identity)
    )


class Cache:
    """The entries of the cache."""

    def __init__(self, client: Any, sha: str) -> None:
        self.client = client
        self.sha = sha
        self._salt = secrets.token_hex(8)
        self._numbers = itertools.count(1)

    async def versions(self, ids: Sequence[str]) -> dict[str, Held]:
        """Number, digest and revision by document."""
        async with self.client.pipeline(transaction=False) as pipe:
            for doc_id in ids:
                pipe.hmget(PREFIX + doc_id, ["number", "digest", "rev"])
        return {
            doc_id: (int(number), digest.decode(), rev)
            for doc_id, (number, digest, rev) in zip(ids, pipe.results, strict=True)
            if number is not None
        }

    async def write(self, rows: Sequence[Content], held: dict[str, Held]) -> None:
        """Replace the entries of these documents, which are held so."""
        async with self.client.pipeline(transaction=False) as pipe:
            for doc_id, text, metadata, number, digest in rows:
                rev = f"{self._salt}{next(self._numbers):x}".encode()
                values = [b"%d" % number, digest.encode(), b"", rev, text.encode(), metadata.encode()]
                named = zip(("number", "digest", "updated_at", "rev", "text", "metadata"), values, strict=True)
                fields = [part for pair in named for part in pair]
                was = held[doc_id][2] if doc_id in held else b""
                pipe.evalsha(self.sha, [PREFIX + doc_id], [was, *fields, "seal", token_of([*values])])


async def script(place: Place, ids: Sequence[str], size: int) -> int:
    """Versions, content, writes where nothing has moved, read-back. How many copies it replaced."""
    replaced = 0
    with psycopg.connect(place.dsn, autocommit=True) as text, psycopg.connect(place.dsn, autocommit=True) as vector:
        vectors = Vectors(vector)
        client: Any = coredis.Redis.from_url(place.url)
        async with client:
            sha = await client.script_load(PUT)
            cache = Cache(client, sha.decode() if isinstance(sha, bytes) else sha)
            for start in range(0, len(ids), size):
                some = ids[start : start + size]
                wanted = versions(text, TEXT, some)
                held = {"vector": versions(vector, VECTOR, some), "cache": await cache.versions(some)}
                stale = {
                    name: [one for one in some if one not in copies or copies[one][:2] != wanted[one][:2]]
                    for name, copies in held.items()
                }
                rows = {row[0]: row for row in contents(text, list({*stale["vector"], *stale["cache"]}))}
                vectors.write([rows[one] for one in stale["vector"]], held["vector"])
                await cache.write([rows[one] for one in stale["cache"]], held["cache"])
                there = {
                    "vector": versions(vector, VECTOR, stale["vector"]),
                    "cache": await cache.versions(stale["cache"]),
                }
                assert wanted == versions(text, TEXT, some)
                for name, mended in stale.items():
                    assert all(there[name].get(one, ())[:2] == wanted[one][:2] for one in mended)
                    replaced += len(mended)
    return replaced
