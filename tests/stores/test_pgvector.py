"""The vector store on PostgreSQL: the contract, chunks as a set, foreign SQL, identities, nearest neighbours."""

from __future__ import annotations

import functools
import os
import types
from typing import Any

import psycopg
import pytest
import trio

if os.environ.get("CI") != "true":
    pytest.importorskip("psycopg", reason="psycopg is not installed; pip install -e '.[postgres]'")

import psycopg.conninfo
from servers.postgres_server import PostgresServer
from sqlite_support import scan
from store_calls import look, put, take_away
from test_postgres_text import Schemas, sql

from trio_repair import (
    ContentDefinition,
    Document,
    EmbeddingIdentity,
    InvalidValue,
    Presence,
    StoredDocument,
    StoreRejected,
    StoreUnavailable,
)
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores._pgvector_layout import make_index
from trio_repair.stores.pgvector import open_pgvector, pgvector_from_settings
from trio_repair.testing import ContractBroken, check_store, make_document

LONG = " ".join(f"word{index}" for index in range(60))
CHUNKS = "trio_repair_vector.chunks"
DOCUMENTS = "trio_repair_vector.documents"


def opened(dsn: str, *, dimension: int = 16, size: int = 40, create: bool = True, **options: Any) -> Any:
    embedder, chunker = HashingEmbedder(dimension), WindowChunker(size, 10)
    return open_pgvector(dsn, embedder=embedder, chunker=chunker, create=create, **options)


def model(name: str, dimension: int = 16) -> HashingEmbedder:
    """An embedder that makes the same vectors under another name."""

    class Named(HashingEmbedder):
        @property
        def model(self) -> str:
            return name

    return Named(dimension)


# The contract.


async def test_contract(database: str) -> None:
    """Every promise, between two connections too: chunks and vectors are the store's own business."""
    opener = functools.partial(open_pgvector, embedder=HashingEmbedder(16), chunker=WindowChunker())
    schemas = Schemas(opener, database)
    await check_store(schemas, again=schemas.again)


async def test_control_without_locks_a_race_is_lost(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the rows are not locked, a writer that looked in time writes over another, and the suite sees it."""
    monkeypatch.setattr("trio_repair.stores._pgvector_layout.VectorWriter.lock", lambda *_: None)
    opener = functools.partial(open_pgvector, embedder=HashingEmbedder(16), chunker=WindowChunker())
    schemas = Schemas(opener, database)
    with pytest.raises(ContractBroken):
        await check_store(schemas, again=schemas.again, only=("one-winner", "no-lost-update"))


# A document is a set of chunks.


async def test_stale_chunks_never_survive(database: str) -> None:
    """Whatever is written over a document or takes it away, nothing of the chunks before is left."""
    async with opened(database) as store:
        for document in (
            make_document("a", LONG),
            make_document("a", "short", number=2),
            make_document("a", LONG[::-1], number=3),
            Document.tombstone("a", number=4),
            make_document("a", "", number=5),
        ):
            await put(store, document)
            odd = (
                f"SELECT count(*) FROM {DOCUMENTS} AS d WHERE chunk_count <>"
                f" (SELECT count(*) FROM {CHUNKS} AS c WHERE c.doc_id = d.doc_id)"
            )
            assert [(0,)] == sql(database, odd)
        await take_away(store, "a")
    assert [(0,)] == sql(database, f"SELECT count(*) FROM {CHUNKS}")


ZEROS = "('[' || repeat('0,', 15) || '0]')::vector"


@pytest.mark.parametrize(
    "damage",
    [
        f"DELETE FROM {CHUNKS} WHERE ordinal = 1",
        f"DELETE FROM {CHUNKS}",
        f"TRUNCATE {CHUNKS}",
        f"UPDATE {CHUNKS} SET text = 'forged' WHERE ordinal = 1",
        f"UPDATE {CHUNKS} SET embedding = {ZEROS} WHERE ordinal = 1",
        f"UPDATE {CHUNKS} SET ordinal = 99 WHERE ordinal = 1",
        f"UPDATE {CHUNKS} SET doc_id = 'b' WHERE ordinal = 1 AND doc_id = 'a'",
        f"INSERT INTO {CHUNKS} VALUES ('a', 99, 0, 'x', 'x', {ZEROS})",
        f"UPDATE {DOCUMENTS} SET chunk_count = chunk_count + 1",
        f"UPDATE {DOCUMENTS} SET digest = 'forged'",
        f"ALTER TABLE {CHUNKS} DISABLE TRIGGER USER; DELETE FROM {CHUNKS} WHERE ordinal = 1",
    ],
)
async def test_damage_is_seen_and_fenced(database: str, damage: str) -> None:
    """Foreign SQL on chunks: the copy is no longer intact, its token has moved, and a rewrite makes it whole."""
    async with opened(database) as store:
        held = make_document("a", LONG)
        (before,) = await put(store, held)
        sql(database, f"INSERT INTO {DOCUMENTS} (doc_id, deleted) VALUES ('b', true)", *damage.split("; "))
        after = await look(store, "a")
        assert before.token != after.token
        assert not after.intact
        assert {"a": after} == {doc_id: seen for doc_id, seen in await scan(store) if doc_id == "a"}
        if "DISABLE" in damage:
            sql(database, f"ALTER TABLE {CHUNKS} ENABLE TRIGGER USER")
        (now,) = await put(store, held)
        assert now.intact


async def test_a_text_is_given_only_if_the_digest_proves_it(database: str) -> None:
    """Chunks that were changed give no text, even if they fit together."""
    async with opened(database, size=5000) as store:
        await put(store, make_document("a", LONG), make_document("b", LONG))
        sql(database, f"UPDATE {CHUNKS} SET text = 'forged' WHERE doc_id = 'a'")
        forged, true = await store.read(["a", "b"])
        assert isinstance(forged, StoreRejected)
        assert isinstance(true, StoredDocument)


async def test_foreign_deletes_take_chunks_along(database: str) -> None:
    """An application that buries or removes a document leaves none of its chunks."""
    async with opened(database) as store:
        await put(store, make_document("a", LONG), make_document("b", LONG))
        sql(database, f"UPDATE {DOCUMENTS} SET deleted = true WHERE doc_id = 'a'")
        sql(database, f"DELETE FROM {DOCUMENTS} WHERE doc_id = 'b'")
        assert Presence.TOMBSTONE is (await look(store, "a")).presence
        assert Presence.ABSENT is (await look(store, "b")).presence
    assert [(0,)] == sql(database, f"SELECT count(*) FROM {CHUNKS}")


# Identities.


@pytest.mark.parametrize("change", [{"dimension": 24}, {"size": 60}])
async def test_another_identity_is_drift_in_the_same_tables(database: str, change: dict[str, int]) -> None:
    """A new dimension or chunking: old copies stay readable, show their identity, and are not searched."""
    async with opened(database) as store:
        await put(store, make_document("a", LONG), make_document("b", LONG))
    async with opened(database, create=False, **change) as store:
        seen = await look(store, "a")
        assert seen.intact
        assert seen.embedding not in (None, store.traits.embedding)
        assert [] == list(await store.nearest("word1"))
        await scan(store)
        (now,) = await put(store, make_document("a", LONG))
        assert store.traits.embedding == now.embedding
        assert ["a"] == [hit.doc_id for hit in await store.nearest("word1")]
    made = "SELECT count(*) FROM pg_indexes WHERE tablename = 'chunks' AND indexname LIKE 'chunks_hnsw_%'"
    assert [(2,)] == sql(database, made)


async def test_models_of_one_dimension_are_not_mixed(database: str) -> None:
    """Vectors of another model of the same dimension are never near anything."""
    chunker = WindowChunker(40, 10)
    async with open_pgvector(database, embedder=model("old"), chunker=chunker, create=True) as store:
        await put(store, make_document("a", LONG))
    async with open_pgvector(database, embedder=model("it's 100%"), chunker=chunker) as store:
        await put(store, make_document("b", LONG))
        assert ["b"] == [hit.doc_id for hit in await store.nearest("word1 word2")]
        await scan(store)


@pytest.mark.parametrize("dimension", [1, 2000, 2001, 4000, 4001])
async def test_dimensions(database: str, dimension: int) -> None:
    """Long vectors are indexed in half precision, longer ones not at all; all are found."""
    async with opened(database, dimension=dimension) as store:
        await put(store, make_document("a", "one short text"))
        assert ["a"] == [hit.doc_id for hit in await store.nearest("one short text")]
    made = "SELECT indexdef FROM pg_indexes WHERE indexname LIKE 'chunks_hnsw_%'"
    found = [definition for (definition,) in sql(database, made)]
    assert (1 if dimension <= 4000 else 0) == len(found)
    assert all(("halfvec" in definition) is (dimension > 2000) for definition in found)


# Search.


async def test_nearest(database: str) -> None:
    """Each document once, by its nearest chunk, the best first; deleted ones not."""
    async with opened(database, dimension=64) as store:
        await put(store, *(make_document(f"{n:03}", f"filler number {n} " * 9) for n in range(250)))
        await put(store, make_document("x", f"{LONG} apples pears"), make_document("y", "apples and pears"))
        await put(store, make_document("z", "apples pears"))
        await put(store, Document.tombstone("z", number=2))
        hits = await store.nearest("apples pears", 5)
        assert {"x", "y"} == {hit.doc_id for hit in hits[:2]}
        assert 5 == len({hit.doc_id for hit in hits})
        assert sorted(hit.distance for hit in hits) == [hit.distance for hit in hits]
        (exact, *_) = await store.nearest("apples and pears", 1)
        assert ("y", 0, "apples and pears") == (exact.doc_id, exact.start, exact.text)
        assert exact.distance == pytest.approx(0, abs=1e-3)
        assert [] == list(await store.nearest(""))
        with pytest.raises(InvalidValue, match="limit"):
            await store.nearest("x", 5000)


# Opening.


async def test_without_pgvector(postgres: PostgresServer) -> None:
    """A database without the extension: one line that says what to do."""
    with postgres.connect() as connection:
        connection.execute("CREATE DATABASE plain")
    dsn = psycopg.conninfo.make_conninfo(postgres.dsn_of("plain"))
    with pytest.raises(StoreUnavailable, match="pgvector is not there"):
        async with opened(dsn, create=False):
            pass


async def test_settings(database: str, tmp_path: Any) -> None:
    """The server as for texts, embedder and chunker as for the SQLite store."""
    options: dict[str, Any] = {"name": "vector", "directory": tmp_path, "content": ContentDefinition(), "create": True}
    settings = {"dsn": database, "embedder": {"dimension": 24}, "chunker": {"size": 100, "overlap": 10}}
    async with pgvector_from_settings(settings, **options) as store:
        assert 24 == store.traits.embedding.dimension  # type: ignore[union-attr]  # a vector store has one
    for wrong, key in (
        ({"embedder": {"size": 3}}, "embedder.size"),
        ({"language": "simple"}, "language"),
        ({"chunker": {"kind": "no:such"}}, "chunker.kind"),
    ):
        with pytest.raises(InvalidValue) as error:
            pgvector_from_settings({"dsn": database, **wrong}, **options)
        assert key == error.value.field


async def test_several_make_the_same_store_at_once(database: str) -> None:
    """As the processes of one service do when they start: all open it, whoever makes extension, tables and index."""
    embedder = HashingEmbedder(16)

    async def open_it(schema: str) -> None:
        opener = open_pgvector(database, embedder=embedder, chunker=WindowChunker(), create=True, schema=schema)
        async with opener as store:
            assert 0 == await store.count()

    for number in range(5):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(open_it, f"made_by_many_{number}")


def test_an_index_that_somebody_else_has_made_meanwhile_is_there() -> None:
    """PostgreSQL's IF NOT EXISTS looks first: the later of two is told of a name that is taken. Other errors go on."""
    extension = types.SimpleNamespace(indexed=lambda _identity: "vector(16)", prefix="")
    identity = EmbeddingIdentity(model="m", dimension=16, chunking="c")

    def session(error: Exception):
        def execute(*_: object) -> None:
            raise error

        return types.SimpleNamespace(execute=execute)

    make_index(session(psycopg.errors.UniqueViolation()), "s.", identity, extension)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        make_index(session(psycopg.errors.InsufficientPrivilege()), "s.", identity, extension)
