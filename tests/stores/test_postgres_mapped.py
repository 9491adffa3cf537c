"""Documents in tables that an application made: the contract, foreign writes, ids of other types, bad mappings."""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import os
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("psycopg", reason="psycopg is not installed; pip install -e '.[postgres]'")

import psycopg.conninfo
from servers.postgres_server import PostgresServer
from sqlite_support import scan
from store_calls import look, put, take_away, write
from test_postgres_text import sql

from trio_repair import (
    AbsentMeans,
    ContentDefinition,
    Document,
    InvalidValue,
    Presence,
    StoredDocument,
    StoreUnavailable,
    WriteStatus,
)
from trio_repair.abc import RangedStore
from trio_repair.stores.postgres_text import open_postgres_table, postgres_text_from_settings
from trio_repair.testing import ContractBroken, check_store, make_document

ARTICLES = """CREATE TABLE articles (
    pk bigserial PRIMARY KEY, slug text NOT NULL UNIQUE, body text, meta jsonb, title text, rating integer,
    revision bigint, changed timestamptz, gone boolean, tenant integer NOT NULL DEFAULT 7, note text DEFAULT 'kept')"""
PLAIN = {"name": "articles", "id": "slug", "text": "body"}
FULL = {**PLAIN, "metadata": "meta", "version": "revision", "updated_at": "changed", "deleted": "gone"}
PROMISES = (
    *("content-round-trip", "version-round-trip", "replaced-whole", "one-poison-alone", "hostile-ids", "tombstones"),
    *("token-moves", "refused-alone", "no-aba", "one-creator", "no-lost-update", "scan-order", "scan-after"),
    *("scan-snapshot", "ranges-agree"),
)


class Articles:
    """Opens stores on new tables in one database, or `again` on the one that was opened last."""

    def __init__(self, dsn: str, *more: str, **mapping: Any) -> None:
        self._dsn = dsn
        self._more = more
        self._mapping = mapping
        self._numbers = itertools.count()
        self._schema = ""

    def __call__(self) -> AbstractAsyncContextManager[Any]:
        self._schema = f"app_{next(self._numbers)}"
        made = (ARTICLES.replace("articles", f"{self._schema}.articles"), *self._more)
        sql(self._dsn, f"CREATE SCHEMA {self._schema}", *(one.replace("SCHEMA", self._schema) for one in made))
        return self.again()

    def again(self) -> AbstractAsyncContextManager[Any]:
        return open_postgres_table(self._dsn, {**FULL, "name": f"{self._schema}.articles", **self._mapping})


def opened(dsn: str, table: dict[str, Any], *ddl: str, **options: Any) -> AbstractAsyncContextManager[Any]:
    """A store on a table that is made first."""
    sql(dsn, *(ddl or (ARTICLES,)))
    return open_postgres_table(dsn, table, **options)


async def entries(store: Any, after: str | None = None) -> list[Any]:
    """All that a scan shows."""
    async with store.open_scan(after) as pages:
        return [entry async for page in pages for entry in page]


# The contract.


@pytest.mark.parametrize(
    ("more", "mapping"),
    [
        ((), {}),
        (
            (
                "ALTER TABLE SCHEMA.articles DROP CONSTRAINT articles_slug_key, ADD UNIQUE (tenant, slug)",
                'CREATE INDEX ON SCHEMA.articles (slug COLLATE "C")',
                "INSERT INTO SCHEMA.articles (slug, body, tenant) VALUES ('a', 'of another tenant', 8)",
            ),
            {"where": "tenant = 7 AND note LIKE '%'", "insert": {"tenant": 7}},
        ),
    ],
    ids=["sorted", "served, one of several tenants"],
)
async def test_contract(database: str, more: tuple[str, ...], mapping: dict[str, Any]) -> None:
    """What is promised of content, fence and scans, between two connections, with an index in byte order and without."""
    articles = Articles(database, *more, **mapping)
    await check_store(articles, again=articles.again, only=PROMISES)


async def test_control_without_locks_a_race_is_lost(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the rows are not locked, a writer that looked in time writes over another, and the suite sees it."""
    monkeypatch.setattr("trio_repair.stores._postgres_table.TextTableWriter.lock", lambda *_: None)
    articles = Articles(database)
    with pytest.raises(ContractBroken):
        await check_store(articles, again=articles.again, only=("one-winner", "no-lost-update"))


# Foreign writes.


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE articles SET body = 'edited'",
        "UPDATE articles SET note = 'unmapped'",
        "UPDATE articles SET body = body",
        "DELETE FROM articles; INSERT INTO articles (slug, body, revision) VALUES ('a', 'original', 1)",
        "SET session_replication_role = replica; UPDATE articles SET revision = 9",
    ],
)
async def test_every_foreign_write_moves_the_token(database: str, statement: str) -> None:
    """Also one that changes nothing, or only columns that no setting names."""
    async with opened(database, FULL) as store:
        (before,) = await put(store, make_document("a", "original"))
        sql(database, *statement.split("; "))
        assert before.token != (await look(store, "a")).token


async def test_a_vacuum_that_freezes_leaves_the_token(database: str) -> None:
    """Old rows are frozen in place; what was seen of them still holds."""
    async with opened(database, FULL) as store:
        (before,) = await put(store, make_document("a", "original"))
        sql(database, "VACUUM FREEZE articles")
        assert before == await look(store, "a")


async def test_only_mapped_columns_are_written(database: str) -> None:
    """What no setting names stays; a new row gets the defaults of the application."""
    async with opened(database, FULL) as store:
        sql(database, "INSERT INTO articles (slug, body, title, note) VALUES ('a', 'old', 'a title', 'a note')")
        await put(store, make_document("a", "new", number=2), make_document("b", "also new", number=1))
    assert [("a", "new", "a title", "a note"), ("b", "also new", None, "kept")] == sql(
        database, "SELECT slug, body, title, note FROM articles ORDER BY slug"
    )


async def test_a_new_row_that_lacks_a_value_fails_alone_and_is_told_why(database: str) -> None:
    """A column that must have a value and has no default is named; other documents of the batch land."""
    demanding = "ALTER TABLE articles ALTER COLUMN title SET NOT NULL"
    async with opened(database, PLAIN, ARTICLES, demanding) as store:
        sql(database, "INSERT INTO articles (slug, body, title) VALUES ('a', 'old', 'a title')")
        landed, refused = await write(store, *(make_document(one, "new", number=None) for one in ("a", "b")))
        assert (WriteStatus.LANDED, WriteStatus.REJECTED) == (landed.status, refused.status)
        assert "column 'title' must have a value, and it got none" in str(refused.error)
        assert Presence.ABSENT is (await look(store, "b")).presence


async def test_what_a_trigger_changes_is_refused(database: str) -> None:
    """A row that reads back as something else was never written."""
    body = "BEGIN NEW.body := btrim(NEW.body); RETURN NEW; END"
    trimming = (
        f"CREATE FUNCTION trimmed() RETURNS trigger LANGUAGE plpgsql AS $${body}$$",
        "CREATE TRIGGER trimmed BEFORE INSERT OR UPDATE ON articles FOR EACH ROW EXECUTE FUNCTION trimmed()",
    )
    async with opened(database, FULL, ARTICLES, *trimming) as store:
        refused, landed = await write(store, make_document("a", " spaces "), make_document("b", "none"))
        assert (WriteStatus.REJECTED, WriteStatus.LANDED) == (refused.status, landed.status)
        assert "reads back with other content" in str(refused.error)
    assert [("b",)] == sql(database, "SELECT slug FROM articles")


# What a mapping leaves out.


async def test_without_version_and_deleted(database: str) -> None:
    """There are no numbers, a delete takes the row away, and absence is for a person unless somebody says more."""
    async with opened(database, PLAIN) as store:
        assert (False, AbsentMeans.MANUAL) == (store.traits.keeps_tombstones, store.traits.absent)
        (seen,) = await put(store, make_document("a", "text", number=5))
        assert seen.version is not None
        assert (None, make_document("a", "text").version.digest) == (seen.version.number, seen.version.digest)
        (gone,) = await put(store, Document.tombstone("a", number=6))
        assert Presence.ABSENT is gone.presence
    assert [] == sql(database, "SELECT 1 FROM articles")
    async with open_postgres_table(database, {**PLAIN, "absent": "missing"}) as store:
        assert AbsentMeans.MISSING is store.traits.absent


async def test_a_moment_as_deleted_column_keeps_the_text(database: str) -> None:
    """A tombstone marks the row and leaves its text; a live document takes the mark away."""
    moment = dt.datetime(2026, 3, 1, 12, tzinfo=dt.timezone.utc)
    async with opened(database, {**PLAIN, "version": "revision", "deleted": "changed"}) as store:
        await put(store, make_document("a", "text"))
        (grave,) = await put(store, Document.tombstone("a", number=2, updated_at=moment))
        assert Presence.TOMBSTONE is grave.presence
        assert [("text", moment, 2)] == sql(database, "SELECT body, changed, revision FROM articles")
        await put(store, make_document("a", "again", number=3))
        assert [("again", None)] == sql(database, "SELECT body, changed FROM articles")


@pytest.mark.parametrize("kind", ["timestamptz", "timestamp"])
async def test_updated_at_orders_where_it_is_asked_to(database: str, kind: str) -> None:
    """The number is the column's milliseconds since the epoch, exactly, and is written back as that."""
    table = {**PLAIN, "updated_at": "changed", "order_by_updated_at": True}
    async with opened(database, table, ARTICLES.replace("timestamptz", kind)) as store:
        moments = ("2026-03-01 12:00:00.123", "2026-03-01 12:00:00.123999", "1969-12-31", "infinity")
        for nth, moment in enumerate(moments):
            sql(database, f"INSERT INTO articles (slug, body, changed) VALUES ('{nth}', 'x', '{moment}')")
        seen = [(await look(store, str(nth))).version for nth in range(len(moments))]
        millisecond = 1_772_366_400_123
        assert [millisecond, millisecond, None, None] == [version and version.number for version in seen]
        (again,) = await put(store, make_document("3", "y", number=millisecond))
        assert again.version is not None
        assert millisecond == again.version.number
        (far,) = await write(store, make_document("3", "y", number=2**53 - 1))
        assert WriteStatus.REJECTED is far.status


@pytest.mark.parametrize("metadata", [["title", "rating"], {"title": "headline", "rating": "stars"}])
async def test_columns_as_metadata(database: str, metadata: Any) -> None:
    """Each column is a key; NULL is a key that is not there; where they are content, they are digested here."""
    title, stars = ("title", "rating") if isinstance(metadata, list) else ("headline", "stars")
    content = ContentDefinition(metadata_keys=(title,))
    async with opened(database, {**PLAIN, "metadata": metadata}, content=content) as store:
        held = make_document("a", "text", metadata={title: "a%b", stars: 5}, number=None, content=content)
        bare = make_document("b", "text", metadata={}, number=None, content=content)
        first, second = await put(store, held, bare)
        assert (held.version, bare.version) == (first.version, second.version)
        assert [("a", first), ("b", second)] == await entries(store)
        read, without = await store.read(["a", "b"])
        assert isinstance(read, StoredDocument)
        assert isinstance(without, StoredDocument)
        assert read.document is not None
        assert without.document is not None
        assert ({title: "a%b", stars: 5}, {}) == (dict(read.document.metadata), dict(without.document.metadata))
        lossy = make_document("a", "text", metadata={title: 7}, number=None, content=content)
        (refused,) = await write(store, lossy)  # a text column gives "7" back
        assert WriteStatus.REJECTED is refused.status


# Ids, and rows that are not meant.

UUIDS = sorted(str(uuid.UUID(int=number * 2**100 + 0xABCDEF)) for number in (1, 2, 30))


@pytest.mark.parametrize(
    ("kind", "ids", "other"),
    [
        ("integer", ["-3", "10", "9"], ["x", "09", "9 ", "99999999999999999999", "9.0", ""]),
        ("bigint GENERATED ALWAYS AS IDENTITY", ["10", str(2**63 - 1)], [str(2**63), "+9"]),
        ("uuid", UUIDS, ["x", UUIDS[0].upper(), UUIDS[0].replace("-", "")]),
        ("varchar(20)", ["B", "a", "ä"], ["A", "b"]),
        ("char(20)", ["B", "a", "ä"], ["A", "b", "a "]),
    ],
)
async def test_ids_of_every_type(database: str, kind: str, ids: list[str], other: list[str]) -> None:
    """They are text, in byte order; what is spelled in any other way is another document, which is not there."""
    ddl = f"CREATE TABLE articles (slug {kind} PRIMARY KEY, body text NOT NULL)"
    async with opened(database, PLAIN, ddl) as store:
        await put(store, *(make_document(one, one, number=None) for one in reversed(ids)))
        found = [doc_id for doc_id, _ in await entries(store)]
        assert ids == found
        assert ids[1:] == [doc_id for doc_id, _ in await entries(store, ids[0])]
        for absent in filter(None, other):
            assert Presence.ABSENT is (await look(store, absent)).presence
        if "text" not in kind and "char" not in kind:
            (refused,) = await write(store, make_document(other[0], "x", number=None))
            assert WriteStatus.REJECTED is refused.status
        await take_away(store, ids[0])
        assert len(ids) - 1 == await store.count()


async def test_rows_that_where_leaves_out_are_never_touched(database: str) -> None:
    """They are not seen, not written, and an id that one of them has is refused in words."""
    table = {**FULL, "where": "tenant = 7 -- ours", "insert": {"tenant": 7}}
    async with opened(database, table) as store:
        sql(database, "INSERT INTO articles (slug, body, tenant) VALUES ('theirs', 'secret', 8)")
        assert Presence.ABSENT is (await look(store, "theirs")).presence
        assert 0 == await store.count()
        refused, landed = await write(store, make_document("theirs", "x"), make_document("ours", "x"))
        assert (WriteStatus.REJECTED, WriteStatus.LANDED) == (refused.status, landed.status)
        assert "another row has its id" in str(refused.error)
    assert [("ours", "x"), ("theirs", "secret")] == sql(database, "SELECT slug, body FROM articles ORDER BY slug")
    async with open_postgres_table(database, {**FULL, "where": "tenant = 9"}) as store:
        (refused,) = await write(store, make_document("new", "x"))
        assert "none of those that table.where names" in str(refused.error)


# Scans.


async def test_a_scan_without_an_index_goes_over_many_pages_of_one_snapshot(database: str) -> None:
    """The ids are sorted once, behind a cursor; with an index in byte order ranges are offered as well."""
    async with opened(database, FULL) as store:
        assert not isinstance(store, RangedStore)
        sql(
            database,
            "INSERT INTO articles (slug, body, revision) SELECT 'n' || n, n::text, n FROM generate_series(1, 2500) AS n",
        )
        found: list[str] = []
        async with store.open_scan() as pages:
            async for page in pages:
                sql(database, "INSERT INTO articles (slug, body) VALUES ('n' || random(), 'meanwhile')")
                found += [doc_id for doc_id, _ in page]
        assert sorted(f"n{number}" for number in range(1, 2501)) == found
        assert 2503 == await store.count()
        await store.apply(await store.preparations())
    async with open_postgres_table(database, FULL) as store:
        assert isinstance(store, RangedStore)
        assert 2503 == len(await scan(store))
        assert [] == await store.preparations()


async def test_the_version_that_is_offered_counts_what_others_write(database: str) -> None:
    """The column is filled by a trigger for everybody but us, who bring a number along."""
    async with opened(database, PLAIN) as store:
        offered = {one.name: one for one in await store.preparations()}
        assert {"id-order", "version"} == offered.keys()
        await store.apply([offered["version"]])
    async with open_postgres_table(database, PLAIN) as store:
        assert ["id-order"] == [one.name for one in await store.preparations()]
    sql(database, "INSERT INTO articles (slug, body) VALUES ('a', 'x')", "UPDATE articles SET body = 'y'")
    async with open_postgres_table(database, {**PLAIN, "version": "repair_version"}) as store:
        seen = await look(store, "a")
        assert seen.version is not None
        assert 2 == seen.version.number
        await put(store, make_document("a", "ours", number=40))
        sql(database, "UPDATE articles SET body = 'theirs'")
        assert 41 == (await look(store, "a")).version.number


async def test_what_is_offered_is_not_done_to_a_database_made_read_only(database: str) -> None:
    """Whoever says so means the operator's own tool too."""
    async with opened(database, PLAIN) as store:
        offered = await store.preparations()
    name = str(psycopg.conninfo.conninfo_to_dict(database)["dbname"])
    sql(database, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    async with open_postgres_table(database, PLAIN) as store:
        with pytest.raises(StoreUnavailable, match="is read-only"):
            await store.apply(offered)
        assert len(offered) == len(await store.preparations())


# Privileges, and mappings that cannot be used.


async def test_who_may_only_read_can_look_and_is_told_when_writing(postgres: PostgresServer, database: str) -> None:
    """SELECT is enough for everything but writing; a write says what is lacking, and nothing is lost."""
    sql(database, ARTICLES, "INSERT INTO articles (slug, body) VALUES ('a', 'x')")
    sql(database, "DROP ROLE IF EXISTS reader", "CREATE ROLE reader LOGIN PASSWORD 'reads'")
    reader = psycopg.conninfo.make_conninfo(database, user="reader", password="reads")
    with pytest.raises(StoreUnavailable, match="the user lacks a privilege"):
        async with open_postgres_table(reader, FULL):
            pass
    sql(database, "GRANT SELECT ON articles TO reader")
    async with open_postgres_table(reader, FULL) as store:
        assert 1 == await store.count()
        assert 1 == len(await entries(store))
        with pytest.raises(StoreUnavailable, match="the user lacks a privilege"):
            await write(store, make_document("a", "y"))
    assert [("x",)] == sql(database, "SELECT body FROM articles")


OTHERS = (
    "CREATE VIEW seen AS SELECT * FROM articles",
    "CREATE TABLE keyless (slug text, body text)",
    "CREATE TABLE partly (slug text, body text)",
    "CREATE UNIQUE INDEX ON partly (slug) WHERE body IS NOT NULL",
    "CREATE TABLE made (slug text PRIMARY KEY, source text, body text GENERATED ALWAYS AS (source) STORED)",
)


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"name": "article"}, "table.name", "has no table 'article'"),
        ({"name": "a.b.c"}, "table.name", "write 'articles' or 'public.articles'"),
        ({"name": "seen"}, "table.name", "is a view, not a table"),
        ({"name": "keyless"}, "table.id", "has no unique index"),
        ({"name": "partly"}, "table.id", "has no unique index without conditions"),
        ({"name": "made"}, "table.text", "is computed by the server"),
        ({"text": "bodi"}, "table.text", "has no column 'bodi'; did you mean 'body'?"),
        ({"id": "changed"}, "table.id", "is of type timestamptz; usable are"),
        ({"version": "title"}, "table.version", "is of type text; usable are int2, int4, int8"),
        ({"metadata": "title"}, "table.metadata", "is of type text; usable are json, jsonb"),
        ({"where": "tennant = 7"}, "table.where", "is no condition that the server takes on public.articles"),
        ({"where": "tenant ="}, "table.where", "SQLSTATE 42601"),
        ({"where": "articles.tenant = 7"}, "table.where", "write its columns without the name of the table"),
        ({"where": "tenant = 'seven'"}, "table.where", "SQLSTATE 22P02"),
        ({"where": "slug ~ '('"}, "table.where", "SQLSTATE 2201B"),
        ({"where": "tenant = 7) OR (TRUE"}, "table.where", "SQLSTATE 42601"),
        ({"where": "TRUE ORDER BY 1"}, "table.where", "SQLSTATE 42601"),
        ({"where": "TRUE); CREATE TABLE made_by_it (x int); SELECT (1"}, "table.where", "SQLSTATE 42601"),
        ({"where": "TRUE; CREATE TABLE made_by_it (x int)"}, "table.where", "SQLSTATE 42601"),
        ({"insert": {"colour": 1}}, "table.insert", "has no column 'colour'"),
        ({"insert": {"tenant": float("inf")}}, "table.insert.tenant", "a number that is finite"),
        ({"insert": {"body": "x"}}, "table.insert.body", "is mapped already, as text"),
        ({"version": "body"}, "table.version", "is the same column as text"),
        ({"order_by_updated_at": True}, "table.updated_at", "is missing"),
        ({"absent": "gone"}, "table.absent", "must be one of missing, deleted, manual"),
        ({"ids": "slug"}, "table.ids", "is not a setting here"),
        ({"id": None}, "table.id", "is missing; name a column"),
        ({"id": 3}, "table.id", "must be a string"),
        ({"name": "x" * 200}, "table.name", "must be at most"),
    ],
)
async def test_a_mapping_that_cannot_be_used_is_named(
    database: str, change: dict[str, Any], field: str, words: str
) -> None:
    """One line: which setting, what is wrong, and what there is instead."""
    sql(database, ARTICLES, *OTHERS)
    table = {key: value for key, value in {**PLAIN, **change}.items() if value is not None}
    with pytest.raises(InvalidValue) as refused:
        async with open_postgres_table(database, table):
            pass
    assert field == refused.value.field
    assert words in refused.value.problem
    assert "\n" not in str(refused.value)
    assert [(None,)] == sql(database, "SELECT to_regclass('made_by_it')")


async def test_settings_of_a_configuration_file(database: str) -> None:
    """The table `table` makes it a mapped store; what is for our own tables is refused beside it."""
    sql(database, ARTICLES)
    make: Callable[..., Any] = functools.partial(
        postgres_text_from_settings, name="text", directory=Path(), content=ContentDefinition(), create=False
    )
    async with make({"dsn": database, "table": PLAIN}) as store:
        assert "digest" == store.comparison
    for key in ("schema", "language"):
        with pytest.raises(InvalidValue, match="is for tables of this library's own"):
            make({"dsn": database, "table": PLAIN, key: "x"})
    with pytest.raises(InvalidValue, match="must be a table"):
        make({"dsn": database, "table": "articles"})
    content = ContentDefinition(metadata_keys=("title",))
    with pytest.raises(InvalidValue, match="names no column for 'title'"):
        async with open_postgres_table(database, PLAIN, content=content):
            pass
