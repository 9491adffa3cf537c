"""Chunks in tables that an application made: what they are compared by, and how they are replaced."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("psycopg", reason="psycopg is not installed; pip install -e '.[postgres]'")

import psycopg
from servers.postgres_server import PASSWORD
from sqlite_support import prepared
from store_calls import look, put, take_away, write
from test_postgres_mapped import entries
from test_postgres_text import sql

from trio_repair import (
    AutoRepairConfig,
    ContentDefinition,
    Document,
    InvalidValue,
    Presence,
    RepairJob,
    RepairOutcome,
    StoredDocument,
    StoreUnavailable,
    SyncStrategy,
    Write,
    WriteStatus,
    check,
    open_repair_engine,
)
from trio_repair.abc import Stores
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores.pgvector import open_pgvector_table, pgvector_from_settings
from trio_repair.stores.postgres_text import open_postgres_table
from trio_repair.testing import ContractBroken, check_store, make_document

LONG = " ".join(f"word{index}" for index in range(60))
CHUNKS = """CREATE TABLE chunks (
    id bigserial PRIMARY KEY, article text NOT NULL, position integer, starts integer, revision bigint, sha text,
    content text NOT NULL, tenant integer NOT NULL DEFAULT 7, embedding vector(16))"""
ARTICLES = "CREATE TABLE articles (slug text PRIMARY KEY, body text NOT NULL, revision bigint, gone timestamptz)"
PLAIN = {"name": "chunks", "document": "article", "text": "content", "embedding": "embedding"}
SOURCE = {"name": "articles", "id": "slug", "text": "body", "version": "revision", "deleted": "gone"}
MODES: dict[str, dict[str, Any]] = {
    "text": {"start": "starts", "version": "revision"},
    "joined": {"ordinal": "position", "join": "", "version": "revision"},
    "digest": {"digest": "sha", "ordinal": "position", "version": "revision"},
    "version": {"version": "revision", "source": SOURCE},
    "chunks": {"source": SOURCE},
    "presence": {"source": SOURCE, "compare": "presence"},
}
PROMISES = (
    *("hostile-ids", "token-moves", "stale-refused", "no-aba", "one-creator", "no-lost-update", "scan-order"),
    *("scan-snapshot", "embedding-told"),
)
"""Without those that want metadata or a moment back, for which such a table has no place."""


def opened(dsn: str, mode: str, *, overlap: int | None = None, **more: Any) -> AbstractAsyncContextManager[Any]:
    """A store on the tables."""
    chunker = WindowChunker(40, (0 if mode == "joined" else 10) if overlap is None else overlap)
    table = {**PLAIN, **MODES[mode], **more}
    return open_pgvector_table(dsn, table, embedder=HashingEmbedder(16), chunker=chunker)


def tables(dsn: str) -> None:
    sql(dsn, CHUNKS, ARTICLES, "CREATE INDEX ON chunks (article)")


async def test_contract(database: str) -> None:
    """What is promised of fence and scans, between two connections."""
    numbers = itertools.count()
    names = [""]

    def again() -> AbstractAsyncContextManager[Any]:
        return opened(database, "text", name=f"{names[-1]}.chunks")

    def new() -> AbstractAsyncContextManager[Any]:
        names.append(f"app_{next(numbers)}")
        sql(database, f"CREATE SCHEMA {names[-1]}", CHUNKS.replace("chunks", f"{names[-1]}.chunks"))
        return again()

    await check_store(new, again=again, only=PROMISES)


async def test_control_without_the_lock_chunks_are_doubled(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the lock on the table, two writers that saw a document absent both insert its chunks."""
    monkeypatch.setattr("trio_repair.stores._pgvector_table.ChunkTableWriter.lock", lambda *_: None)
    names = itertools.count()
    made = [""]

    def again() -> AbstractAsyncContextManager[Any]:
        return opened(database, "text", name=made[-1])

    def new() -> AbstractAsyncContextManager[Any]:
        made.append(f"chunks_{next(names)}")
        sql(database, CHUNKS.replace("chunks", made[-1]))
        return again()

    with pytest.raises(ContractBroken):
        await check_store(new, again=again, only=("one-winner", "one-creator", "no-lost-update"))


@pytest.mark.parametrize("mode", MODES)
async def test_chunks_are_replaced_as_one(database: str, mode: str) -> None:
    """Nothing of the chunks before is left; what is read back is what was written; other tenants' rows stay."""
    tables(database)
    more = {"where": "tenant = 7", "insert": {"tenant": 7}}
    theirs = "INSERT INTO chunks (article, content, tenant) VALUES ('a', 'theirs', 8), ('z', 'theirs', 8)"
    async with opened(database, mode, **more) as store:
        sql(database, theirs)
        for number, text in enumerate((LONG, "short", LONG[::-1], ""), start=1):
            held = make_document("a", text, number=number)
            sql(
                database,
                f"INSERT INTO articles VALUES ('a', '{text}', {number}) ON CONFLICT (slug)"
                " DO UPDATE SET body = EXCLUDED.body, revision = EXCLUDED.revision",
            )
            (seen,) = await put(store, held)
            assert (Presence.LIVE, held.version, True) == (seen.presence, seen.version, seen.intact)
            assert store.traits.embedding == seen.embedding
            assert [("a", seen)] == await entries(store)
            (read,) = await store.read(["a"])
            assert store.traits.holds_text == isinstance(read, StoredDocument)
            if isinstance(read, StoredDocument):
                assert read.document == held
        (gone,) = await put(store, Document.tombstone("a", number=9))
        assert Presence.ABSENT is gone.presence
        assert 0 == await store.count()
    assert [("a",), ("z",)] == sql(database, "SELECT article FROM chunks ORDER BY article")


DAMAGE = {
    "a chunk is lost": "DELETE FROM chunks WHERE position = 1",
    "the last chunk is lost": "DELETE FROM chunks WHERE position = (SELECT max(position) FROM chunks)",
    "a chunk is edited": "UPDATE chunks SET content = 'forged' WHERE position = 1",
    "a chunk is doubled": "INSERT INTO chunks (article, position, starts, revision, sha, content, embedding)"
    " SELECT article, position, starts, revision, sha, content, embedding FROM chunks WHERE position = 1",
    "the source moved on": "UPDATE articles SET body = 'anew', revision = 2",
    "a vector is lost": "UPDATE chunks SET embedding = NULL WHERE position = 1",
    "a version is older": "UPDATE chunks SET revision = 0 WHERE position = 1",
}
SEEN = {
    "text": {"a chunk is lost", "the last chunk is lost", "a chunk is edited", "the source moved on"},
    "joined": {"a chunk is lost", "the last chunk is lost", "a chunk is edited", "the source moved on"}
    | {"a chunk is doubled"},
    "digest": {"a chunk is lost", "the source moved on", "a chunk is doubled"},
    "version": {"the source moved on"},
    "chunks": {"a chunk is lost", "the last chunk is lost", "a chunk is edited", "the source moved on"}
    | {"a chunk is doubled"},
    "presence": set(),
}
ALWAYS = {"a vector is lost"}
BY_VERSION = {"a version is older"}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("mode", MODES)
async def test_what_is_seen_is_what_the_comparison_promises(database: str, mode: str, damage: str) -> None:
    """Each way to compare finds what it can, and not more; the fence notices everything; a repair mends it."""
    tables(database)
    document = make_document("a", LONG, number=1)
    sql(database, f"INSERT INTO articles VALUES ('a', '{LONG}', 1)")
    text_table = {key: value for key, value in SOURCE.items() if key != "deleted"}
    async with opened(database, mode, ordinal="position") as store, open_postgres_table(database, text_table) as text:
        (before,) = await put(store, document)
        sql(database, DAMAGE[damage])
        async with check(Stores(text=text, vector=store), AutoRepairConfig(settle=0.0)) as checking:
            found = [divergence.doc_id async for divergence in checking]
        # With an ordinal, rows that leave a gap or come twice are seen, however little is compared.
        seen = SEEN[mode] | ALWAYS | {"a chunk is lost", "a chunk is doubled"}
        if "version" in MODES[mode]:
            seen |= BY_VERSION
        assert (["a"] if damage in seen else []) == found
        if "source" not in damage:
            (stale,) = await store.write([Write(prepared=(await prepared(store, [document]))[0], token=before.token)])
            assert WriteStatus.REFUSED is stale.status
        async with open_repair_engine(Stores(text=text, vector=store)) as engine:
            job = RepairJob(doc_id="a", strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH, timeout=30.0)
            result = await engine.execute_repair_job(job)
        assert (RepairOutcome.REPAIRED if found else RepairOutcome.ALREADY_CONSISTENT) is result.outcome, result
        assert (await look(store, "a")).intact


async def test_a_table_without_versions_agrees_with_one_that_has_them(database: str) -> None:
    """It keeps no numbers, and is compared by digest; what differs is copied from the source of truth."""
    tables(database)
    sql(database, f"INSERT INTO articles VALUES ('a', '{LONG}', 1), ('b', 'old', 4)")
    source = {key: value for key, value in SOURCE.items() if key not in {"deleted", "version"}}
    async with opened(database, "text") as store, open_postgres_table(database, source) as text:
        assert (True, False) == (store.traits.numbered, text.traits.numbered)
        await put(store, make_document("a", LONG, number=7), make_document("b", "other", number=7))
        stores = Stores(text=text, vector=store)
        async with check(stores, AutoRepairConfig(settle=0.0)) as checking:
            assert ["b"] == [divergence.doc_id async for divergence in checking]
        async with open_repair_engine(stores) as engine:
            for strategy, outcome in (
                (SyncStrategy.MOST_RECENT, RepairOutcome.NEEDS_MANUAL),
                (SyncStrategy.TEXT_SOURCE_OF_TRUTH, RepairOutcome.REPAIRED),
            ):
                job = RepairJob(doc_id="b", strategy=strategy, timeout=30.0)
                assert outcome is (await engine.execute_repair_job(job)).outcome


async def test_vectors_of_another_length_are_of_another_model(database: str) -> None:
    """The dimension is that of the rows, the model what the user declares."""
    tables(database)
    sql(database, "ALTER TABLE chunks ALTER COLUMN embedding TYPE vector")
    async with opened(database, "text") as store:
        await put(store, make_document("a", LONG))
        sql(database, "UPDATE chunks SET embedding = '[1,2,3]' WHERE starts = 0")
        seen = await look(store, "a")
        assert seen.embedding is not None
        assert 3 == seen.embedding.dimension


@pytest.mark.parametrize("kind", ["halfvec(16)", "real[]", "double precision[]"])
async def test_vectors_of_other_types(database: str, kind: str) -> None:
    """Half precision, and plain arrays."""
    tables(database)
    sql(database, f"ALTER TABLE chunks DROP COLUMN embedding, ADD COLUMN embedding {kind}")
    async with opened(database, "text") as store:
        (seen,) = await put(store, make_document("a", LONG))
        assert (True, store.traits.embedding) == (seen.intact, seen.embedding)


async def test_document_ids_that_are_numbers(database: str) -> None:
    """Cast to text, in byte order; a document that cannot be one is refused."""
    tables(database)
    sql(database, "ALTER TABLE chunks ALTER COLUMN article TYPE bigint USING 0")
    async with opened(database, "text", insert={"tenant": 8}) as store:
        await put(store, *(make_document(one, LONG) for one in ("9", "10")))
        assert ["10", "9"] == [doc_id for doc_id, _ in await entries(store)]
        (refused,) = await write(store, make_document("x", LONG))
        assert WriteStatus.REJECTED is refused.status
        await take_away(store, "9")
        assert 1 == await store.count()


async def test_an_indexer_that_has_not_committed_is_waited_for(database: str) -> None:
    """Chunks of a document that nobody can see yet: a write gives up after lock_timeout, and nothing is doubled."""
    tables(database)
    table = {**PLAIN, **MODES["text"]}
    settings = {"embedder": HashingEmbedder(16), "chunker": WindowChunker(40, 10), "lock_timeout": 0.2}
    async with open_pgvector_table(database, table, **settings) as store:  # type: ignore[arg-type]  # as a table of options
        (ready,) = await prepared(store, [make_document("a", LONG)])
        absent = await look(store, "a")
        with psycopg.connect(database) as indexer:
            indexer.execute("INSERT INTO chunks (article, starts, content) VALUES ('a', 0, 'theirs')")
            with pytest.raises(StoreUnavailable, match="lock"):
                await store.write([Write(prepared=ready, token=absent.token)])
            indexer.commit()
        (refused,) = await store.write([Write(prepared=ready, token=absent.token)])
        assert WriteStatus.REFUSED is refused.status
    assert [("theirs",)] == sql(database, "SELECT content FROM chunks")


async def test_a_foreign_key_that_does_not_hold_is_told(database: str) -> None:
    """Chunks of an article that is not there are refused, with the constraint's name."""
    tables(database)
    sql(database, "ALTER TABLE chunks ADD CONSTRAINT of_article FOREIGN KEY (article) REFERENCES articles")
    async with opened(database, "text") as store:
        (refused,) = await write(store, make_document("a", LONG))
        assert WriteStatus.REJECTED is refused.status
        assert "of_article" in str(refused.error)


@pytest.mark.parametrize(
    ("table", "field", "words"),
    [
        ({}, "table", "names nothing to compare by"),
        ({"version": "revision"}, "table", "names nothing to compare by"),
        ({"compare": "hope"}, "table.compare", "must be one of"),
        ({"start": "starts", "compare": "hope"}, "table.compare", "must be one of text, digest, version, chunks"),
        ({"start": "starts", "compare": "version"}, "table.compare", "cannot be 'version' without version, and"),
        ({"start": "starts", "compare": "presence"}, "table.compare", "cannot be 'presence' without source"),
        ({"join": " "}, "table.ordinal", "is missing; chunks are joined in its order"),
        ({"start": "starts", "embedding": "content"}, "table.embedding", "is the same column as text"),
        ({"start": "starts", "embedding": "sha"}, "table.embedding", "is of type text; usable are"),
        ({"start": "starts", "first_ordinal": 2}, "table.first_ordinal", "must be 0 or 1"),
        ({"source": {"name": "articles", "id": "slug"}}, "table.source.text", "is missing"),
        ({"source": {**SOURCE, "insert": {}}}, "table.source.insert", "is not a setting here"),
        ({"source": {**SOURCE, "name": "article"}}, "table.source.name", "has no table"),
        ({"source": {**SOURCE, "id": "revision", "version": "slug"}}, "table.source.id", "is of type int8, and"),
    ],
)
async def test_a_mapping_that_cannot_be_used_is_named(
    database: str, table: dict[str, Any], field: str, words: str
) -> None:
    """One line: which setting, and what is wrong."""
    tables(database)
    if table.get("source", {}).get("version") == "slug":
        table = {"source": {key: value for key, value in table["source"].items() if key != "version"}}
    with pytest.raises(InvalidValue) as refused:
        async with open_pgvector_table(
            database, {**PLAIN, **table}, embedder=HashingEmbedder(16), chunker=WindowChunker()
        ):
            pass
    assert field == refused.value.field
    assert words in refused.value.problem


def test_settings_of_a_configuration_file(database: str) -> None:
    """The table `table` makes it a mapped store; metadata has no place there."""
    settings = {"dsn": database, "table": {**PLAIN, "start": "starts"}}
    options: dict[str, Any] = {"name": "vector", "directory": Path(), "create": False}
    with pytest.raises(InvalidValue, match="schema: is for tables of this library's own"):
        pgvector_from_settings({**settings, "schema": "x"}, content=ContentDefinition(), **options)
    with pytest.raises(InvalidValue, match="table: has no place for metadata"):
        pgvector_from_settings(settings, content=ContentDefinition(metadata_keys=("a",)), **options)


def test_prepare_shows_sql_and_applies_it_when_asked(database: str, tmp_path: Path) -> None:
    """At most 80 columns and no secret; nothing is done without --apply; what is shown can be run as it stands."""
    sql(database, CHUNKS, ARTICLES)
    config = tmp_path / "trio-repair.toml"
    config.write_text(
        """[stores.text]
kind = "postgres-text"
dsn = { env = "DB" }
table = { name = "articles", id = "slug", text = "body" }
[stores.vector]
kind = "pgvector"
dsn = { env = "DB" }
embedder = { kind = "hashing", dimension = 16 }
[stores.vector.table]
name = "chunks"
document = "article"
text = "content"
embedding = "embedding"
start = "starts"
"""
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "trio_repair", *arguments, "--config", str(config)]
        environment = {**os.environ, "DB": database}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=False)

    shown = run("prepare")
    assert 0 == shown.returncode, shown.stderr
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    assert PASSWORD not in shown.stdout + shown.stderr
    assert "nothing was done; --apply does it" in shown.stderr
    offered = [json.loads(line) for line in run("prepare", "--json").stdout.splitlines()]
    assert ["text.id-order", "text.version", "vector.document-index"] == [one["name"] for one in offered]
    with psycopg.connect(database) as connection:  # as it stands, and taken back
        connection.execute(shown.stdout.encode())
        connection.rollback()

    unknown = run("prepare", "text.id-ordr", "--apply")
    assert (2, True) == (unknown.returncode, "did you mean 'text.id-order'?" in unknown.stderr)
    done = run("prepare", "vector.document-index", "text.id-order", "--apply")
    assert 0 == done.returncode, done.stderr
    assert ["text.version"] == [json.loads(line)["name"] for line in run("prepare", "--json").stdout.splitlines()]
