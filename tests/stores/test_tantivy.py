"""The text store on tantivy: what `test_directory_store` does not ask of both stores in a directory, and searches."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("tantivy") is None and os.environ.get("CI") != "true":
    pytest.skip("tantivy is not installed; pip install -e '.[tantivy]'", allow_module_level=True)

import tantivy
from store_calls import look, put, scan, text_of, write

from trio_repair import (
    ContentDefinition,
    Document,
    InvalidValue,
    Presence,
    StoreFileError,
    StoreRejected,
    StoreUnavailable,
)
from trio_repair.stores import _tantivy, _tantivy_rows
from trio_repair.stores._directory import LABEL
from trio_repair.stores.tantivy import open_tantivy_text, tantivy_text_from_settings
from trio_repair.testing import make_document


def written_from_outside(path: Path, *rows: dict[str, Any]) -> None:
    """Add rows as a program that knows tantivy and not this store does, while nobody has it open."""
    index = tantivy.Index.open(str(path))
    writer = index.writer(heap_size=15_000_000, num_threads=1)
    for row in rows:
        writer.add_document(tantivy.Document.from_dict(row, index.schema))
    writer.commit()
    writer.wait_merging_threads()


async def test_a_driver_that_fails_before_the_commit_wrote_nothing(tmp_path: Path) -> None:
    """The call fails as a whole."""
    async with open_tantivy_text(tmp_path / "store", create=True) as store:
        await put(store, make_document("a", "before"))

        def spoil(session: _tantivy.Session) -> None:
            session._writer.wait_merging_threads()  # type: ignore[union-attr]  # it takes nothing any more

        await store._run(spoil)
        with pytest.raises(StoreUnavailable):
            await write(store, make_document("a", "after", number=2))
        assert "before" == await text_of(store, "a")
        await put(store, make_document("a", "later", number=3))


async def test_an_index_without_our_fields_is_refused(tmp_path: Path) -> None:
    """The label says that it is ours, and the index is not."""
    async with open_tantivy_text(tmp_path / "store", create=True):
        pass
    for one in (tmp_path / "store").iterdir():
        if one.name != LABEL:
            one.unlink()
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("doc_id", stored=True)
    tantivy.Index(builder.build(), path=str(tmp_path / "store"))
    written_from_outside(tmp_path / "store", {"doc_id": "a"})
    with pytest.raises(StoreFileError, match="cannot be used"):
        async with open_tantivy_text(tmp_path / "store"):
            pass


# Rows of others.


async def test_rows_of_others_are_damaged_copies(tmp_path: Path) -> None:
    """A row without our columns, and a document that is there twice: seen, scanned once, not read, and repaired."""
    path = tmp_path / "store"
    async with open_tantivy_text(path, create=True) as store:
        await put(store, make_document("ours", "text"), make_document("twice", "text"))
    written_from_outside(
        path,
        {"doc_id": "theirs", "text": "from outside"},
        {"doc_id": "twice", "text": "from outside"},
        {"doc_id": "number", "text": "from outside", "number": 2**60},
    )
    async with open_tantivy_text(path) as store:
        damaged = ["number", "theirs", "twice"]
        entries = await scan(store)
        assert ["number", "ours", "theirs", "twice"] == [doc_id for doc_id, _ in entries]
        assert list(dict(entries).values()) == list(await store.observe([doc_id for doc_id, _ in entries]))
        tokens = set()
        for doc_id in damaged:
            seen = await look(store, doc_id)
            assert (Presence.LIVE, False) == (seen.presence, seen.intact)
            tokens.add(seen.token)
            (answer,) = await store.read([doc_id])
            assert isinstance(answer, StoreRejected)
        assert len(tokens) == len(damaged)
        await put(store, *(make_document(doc_id, "repaired", number=3) for doc_id in damaged))
        assert 4 == await store.count()
        for doc_id in damaged:
            assert "repaired" == await text_of(store, doc_id)
            assert (await look(store, doc_id)).intact


async def test_rows_under_revisions_of_others_stop_a_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revision that comes again could hide a row from a page: the scan fails rather than miss it."""
    path = tmp_path / "store"
    async with open_tantivy_text(path, create=True) as store:
        await put(store, make_document("a", "text"))
    written_from_outside(path, *({"doc_id": f"copy {index}", "revision": 7} for index in range(9)))
    monkeypatch.setattr(_tantivy_rows, "_ROWS_PER_LOOK", 4)
    async with open_tantivy_text(path) as store:
        with pytest.raises(StoreUnavailable, match="something else"):
            await scan(store)


# Search.


async def test_search_by_words(tmp_path: Path) -> None:
    """All words must be there, whatever their case; deleted documents are not found; nothing typed is syntax."""
    async with open_tantivy_text(tmp_path / "store", create=True) as store:
        assert [] == await store.search("anything")
        await put(
            store,
            make_document("a", "Grüße an die Welt, viele GRÜSSE"),
            make_document("b", "die Welt " * 200 + "endet mit Grüßen und grüße"),
            make_document("c", "no such thing"),
            make_document("d", "grüße welt, to be deleted"),
        )
        await put(store, Document.tombstone("d", number=2))
        hits = await store.search("WELT grüße")
        assert ["a", "b"] == [hit.doc_id for hit in hits]
        assert hits[0].score > hits[1].score > 0
        assert "[Grüße] an die [Welt], viele GRÜSSE" == hits[0].snippet
        assert len(hits[1].snippet) < 400
        assert 1 == len(await store.search("welt", 1))
        for hostile in ("", "-c", "no OR welt", 'no "', "text:welt no", "c*", "^", "a" * 100_000, "\0", "[1 TO 2]"):
            assert "d" not in [hit.doc_id for hit in await store.search(hostile, 2**62)]
        assert ["c"] == [hit.doc_id for hit in await store.search('"no" (thing) -')]


async def test_search_by_expression(tmp_path: Path) -> None:
    """With tantivy's own operators; tombstones are not found, not even by their ids."""
    async with open_tantivy_text(tmp_path / "store", create=True) as store:
        await put(store, make_document("a", "one two"), make_document("b", "two three"), make_document("c", "four"))
        await put(store, Document.tombstone("c", number=2))
        for query, expected in {
            "one OR three": {"a", "b"},
            "two -three": {"a"},
            '"two three"': {"b"},
            "doc_id:c OR doc_id:a": {"a"},
            "*": {"a", "b"},
        }.items():
            assert expected == {hit.doc_id for hit in await store.search(query, syntax="tantivy")}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"query": "a", "limit": 0}, "limit"),
        ({"query": "a", "syntax": "fts5"}, "syntax"),
        ({"query": 'a "b', "syntax": "tantivy"}, "query"),
        ({"query": "nosuchfield:a", "syntax": "tantivy"}, "query"),
        ({"query": "\ud800"}, "query"),
    ],
)
async def test_a_search_that_cannot_be_made_is_refused(tmp_path: Path, arguments: Any, field: str) -> None:
    """By type, and the argument is named."""
    async with open_tantivy_text(tmp_path / "store", create=True) as store:
        with pytest.raises(InvalidValue) as error:
            await store.search(**arguments)
        assert field == error.value.field


async def test_settings_of_a_configuration_file(tmp_path: Path) -> None:
    """`path` and nothing else; relative to the file."""
    options: dict[str, Any] = {"name": "text", "directory": tmp_path, "content": ContentDefinition(), "create": True}
    async with tantivy_text_from_settings({"path": "store"}, **options) as store:
        assert str(tmp_path / "store") in repr(store)
        assert 0 == await store.count()
    for settings, key in [({}, "path"), ({"path": 1}, "path"), ({"path": "x", "synchronous": "full"}, "synchronous")]:
        with pytest.raises(InvalidValue) as error:
            tantivy_text_from_settings(settings, **options)
        assert key == error.value.field
