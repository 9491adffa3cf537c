"""Tables of applications that are stranger than a mapping can say: nothing is written that nobody asked for."""

from __future__ import annotations

import os

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("psycopg", reason="psycopg is not installed; pip install -e '.[postgres]'")

from sqlite_support import look
from test_pgvector_mapped import CHUNKS
from test_pgvector_mapped import opened as opened_chunks
from test_postgres_mapped import PLAIN, entries, opened
from test_postgres_text import sql

from trio_repair import InvalidValue, StoreUnavailable, Write
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
