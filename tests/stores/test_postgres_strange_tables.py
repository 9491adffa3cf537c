"""Tables of applications that are stranger than a mapping can say: nothing is written that nobody asked for."""

from __future__ import annotations

import os
from typing import Any

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("psycopg", reason="psycopg is not installed; pip install -e '.[postgres]'")

import psycopg.conninfo
from store_calls import look, write
from test_pgvector_mapped import CHUNKS, SOURCE, tables
from test_pgvector_mapped import opened as opened_chunks
from test_postgres_mapped import ARTICLES, PLAIN, entries, opened
from test_postgres_text import sql

from trio_repair import (
    InvalidValue,
    Removal,
    RepairJob,
    RepairOutcome,
    StoreUnavailable,
    SyncStrategy,
    Write,
    WriteStatus,
    open_repair_engine,
)
from trio_repair.abc import Stores
from trio_repair.stores.memory import MemoryStore
from trio_repair.stores.postgres_text import open_postgres_table
from trio_repair.testing import make_document

# Two rows with one id.

TRANSLATED = "CREATE TABLE articles (slug text, lang text DEFAULT 'en', body text, PRIMARY KEY (slug, lang))"
BOTH = "INSERT INTO articles VALUES ('a', 'en', 'english'), ('a', 'de', 'deutsch'), ('b', 'en', 'other')"
INHERITED = "CREATE TABLE drafts (PRIMARY KEY (slug, lang)) INHERITS (articles)"


@pytest.mark.parametrize("index", ["", 'CREATE INDEX ON articles (slug COLLATE "C")'], ids=["sorted", "served"])
@pytest.mark.parametrize(
    ("where", "more"),
    [
        ("lang <> 'fr'", (TRANSLATED, BOTH)),
        ("lang = 'en'", (TRANSLATED, INHERITED, BOTH, "INSERT INTO drafts VALUES ('a', 'en', 'a draft')")),
    ],
    ids=["where is too wide", "a table inherits"],
)
async def test_of_two_rows_with_one_id_neither_is_written(
    database: str, where: str, more: tuple[str, ...], index: str
) -> None:
    """A write would make one text of two; so nothing is told of such a document, and the rows stay as they are."""
    everything = "SELECT slug, lang, body FROM articles ORDER BY 1, 2, 3"
    async with opened(database, {**PLAIN, "where": where}, *more, *filter(None, [index])) as store:
        before = sql(database, everything)
        assert len(before) > len({row[0] for row in before})
        told = "two rows have the id 'a'; let table.where name one of them"
        with pytest.raises(StoreUnavailable, match=told):
            await look(store, "a")
        with pytest.raises(StoreUnavailable, match=told):
            await entries(store)
        (prepared,) = await store.prepare([make_document("a", "new", number=None)])
        for token in ("absent", "1.(0,1)"):
            with pytest.raises(StoreUnavailable, match=told):
                await store.write([Write(prepared=prepared, token=token)])
        assert before == sql(database, everything)
        assert (await look(store, "b")).version is not None


async def test_a_source_in_which_two_rows_have_one_id_is_refused(database: str) -> None:
    """Chunks are of one text; which of two it is, nobody could say."""
    sql(database, CHUNKS, TRANSLATED, BOTH)
    source = {"name": "articles", "id": "slug", "text": "body"}
    with pytest.raises(InvalidValue, match="has no unique index") as refused:
        async with opened_chunks(database, "chunks", source=source):
            pass
    assert "table.source.id" == refused.value.field
    sql(database, "INSERT INTO chunks (article, content) VALUES ('a', 'english'), ('b', 'other')")
    async with opened_chunks(database, "chunks", source={**source, "where": "lang <> 'fr'"}) as store:
        with pytest.raises(StoreUnavailable, match="two rows have the id 'a'"):
            await look(store, "a")
        assert (await look(store, "b")).version is not None


# Metadata of which the other store knows nothing.


@pytest.mark.parametrize("metadata", [["title", "rating"], "meta"])
async def test_a_repair_from_chunks_leaves_titles_as_they_are(database: str, metadata: Any) -> None:
    """Chunks have no metadata. What the application's row has is not theirs to take away."""
    sql(database, ARTICLES, CHUNKS)
    sql(database, """INSERT INTO articles (slug, body, title, rating, meta) VALUES ('a', 'old', 'T', 5, '{"k": 1}')""")
    sql(database, f"INSERT INTO chunks (article, position, content, embedding) VALUES ('a', 0, 'new', '{[1] * 16}')")
    async with (
        open_postgres_table(database, {**PLAIN, "metadata": metadata}) as text,
        opened_chunks(database, "joined") as vector,
        open_repair_engine(Stores(text=text, vector=vector)) as engine,
    ):
        job = RepairJob(doc_id="a", strategy=SyncStrategy.VECTOR_SOURCE_OF_TRUTH)
        result = await engine.execute_repair_job(job)
    assert (RepairOutcome.REPAIRED, ("text",)) == (result.outcome, result.updated_systems)
    assert [("new", "T", 5, {"k": 1})] == sql(database, "SELECT body, title, rating, meta FROM articles")


# Writes that the server takes, and does not do.

NOTHING = "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
KEPT = (NOTHING, "CREATE TRIGGER kept BEFORE DELETE ON {} FOR EACH ROW EXECUTE FUNCTION nothing()")
HELD_BACK = (NOTHING, "CREATE TRIGGER held_back BEFORE INSERT ON {} FOR EACH ROW EXECUTE FUNCTION nothing()")
RULE = ("CREATE RULE kept AS ON DELETE TO {} DO INSTEAD NOTHING",)


@pytest.mark.parametrize("keeper", [KEPT, RULE], ids=["trigger", "rule"])
async def test_a_delete_that_a_trigger_or_rule_turns_down_has_not_landed(
    database: str, keeper: tuple[str, ...]
) -> None:
    """Many applications keep what is deleted so. It is told in words, and no receipt says that a write landed."""
    ddl = [one.format("articles") for one in keeper]
    async with (
        opened(database, PLAIN, ARTICLES, *ddl) as text,
        open_repair_engine(Stores(text=text, vector=MemoryStore("vector"))) as engine,
    ):
        sql(database, "INSERT INTO articles (slug, body) VALUES ('a', 'kept')")
        token = (await look(text, "a")).token
        (answer,) = await text.remove([Removal(doc_id="a", token=token)])
        assert WriteStatus.REJECTED is answer.status
        assert "its rows are still there after they were deleted" in str(answer.error)
        result = await engine.resolve("a", choice="delete", expected={"text": token, "vector": "absent"})
    assert (RepairOutcome.FAILED, ("vector",)) == (result.outcome, result.updated_systems)
    assert "does a trigger or a rule keep them?" in str(result.error)
    assert [("kept",)] == sql(database, "SELECT body FROM articles")


@pytest.mark.parametrize("mode", ["joined", "chunks", "presence"])
async def test_chunks_that_stay_after_their_delete_are_not_doubled(database: str, mode: str) -> None:
    """The new ones would stand beside the old."""
    tables(database)
    sql(database, "INSERT INTO articles VALUES ('a', 'new', 1)")
    sql(database, f"INSERT INTO chunks (article, position, content, embedding) VALUES ('a', 0, 'old', '{[1] * 16}')")
    sql(database, *(one.format("chunks") for one in KEPT))
    async with opened_chunks(database, mode) as store:
        (refused,) = await write(store, make_document("a", "new"))
        assert WriteStatus.REJECTED is refused.status
        assert "its rows are still there after they were deleted" in str(refused.error)
    assert [("old",)] == sql(database, "SELECT content FROM chunks")


async def test_a_new_row_that_is_not_made_is_told_alone(database: str) -> None:
    """A trigger turns every new row down: that is no race, and nobody is told to look again."""
    ddl = [one.format("articles") for one in HELD_BACK]
    ddl[1] = ddl[1].replace("FOR EACH ROW", "FOR EACH ROW WHEN (NEW.slug <> 'b')")
    async with opened(database, PLAIN, ARTICLES, *ddl) as store:
        refused, landed = await write(store, *(make_document(one, "x", number=None) for one in ("a", "b")))
        assert (WriteStatus.REJECTED, WriteStatus.LANDED) == (refused.status, landed.status)
        assert "makes no row of it and reports no error" in str(refused.error)
    assert [("b",)] == sql(database, "SELECT slug FROM articles")


async def test_an_id_that_the_column_takes_for_another_is_refused_in_words(database: str) -> None:
    """Blanks at the end mean nothing to char, so that "a " cannot be made beside "a"."""
    async with opened(database, PLAIN, "CREATE TABLE articles (slug char(9) PRIMARY KEY, body text)") as store:
        sql(database, "INSERT INTO articles VALUES ('a', 'x')")
        (refused,) = await write(store, make_document("a ", "y", number=None))
        assert WriteStatus.REJECTED is refused.status
        assert "its column's type or collation takes for the same" in str(refused.error)
    assert [("x",)] == sql(database, "SELECT body FROM articles")


# Types.


async def test_a_type_that_allows_no_null_may_be_that_of_a_column_that_is_not_mapped(database: str) -> None:
    """It gets its default, or keeps its value, and has no part in what is written; nor has a type of an odd name."""
    ddl = (
        "CREATE DOMAIN filled AS text NOT NULL",
        """CREATE DOMAIN "%s odd" AS text CHECK (VALUE IS NOT NULL AND VALUE <> 'bad')""",
        "ALTER TABLE articles ADD owner filled DEFAULT 'nobody', DROP COLUMN body",
        """ALTER TABLE articles ADD body "%s odd", ADD "b%s" varchar(3)""",
    )
    chunks = CHUNKS.replace("tenant integer NOT NULL", "tenant filled")
    async with opened(database, {**PLAIN, "insert": {"b%s": "abc"}}, ARTICLES, *ddl, chunks) as store:
        sql(database, "INSERT INTO articles (slug, body, owner) VALUES ('a', 'old', 'somebody')")
        documents = (make_document(one, one, number=None) for one in ("a", "b", "bad"))
        assert [WriteStatus.LANDED, WriteStatus.LANDED, WriteStatus.REJECTED] == [
            one.status for one in await write(store, *documents)
        ]
    held = sql(database, """SELECT slug, body, owner, "b%s" FROM articles ORDER BY slug""")
    assert [("a", "a", "somebody", None), ("b", "b", "nobody", "abc")] == held
    async with opened_chunks(database, "text") as store:
        assert [WriteStatus.LANDED] == [one.status for one in await write(store, make_document("a", "text"))]
    assert [("7",)] == sql(database, "SELECT tenant FROM chunks")


@pytest.mark.parametrize("kind", ["vector(3)", "halfvec(3)"])
async def test_a_column_for_vectors_of_another_length_is_told_at_once(database: str, kind: str) -> None:
    """Each repair would fail with it."""
    tables(database)
    sql(database, f"ALTER TABLE chunks DROP COLUMN embedding, ADD COLUMN embedding {kind}")
    with pytest.raises(InvalidValue, match="takes vectors of 3 numbers, and the embedder makes 16") as refused:
        async with opened_chunks(database, "text"):
            pass
    assert "table.embedding" == refused.value.field


@pytest.mark.parametrize(
    ("table", "doc_id", "text", "words"),
    [
        ("slug text PRIMARY KEY, body varchar(3)", "a", "long", "is too long for its column"),
        ("slug smallint PRIMARY KEY, body text", "70000", "x", "is too large a number for its column"),
        ("slug integer PRIMARY KEY, body text", "a", "x", "is not of the type of its column"),
        ("slug uuid PRIMARY KEY, body text", "a", "x", "is not of the type of its column"),
    ],
)
async def test_what_does_not_fit_its_column_is_told_in_words(
    database: str, table: str, doc_id: str, text: str, words: str
) -> None:
    """An operator need not know what a SQLSTATE stands for."""
    async with opened(database, PLAIN, f"CREATE TABLE articles ({table})") as store:
        (refused,) = await write(store, make_document(doc_id, text, number=None))
        assert WriteStatus.REJECTED is refused.status
        assert words in str(refused.error)


# Rows that a policy hides.


@pytest.mark.parametrize(
    ("policies", "hides"),
    [
        ((), True),
        (("CREATE POLICY own ON articles USING (tenant = 7)",), True),
        (("CREATE POLICY theirs ON articles TO pg_monitor USING (true)",), True),
        (("CREATE POLICY write ON articles FOR INSERT WITH CHECK (true)",), True),
        (("CREATE POLICY all_of_it ON articles FOR SELECT TO clerk USING (true)",), False),
        (
            (
                "CREATE POLICY all_of_it ON articles USING (true)",
                "CREATE POLICY but ON articles AS RESTRICTIVE USING (tenant = 7)",
            ),
            True,
        ),
        (("ALTER TABLE articles DISABLE ROW LEVEL SECURITY",), False),
        (("ALTER ROLE clerk BYPASSRLS",), False),
    ],
)
async def test_a_user_from_whom_rows_are_hidden_is_refused(
    database: str, policies: tuple[str, ...], hides: bool
) -> None:
    """What a policy hides would be missing: its chunks would be orphans, and be deleted."""
    sql(database, ARTICLES, CHUNKS, "INSERT INTO articles (slug, body, tenant) VALUES ('a', 'x', 7), ('b', 'y', 8)")
    sql(database, "DROP ROLE IF EXISTS clerk", "CREATE ROLE clerk LOGIN PASSWORD 'files'")
    sql(database, "GRANT SELECT ON articles, chunks TO clerk", "ALTER TABLE articles ENABLE ROW LEVEL SECURITY")
    sql(database, *policies)
    clerk = psycopg.conninfo.make_conninfo(database, user="clerk", password="files")
    try:
        for store in (open_postgres_table(clerk, PLAIN), opened_chunks(clerk, "chunks", source=dict(PLAIN))):
            if hides:
                with pytest.raises(InvalidValue, match="row-level security may hide rows"):
                    async with store:
                        pass
            else:
                async with store as one:
                    assert one.traits
        async with open_postgres_table(database, PLAIN) as store:  # its owner is bound by no policy
            assert 2 == await store.count()
    finally:
        sql(database, "DROP OWNED BY clerk", "DROP ROLE clerk")


# Sources that cannot be compared with.


@pytest.mark.parametrize("revision", ["NULL", "-1", "9007199254740992"])
async def test_what_has_no_version_to_be_compared_by_is_not_written_again_and_again(
    database: str, revision: str
) -> None:
    """Its chunks could never be seen to be right; a run that finds that out changes nothing, and says why."""
    tables(database)
    sql(database, f"INSERT INTO articles VALUES ('a', 'text', {revision}), ('b', 'text', 1)")
    async with (
        open_postgres_table(database, SOURCE) as text,
        opened_chunks(database, "version") as vector,
        open_repair_engine(Stores(text=text, vector=vector)) as engine,
    ):
        jobs = [RepairJob(doc_id=one, strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH) for one in "ab"]
        odd, sound = [await engine.execute_repair_job(job) for job in jobs]
        assert (RepairOutcome.FAILED, ()) == (odd.outcome, odd.updated_systems)
        assert "it has no version number, and its chunks are compared by that" in str(odd.error)
        assert RepairOutcome.REPAIRED is sound.outcome
    assert [("b",)] == sql(database, "SELECT article FROM chunks")
