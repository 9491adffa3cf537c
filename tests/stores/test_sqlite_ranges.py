"""Ranges of the SQLite stores: what SQL joins is what observations say, from one snapshot, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from sqlite_support import OPENERS, scan, sql, summaries
from store_calls import look, put

from trio_repair import (
    AutoRepairConfig,
    Document,
    RangeDigest,
    RangeListing,
    StoreUnavailable,
    check,
    diagnose,
    summarize,
)
from trio_repair.abc import RangedStore, Ranges, Stores
from trio_repair.stores import _ranges
from trio_repair.stores._sqlite import Session
from trio_repair.stores._sqlite_store import SqliteStore
from trio_repair.testing import make_document

KINDS = sorted(OPENERS)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def fill(store: SqliteStore, ids: Sequence[str]) -> None:
    for start in range(0, len(ids), 200):
        await put(store, *[make_document(doc_id, f"text of {doc_id}") for doc_id in ids[start : start + 200]])


async def listed(held: Ranges, after: str | None, bound: str | None) -> list[tuple[str, str]]:
    """A whole range, page by page."""
    found: list[tuple[str, str]] = []
    while True:
        page = await held.listing(after, bound)
        parts = page.entries.decode().split("\0")[:-1]
        found += zip(parts[::2], parts[1::2], strict=True)
        if not page.more:
            return found
        after = found[-1][0]


async def test_entries_are_in_order_however_rows_lie(kind: str, tmp_path: Path) -> None:
    """The order is that of ids, not of rows; the plan of the statement has no sorter that would cost it its speed."""
    async with OPENERS[kind](tmp_path / "s.db", create=True) as store:
        assert isinstance(store, RangedStore)
        ids = [f"{number * 7919 % 1000:03}" for number in range(600)]
        await fill(store, ids)
        async with store.open_ranges() as held:
            assert sorted(ids) == [doc_id for doc_id, _ in await listed(held, None, None)]
            ((last, digest), *_) = await held.ranges(None, 250, 1)
            assert sorted(ids)[249] == last
            assert 250 == digest.count


async def test_long_ranges_come_in_pages(kind: str, tmp_path: Path) -> None:
    """A range with more documents than asked for has no digest, and is listed 1,000 at a time."""
    async with OPENERS[kind](tmp_path / "s.db", create=True) as store:
        ids = [f"{number:05}" for number in range(2000)]
        await fill(store, ids)
        async with store.open_ranges() as held:
            assert [None] == await held.digests(None, [None], 1999)
            (whole,) = await held.digests(None, [None], 2000)
            assert whole is not None
            assert 2000 == whole.count
            none, some, rest = await held.digests("00010", ["00500", "00600x", None], 100)
            assert (None, None) == (none, rest)
            assert some is not None
            assert 100 == some.count
            first = await held.listing(None, "01500")
            assert (1000, True) == (first.entries.count(0) // 2, first.more)
            second = await held.listing("00999", "01500")
            assert (501, False) == (second.entries.count(0) // 2, second.more)
            assert RangeListing(entries=b"", more=False) == await held.listing("01500", "01500")
            third = await held.listing("00999", None)
            assert (1000, True) == (third.entries.count(0) // 2, third.more)
            assert RangeListing(entries=b"", more=False) == await held.listing("01999", None)


async def test_what_is_kept_is_bounded(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of the last ranges are kept for listings, up to a size; those that were dropped are read again."""
    monkeypatch.setattr(_ranges, "_KEPT_BYTES", 40_000)
    async with OPENERS[kind](tmp_path / "s.db", create=True) as store:
        ids = [f"{number:05}" for number in range(1000)]
        await fill(store, ids)
        async with store.open_ranges() as held:
            after = None
            bounds: list[tuple[str | None, str]] = []
            while some := await held.ranges(after, 50, 3):
                for bound, _ in some:
                    bounds.append((after, bound))
                    after = bound
            kept = held._kept
            assert 0 < len(kept) < 20
            assert held._kept_bytes == sum(len(one.entries) for one in kept.values()) <= 40_000
            assert bounds[-1] in kept
            assert bounds[0] not in kept
            assert ids == [doc_id for start, bound in bounds for doc_id, _ in await listed(held, start, bound)]


async def test_a_digest_with_nul_is_looked_at(kind: str, tmp_path: Path) -> None:
    """Foreign SQL that puts NUL into a digest makes this document odd in listings, and disturbs no other."""
    path = tmp_path / "s.db"
    async with OPENERS[kind](path, create=True) as store:
        await put(store, *[make_document(doc_id, "x") for doc_id in ("a", "b", "c")])
        digest = "substr(digest, 1, 10) || char(0) || 'd' || char(0) || substr(digest, 1, 10)"
        sql(path, f"UPDATE documents SET digest = {digest} WHERE doc_id = 'b'")
        async with store.open_ranges() as held:
            ((_, told),) = await held.ranges(None, 10, 1)
            found = await listed(held, None, "c")
            assert [("a", False), ("b", True), ("c", False)] == [(doc_id, not summary) for doc_id, summary in found]
            assert found == await listed(held, None, None)
            # Bytes that could be those of four documents in another store are three documents here.
            assert told != RangeDigest.of(held._kept[None, "c"].entries)


@pytest.mark.parametrize("digest", ["char(0)", "'a' || char(0)", "'a' || char(0) || '5'", "'zz' || char(0) || '5'"])
async def test_a_digest_with_nul_stands_last(digest: str, kind: str, tmp_path: Path) -> None:
    """The last range ends with its last id, whatever the digest of that document looks like."""
    path = tmp_path / "s.db"
    async with OPENERS[kind](path, create=True) as store:
        await put(store, *[make_document(doc_id, "x") for doc_id in ("b", "c", "d")])
        sql(path, f"UPDATE documents SET digest = {digest} WHERE doc_id = 'd'")
        for size in (1, 2, 3, 10):
            async with store.open_ranges() as held:
                after = None
                found = []
                while some := await held.ranges(after, size, 2):
                    for bound, _ in some:
                        assert bound > (after or "")
                        found += await listed(held, after, bound)
                        after = bound
                assert [("b", False), ("c", False), ("d", True)] == [(doc_id, not summary) for doc_id, summary in found]


async def test_an_id_that_is_not_utf8(kind: str, tmp_path: Path) -> None:
    """Wherever such an id stands, it is told; a digest that is not UTF-8 spoils its own document only."""
    path = tmp_path / "s.db"
    async with OPENERS[kind](path, create=True) as store:
        await put(store, *[make_document(doc_id, "x") for doc_id in ("a", "b", "c")])
        sql(path, "UPDATE documents SET digest = CAST(x'62ff' AS TEXT) WHERE doc_id = 'b'")
        async with store.open_ranges() as held:
            ((last, digest),) = await held.ranges(None, 10, 1)
            assert ("c", 3) == (last, digest.count)
        sql(path, "UPDATE documents SET doc_id = CAST(x'62ff' AS TEXT) WHERE doc_id = 'b'")
        for size in (1, 2, 3):
            async with store.open_ranges() as held:
                with pytest.raises(StoreUnavailable, match="holds a doc_id that is not UTF-8"):
                    while some := await held.ranges("a", size, 1):
                        assert "a" == some[-1][0]
                with pytest.raises(StoreUnavailable, match="holds a doc_id that is not UTF-8"):
                    await held.digests("a", ["c"], 10)
                with pytest.raises(StoreUnavailable, match="holds a doc_id that is not UTF-8"):
                    await held.listing("a", None)


async def test_ranges_let_their_connection_go(kind: str, tmp_path: Path) -> None:
    """However they are left, the connection of the snapshot is closed."""
    async with OPENERS[kind](tmp_path / "s.db", create=True) as store:
        await put(store, make_document("a", "1"))

        def readers(session: Session) -> int:
            return len(session._readers)

        async with store.open_ranges():
            assert 1 == await store._run(readers)
        assert 0 == await store._run(readers)
        with trio.CancelScope() as scope:
            async with store.open_ranges() as held:
                scope.cancel()
                await held.ranges(None, 10, 1)
        assert scope.cancelled_caught
        assert 0 == await store._run(readers)


async def test_expired_entries_are_in_no_range(tmp_path: Path) -> None:
    """An entry of the cache that has expired is neither counted nor listed, nor does it end a page."""
    path = tmp_path / "s.db"
    async with OPENERS["cache"](path, create=True) as store:
        ids = [f"{number:05}" for number in range(1200)]
        await fill(store, ids)
        sql(path, "UPDATE documents SET expires_at = 1 WHERE doc_id < '01100'")
        async with store.open_ranges() as held:
            assert ids[1100:] == [doc_id for doc_id, _ in await listed(held, None, None)]
            ((last, digest),) = await held.ranges(None, 1000, 5)
            assert (ids[-1], 100) == (last, digest.count)
            assert [digest] == await held.digests(None, [None], 100)


DAMAGE = [
    ("text", "DELETE FROM documents WHERE doc_id = 'd05'"),
    ("text", "DELETE FROM documents_fts_docsize WHERE id = (SELECT id FROM documents WHERE doc_id = 'd06')"),
    ("text", "UPDATE documents SET digest = NULL WHERE doc_id = 'd07'"),
    ("text", "UPDATE documents SET number = NULL WHERE doc_id = 'd08'"),
    ("text", "UPDATE documents SET deleted = 1, text = NULL WHERE doc_id = 'd09'"),
    ("vector", "DELETE FROM documents WHERE doc_id = 'd15'"),
    ("vector", "UPDATE documents SET number = 9 WHERE doc_id = 'd16'"),
    ("vector", "DELETE FROM chunks WHERE doc_id = 'd17' AND ordinal = 1"),
    ("vector", "UPDATE documents SET model = 'other' WHERE doc_id = 'd18'"),
    ("vector", "UPDATE documents SET chunk_count = chunk_count + 1 WHERE doc_id = 'd19'"),
    ("vector", "UPDATE documents SET deleted = 1 WHERE doc_id = 'd20'"),
    ("vector", "DELETE FROM documents"),
    ("cache", "DELETE FROM documents WHERE doc_id < 'd20'"),
    ("cache", "UPDATE documents SET number = 0 WHERE doc_id = 'd25'"),
    ("cache", "INSERT INTO documents (doc_id, text, digest) VALUES ('e', 'x', 'y')"),
]


@pytest.mark.parametrize(("damaged", "statement"), DAMAGE)
async def test_a_check_of_files_finds_what_diagnose_finds(damaged: str, statement: str, tmp_path: Path) -> None:
    """What foreign SQL breaks is found, in a file of each kind; what it leaves alone is not reported."""
    paths = {name: tmp_path / f"{name}.db" for name in OPENERS}
    async with (
        OPENERS["text"](paths["text"], create=True) as text,
        OPENERS["vector"](paths["vector"], create=True) as vector,
        OPENERS["cache"](paths["cache"], create=True) as cache,
    ):
        stores = Stores(text=text, vector=vector, cache=cache)
        documents = [make_document(f"d{number:02}", f"text {number} " * 9) for number in range(40)]
        for store in (text, vector):
            await put(store, *documents, Document.tombstone("gone", number=3))
        await put(cache, *documents)
        try:
            sql(paths[damaged], statement)
        except Exception as error:
            pytest.skip(str(error))
        ids = [*(one.doc_id for one in documents), "gone", "e"]
        traits = {name: store.traits for name, store in stores.by_name.items()}
        wanted = set()
        for doc_id in ids:
            views = {name: await look(store, doc_id) for name, store in stores.by_name.items()}
            if diagnose(doc_id, views, traits) is not None:
                wanted.add(doc_id)
        async with check(stores, AutoRepairConfig(settle=0.0)) as checking:
            assert wanted == {divergence.doc_id async for divergence in checking}
        # A digest that was lost is made anew from the content, and the cache may lack what it likes.
        assert bool(wanted) != ("digest = NULL" in statement or "doc_id < " in statement)
        for store in stores.by_name.values():
            for (_, view), (_, summary, _) in zip(await scan(store), await summaries(store), strict=True):
                assert summary in (summarize(view, store.traits), "")


EXTRA = "INSERT INTO chunks (doc_id, ordinal, start, text) VALUES ('{}', {}, 0, 'x');"
LOST = "DELETE FROM chunks WHERE doc_id = '{}' AND ordinal = {};"
SILENT = {
    "nothing": "",
    "one too many": EXTRA.format("one 1", 1),
    "one too many, another lost": EXTRA.format("one 1", 1) + LOST.format("one 2", 0),
    "one too many, another lost in the middle": EXTRA.format("one 1", 1) + LOST.format("several", 1),
    "one too many, and a deleted document": EXTRA.format("one 1", 1)
    + "UPDATE documents SET deleted = 1 WHERE doc_id = 'one 2';",
    "in the middle": LOST.format("several", 1),
    "at the end": LOST.format("several", 2),
    "shifted": "UPDATE chunks SET ordinal = 7 WHERE doc_id = 'several' AND ordinal = 1;",
    "given to another": "UPDATE chunks SET doc_id = 'one 1', ordinal = 1 WHERE doc_id = 'one 2';",
    "of nobody": EXTRA.format("nobody", 0),
    "of nobody, another lost": EXTRA.format("nobody", 0) + LOST.format("one 1", 0),
    "fewer due": "UPDATE documents SET chunk_count = 1 WHERE doc_id = 'several';",
    "more due": "UPDATE documents SET chunk_count = 2 WHERE doc_id = 'one 1';" + EXTRA.format("one 1", 1),
    "none due": "UPDATE documents SET chunk_count = 0 WHERE doc_id = 'one 1';",
    "none due, by a sum of penalties": "UPDATE documents SET chunk_count = -1000000000 WHERE doc_id = 'one 1';"
    + LOST.format("one 1", 0)
    + EXTRA.format("one 1", 1),
    "too many due for a sum": "UPDATE documents SET chunk_count = 9223372036854775807 WHERE doc_id = 'one 1';",
    "proven is not true, but 2": "UPDATE documents SET proven = 2 WHERE doc_id = 'one 1';",
    "vector lost": "DELETE FROM vectors_8 WHERE rowid = (SELECT chunk_id FROM chunks WHERE doc_id = 'one 1');",
}


@pytest.mark.parametrize("damage", SILENT)
@pytest.mark.parametrize("size", [1, 2, 100])
async def test_completeness_is_counted_exactly(damage: str, size: int, tmp_path: Path) -> None:
    """Whatever happens to chunks without a trigger that tells: what a scan calls damaged has no summary in a range.

    Nor has it one if as many chunks are lost elsewhere in the range as there are too many. Control: "nothing".
    """
    path = tmp_path / "s.db"
    async with OPENERS["vector"](path, create=True) as store:
        documents = [make_document(doc_id, "short") for doc_id in ("one 1", "one 2", "one 3", "two 4")]
        await put(store, *documents, make_document("several", "long enough for three chunks. " * 3))
        triggers = [name for (name,) in sql(path, "SELECT name FROM sqlite_schema WHERE type = 'trigger'")]
        counts = dict(sql(path, "SELECT doc_id, count(*) FROM chunks GROUP BY doc_id"))
        assert 1 == counts["one 1"]
        assert counts["several"] >= 3
        sql(path, *(f"DROP TRIGGER {name}" for name in triggers), *filter(None, SILENT[damage].split(";")))
        shown = dict(await scan(store))
        assert (damage in {"nothing", "of nobody"}) == all(view.intact for view in shown.values())
        async with store.open_ranges() as held:
            after = None
            found = {}
            while some := await held.ranges(after, size, 1):
                ((bound, digest),) = some
                part = dict(await listed(held, after, bound))
                assert digest.odd == [*part.values()].count("")
                found.update(part)
                after = bound
        assert found == {doc_id: summarize(view, store.traits) if view.intact else "" for doc_id, view in shown.items()}
