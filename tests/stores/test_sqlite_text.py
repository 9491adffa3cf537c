"""The text store: full-text search, and a table that other programs read and write by plain SQL."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import apsw
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from sqlite_support import scan, sound, sql
from store_calls import look, put, take_away

from trio_repair import ContentDefinition, Document, InvalidValue, Presence, StoredDocument, StoreRejected
from trio_repair.stores.sqlite_text import open_sqlite_text, quote_words
from trio_repair.testing import make_document


def digest(text: str) -> str:
    return ContentDefinition().digest(text, {})


# Search.


async def test_search_finds_words_best_first(tmp_path: Path) -> None:
    """A search gives live documents with all the words, the best first, with the passage that fits."""
    async with open_sqlite_text(tmp_path / "s.db", create=True) as store:
        await put(
            store,
            make_document("one", "A queue is a list of things that wait. " * 3),
            make_document("two", "queue queue queue"),
            make_document("three", "Nothing of the kind."),
        )
        hits = await store.search("QUEUE")
        assert ["two", "one"] == [hit.doc_id for hit in hits]
        assert hits[0].score > hits[1].score > 0
        assert hits[0].snippet.startswith("[queue]")
        assert ["one"] == [hit.doc_id for hit in await store.search("queue wait")]
        assert 1 == len(await store.search("queue", limit=1))
        assert "queue" not in repr(hits[0])


async def test_search_follows_every_change(tmp_path: Path) -> None:
    """What is replaced, deleted or removed is no longer found by its old words."""
    path = tmp_path / "s.db"
    async with open_sqlite_text(path, create=True) as store:
        await put(store, *(make_document(doc_id, f"old {doc_id}") for doc_id in "abc"))
        await put(store, make_document("a", "new", number=2), Document.tombstone("b", number=2))
        await take_away(store, "c")
        assert [] == list(await store.search("old"))
        assert ["a"] == [hit.doc_id for hit in await store.search("new")]
    assert sound(path)


@pytest.mark.parametrize(
    "query",
    ['"', "'", "AND", "a AND", "NEAR(", "(", "*", "a*", "-b", "col:x", "^", "\0", "\ud800", '""', "; DROP TABLE"],
)
async def test_words_are_never_syntax(query: str, tmp_path: Path) -> None:
    """Whatever people type is looked for as words; nothing of it is an expression."""
    async with open_sqlite_text(tmp_path / "s.db", create=True) as store:
        await put(store, make_document("a", "some text"))
        assert [] == list(await store.search(query))


@given(st.text())
def test_any_text_is_a_query(query: str) -> None:
    """Quoting makes a valid FTS5 expression of any text."""
    connection = apsw.Connection(":memory:")
    connection.execute("CREATE VIRTUAL TABLE texts USING fts5 (text)")
    connection.execute("INSERT INTO texts VALUES ('a b c')")
    expression = quote_words(query)
    if expression:
        connection.execute("SELECT * FROM texts WHERE texts MATCH ?", (expression,)).fetchall()
    connection.close()


async def test_empty_queries_and_wrong_ones(tmp_path: Path) -> None:
    """No words, no hits; an expression that FTS5 cannot read, and a limit that means nothing, are named."""
    async with open_sqlite_text(tmp_path / "s.db", create=True) as store:
        await put(store, make_document("a", "red green"), make_document("b", "red blue"))
        assert [] == list(await store.search("  "))
        assert ["a"] == [hit.doc_id for hit in await store.search("red NOT blue", syntax="fts5")]
        with pytest.raises(InvalidValue, match="query: FTS5 cannot read it"):
            await store.search("red AND", syntax="fts5")
        with pytest.raises(InvalidValue, match="query: FTS5 cannot read it"):
            await store.search("nocolumn: red", syntax="fts5")
        with pytest.raises(InvalidValue, match="syntax: must be 'words' or 'fts5'"):
            await store.search("red", syntax="sql")  # type: ignore[arg-type]  # wrong on purpose
        for limit in (0, -1, True, 1.5):
            with pytest.raises(InvalidValue, match="limit: must be an int of at least 1"):
                await store.search("red", limit)  # type: ignore[arg-type]  # wrong on purpose


async def test_a_word_is_looked_for_once_however_often_it_is_said(tmp_path: Path) -> None:
    """FTS5 would go along all its places for each time, and a passage of a document can be a query."""
    assert '"x" "y" "X"' == quote_words("x y x X y x")
    async with open_sqlite_text(tmp_path / "s.db", create=True) as store:
        await put(store, make_document("a", "x y " * 50_000), make_document("b", "x"))
        assert ["a"] == [hit.doc_id for hit in await store.search("x y " * 500)]


async def test_a_passage_of_a_long_text(tmp_path: Path) -> None:
    """It is where the first word is, without a snippet of FTS5, which would take minutes over a hundred thousand hits."""
    async with open_sqlite_text(tmp_path / "s.db", create=True) as store:
        long = "other " * 5_000 + "WORDS x " + "x " * 50_000
        await put(store, make_document("long", long), make_document("short", "words " + "x " * 4_000))
        passages = {hit.doc_id: hit.snippet for hit in await store.search("words x")}
        assert "WORDS x x x" in passages["long"]
        assert 160 == len(passages["long"])
        assert passages["short"].startswith("[words] [x]")
        (hit,) = await store.search("other", syntax="fts5")
        assert hit.snippet.startswith("other other")


async def test_a_long_text_that_begins_with_nul(tmp_path: Path) -> None:
    """SQLite's length() counts as far as the first NUL; FTS5's snippet goes on."""
    async with open_sqlite_text(tmp_path / "s.db", create=True) as store:
        await put(store, make_document("a", "x\0" + "words " * 100_000))
        with trio.fail_after(5):
            (hit,) = await store.search("words")
        assert "[" not in hit.snippet


# Plain SQL.


async def test_rows_that_plain_sql_writes_are_documents(tmp_path: Path) -> None:
    """doc_id and text are enough: the digest is computed when somebody looks, and looking writes nothing."""
    path = tmp_path / "s.db"
    async with open_sqlite_text(path, create=True) as store:
        sql(path, "INSERT INTO documents (doc_id, text) VALUES ('a', 'hello')")
        before = sql(path, "SELECT * FROM documents")
        seen = await look(store, "a")
        assert seen.presence is Presence.LIVE
        assert seen.intact
        assert seen.version is not None
        assert (None, digest("hello")) == (seen.version.number, seen.version.digest)
        assert [("a", seen)] == await scan(store)
        (answer,) = await store.read(["a"])
        assert isinstance(answer, StoredDocument)
        assert answer.document is not None
        assert "hello" == answer.document.text
        assert ["a"] == [hit.doc_id for hit in await store.search("hello")]
        assert before == sql(path, "SELECT * FROM documents")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE documents SET text = 'new'",
        "UPDATE documents SET text = 'new', number = 2",
        "INSERT OR REPLACE INTO documents (doc_id, text) VALUES ('a', 'new')",
        "INSERT INTO documents (doc_id, text) VALUES ('a', 'new') ON CONFLICT DO UPDATE SET text = excluded.text",
    ],
)
@pytest.mark.parametrize("recursive", ["ON", "OFF"])
async def test_no_lying_digest_after_an_edit(statement: str, recursive: str, tmp_path: Path) -> None:
    """A text that plain SQL changes has a new token, its own digest, and is found by its own words.

    Control: without the trigger, the old digest stays and the document cannot be read.
    """
    for planted in (False, True):
        path = tmp_path / f"{planted}.db"
        async with open_sqlite_text(path, create=True) as store:
            (before,) = await put(store, make_document("a", "old"))
            sql(
                path,
                f"PRAGMA recursive_triggers = {recursive}",
                "DROP TRIGGER documents_updated" if planted else "SELECT 1",
                f"PRAGMA recursive_triggers = {recursive}; {statement}",
            )
            seen = await look(store, "a")
            assert seen.version is not None
            if planted:
                continue
            assert seen.token != before.token
            assert seen.intact
            assert digest("new") == seen.version.digest
            assert isinstance((await store.read(["a"]))[0], StoredDocument)
            assert ["a"] == [hit.doc_id for hit in await store.search("new")]
            assert [] == list(await store.search("old"))
        if planted and statement.startswith("UPDATE"):
            assert digest("old") == seen.version.digest


async def test_digest_that_the_edit_names_is_kept(tmp_path: Path) -> None:
    """An edit that brings its digest along is believed, until the content is read."""
    path = tmp_path / "s.db"
    async with open_sqlite_text(path, create=True) as store:
        await put(store, make_document("a", "old"))
        sql(path, f"UPDATE documents SET text = 'new', digest = '{digest('new')}'")
        assert [(digest("new"),)] == sql(path, "SELECT digest FROM documents")
        assert isinstance((await store.read(["a"]))[0], StoredDocument)


async def test_metadata_as_content(tmp_path: Path) -> None:
    """Where metadata is part of the content, an edit of it is another content."""
    path = tmp_path / "s.db"
    titled = ContentDefinition(metadata_keys=("title",))
    async with open_sqlite_text(path, create=True, content=titled) as store:
        await put(store, make_document("a", "text", metadata={"title": "x"}, content=titled))
        sql(path, """UPDATE documents SET metadata = '{"title": "y"}'""")
        version = (await look(store, "a")).version
        assert version is not None
        assert titled.digest("text", {"title": "y"}) == version.digest
        sql(path, r"""UPDATE documents SET metadata = '{"title": "\ud800"}'""")
        seen = await look(store, "a")
        assert not seen.intact
        assert isinstance((await store.read(["a"]))[0], StoreRejected)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO documents (doc_id, text, metadata) VALUES ('b', 'x', 'no json')",
        "INSERT INTO documents (doc_id, text, metadata) VALUES ('b', 'x', '[1]')",
        "INSERT INTO documents (doc_id, text, number) VALUES ('b', 'x', -1)",
        "INSERT INTO documents (doc_id, text, number) VALUES ('b', 'x', 9007199254740992)",
        "INSERT INTO documents (doc_id, text) VALUES ('b', x'00')",
        "INSERT INTO documents (doc_id) VALUES ('b')",
    ],
)
async def test_rows_that_are_no_documents(statement: str, tmp_path: Path) -> None:
    """Plain SQL that would write what is no document is refused by the table itself."""
    path = tmp_path / "s.db"
    async with open_sqlite_text(path, create=True) as store:
        with pytest.raises(apsw.ConstraintError):
            sql(path, statement)
        assert 0 == await store.count()


async def test_soft_delete_by_plain_sql(tmp_path: Path) -> None:
    """``deleted = 1`` makes a tombstone: not found, not read, and dated for a purge."""
    path = tmp_path / "s.db"
    async with open_sqlite_text(path, create=True, clock=lambda: 0.0) as store:
        await put(store, make_document("a", "text"))
        sql(path, "UPDATE documents SET deleted = 1, number = 2")
        seen = await look(store, "a")
        assert seen.presence is Presence.TOMBSTONE
        assert Document.tombstone("a", number=2).version == seen.version
        assert [] == list(await store.search("text"))
        (answer,) = await store.read(["a"])
        assert isinstance(answer, StoredDocument)
        assert Document.tombstone("a", number=2) == answer.document
        assert [] == list(await store.tombstones(dt.datetime(2000, 1, 1, tzinfo=dt.timezone.utc)))
        assert ["a"] == list(await store.tombstones())
    assert sound(path)


async def test_lost_index_row_is_damage(tmp_path: Path) -> None:
    """A document without its row in the full-text index is not intact; writing it again mends it, and soundly."""
    path = tmp_path / "s.db"
    async with open_sqlite_text(path, create=True) as store:
        (before,) = await put(store, make_document("a", "text"))
        sql(path, "INSERT INTO documents_fts (documents_fts, rowid, text) SELECT 'delete', id, text FROM documents")
        seen = await look(store, "a")
        assert not seen.intact
        assert seen.token != before.token
        assert [] == list(await store.search("text"))
        (after,) = await put(store, make_document("a", "text"))
        assert after.intact
        assert ["a"] == [hit.doc_id for hit in await store.search("text")]
    assert sound(path)


async def test_vacuum_keeps_the_index_in_step(tmp_path: Path) -> None:
    """VACUUM, which may renumber rows, does not confuse documents and index."""
    path = tmp_path / "s.db"
    async with open_sqlite_text(path, create=True) as store:
        await put(store, *(make_document(f"{index}", f"word{index}") for index in range(30)))
        for index in range(0, 30, 2):
            await take_away(store, f"{index}")
        sql(path, "VACUUM")
        assert ["7"] == [hit.doc_id for hit in await store.search("word7")]
    assert sound(path)


# Tombstones for a purge.


async def test_tombstones_by_age_and_page(tmp_path: Path) -> None:
    """Tombstones are listed in byte order, in pages, by when they were written; a naive moment is refused."""
    now = 1_000_000.0
    async with open_sqlite_text(tmp_path / "s.db", create=True, clock=lambda: now) as store:
        await put(store, *(Document.tombstone(doc_id, number=1) for doc_id in "dbca"), make_document("live", "x"))
        now = 2_000_000.0
        await put(store, Document.tombstone("e", number=1))
        between = dt.datetime.fromtimestamp(1_500_000, dt.timezone.utc)
        assert list("abcd") == list(await store.tombstones(between))
        assert list("abcde") == list(await store.tombstones())
        assert ["a", "b"] == list(await store.tombstones(limit=2))
        assert ["c", "d"] == list(await store.tombstones(after="b", limit=2))
        assert [] == list(await store.tombstones(after="e"))
        assert [] == list(await store.tombstones(dt.datetime.fromtimestamp(1_000_000, dt.timezone.utc)))
        with pytest.raises(InvalidValue, match="before: must be a timezone-aware datetime"):
            await store.tombstones(dt.datetime(2024, 1, 1))  # noqa: DTZ001 - that is the mistake
        with pytest.raises(InvalidValue, match="limit"):
            await store.tombstones(limit=0)
