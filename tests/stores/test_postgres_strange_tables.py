"""Tables of applications that are stranger than a mapping can say: nothing is written that nobody asked for."""

from __future__ import annotations

import os
from typing import Any

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("psycopg", reason="psycopg is not installed; pip install -e '.[postgres]'")

from sqlite_support import look
from test_pgvector_mapped import CHUNKS
from test_pgvector_mapped import opened as opened_chunks
from test_postgres_mapped import ARTICLES, PLAIN, entries, opened
from test_postgres_text import sql

from trio_repair import (
    InvalidValue,
    RepairJob,
    RepairOutcome,
    StoreUnavailable,
    SyncStrategy,
    Write,
    open_repair_engine,
)
from trio_repair.abc import Stores
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
