"""The rows of the LanceDB store: chunks as a set, damage, hostile ids, other embedders, nearest neighbours, its size."""

from __future__ import annotations

import datetime as dt
import importlib.util
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

if importlib.util.find_spec("lancedb") is None and os.environ.get("CI") != "true":
    pytest.skip("lancedb is not installed; pip install -e '.[lancedb]'", allow_module_level=True)

from lancedb_support import open_store, rows_of, table_of
from store_calls import look, put, scan, take_away

from trio_repair import Document, InvalidValue, Presence, StoredDocument, StoreRejected
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores import _lancedb
from trio_repair.testing import make_document

LONG = " ".join(f"word{index}" for index in range(60))


# Chunks.


async def test_rows_are_as_documented(tmp_path: Path) -> None:
    """A row for each chunk, in order, each with a vector, and one row for a tombstone."""
    path = tmp_path / "store"
    async with open_store(path, create=True) as store:
        await put(store, make_document("a", LONG, number=4), Document.tombstone("b", number=5))
    rows = rows_of(path, "doc_id", "ordinal", "chunk_count", "start", "text", "number", "deleted", "vector_16")
    chunks, (grave,) = [row for row in rows if row[0] == "a"], [row for row in rows if row[0] == "b"]
    assert len(chunks) > 5
    assert list(range(len(chunks))) == sorted(row[1] for row in chunks)
    assert all((len(chunks), 4, False) == (row[2], row[5], row[6]) for row in chunks)
    assert all(row[4] == LONG[row[3] : row[3] + len(row[4])] for row in chunks)
    assert all(16 == len(row[7]) for row in chunks)
    assert ("b", 0, 0, None, None, 5, True, None) == grave


async def test_stale_chunks_never_survive(tmp_path: Path) -> None:
    """Whatever is written over a document or takes it away, nothing of the chunks before is left."""
    path = tmp_path / "store"
    async with open_store(path, create=True) as store:
        for document in (
            make_document("a", LONG),
            make_document("a", "short", number=2),
            make_document("a", LONG[::-1], number=3),
            Document.tombstone("a", number=4),
            make_document("a", "", number=5),
        ):
            await put(store, document, make_document("other", LONG, number=document.version.number))
            held = rows_of(path, "doc_id", "number", "chunk_count")
            for doc_id in ("a", "other"):
                own = [row for row in held if row[0] == doc_id]
                assert {(doc_id, document.version.number, own[0][2])} == set(own)
                assert max(1, own[0][2]) == len(own)
            assert 2 == await store.count()
        await take_away(store, "a")
        await take_away(store, "other")
        assert [] == rows_of(path, "doc_id")


async def test_others_who_read_never_see_half(tmp_path: Path) -> None:
    """In each version of the table all documents of a batch are of one write, whole, also while they grow and shrink."""
    path = tmp_path / "store"
    async with open_store(path, create=True) as store:
        for number in range(1, 7):
            text = f"{number} " * (20 if number % 2 else 200)
            await put(store, *(make_document(f"{index}", text, number=number) for index in range(20)))
    table = table_of(path)
    seen = set()
    for version in [one["version"] for one in table.list_versions()]:
        table.checkout(version)
        if table.count_rows():
            found = table.search().select(["doc_id", "ordinal", "chunk_count", "number"]).limit(None).to_arrow()
            rows = [tuple(row.values()) for row in found.to_pylist()]
            ((number, count),) = {(row[3], row[2]) for row in rows}
            assert {(f"{index}", ordinal) for index in range(20) for ordinal in range(count)} == {
                row[:2] for row in rows
            }
            assert 20 * count == len(rows)
            seen.add(number)
    assert set(range(1, 7)) == seen


HOSTILE = [
    *(
        "a'b",
        "a''b",
        "'",
        "\\",
        "a\\'b",
        "'; DROP TABLE documents; --",
        "' OR '1'='1",
        "%",
        "_",
        "a\nb",
        "\x01",
        "\x7f",
    ),
    *('a"b', "`a`", "${x}", "{}", "é", "e\u0301", "\U0001f600", "\u202e", " a", "a ", "A", "a", "NULL", "'" * 2048),
]


async def test_hostile_ids(tmp_path: Path) -> None:
    """Each touches its own rows only, whether it is looked at, written, shortened, or removed, alone or with others."""
    async with open_store(tmp_path / "store", create=True) as store:
        await put(store, *(make_document(doc_id, LONG) for doc_id in HOSTILE))
        for number, doc_id in enumerate(HOSTILE, 2):
            await put(store, make_document(doc_id, "short", number=number))
        numbers = {doc_id: number for number, doc_id in enumerate(HOSTILE, 2)}
        assert numbers == {doc_id: view.version.number for doc_id, view in await scan(store)}  # type: ignore[union-attr]  # each is held
        for left, doc_id in reversed(list(enumerate(HOSTILE))):
            await take_away(store, doc_id)
            assert sorted(HOSTILE[:left]) == [found for found, _ in await scan(store)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: table.delete("ordinal = 1"),
        lambda table: table.delete("ordinal = 0"),
        lambda table: table.update(where="ordinal = 1", values={"ordinal": 99}),
        lambda table: table.update(where="ordinal = 1", values={"revision": 99}),
        lambda table: table.update(where="ordinal = 1", values={"number": 99}),
        lambda table: table.update(where="ordinal = 1", values={"chunk_count": 1}),
        lambda table: table.update(where="ordinal = 1", values_sql={"model": "NULL"}),
        lambda table: table.update(where="ordinal = 1", values_sql={"vector_16": "NULL"}),
        lambda table: table.update(values_sql={"chunk_count": "chunk_count + 1"}),
        lambda table: table.update(values={"number": -5}),
        lambda table: table.drop_columns(["vector_16"]),
        lambda table: table.add(table.search().where("ordinal = 1").limit(None).to_arrow()),
    ],
)
async def test_damage_is_seen_and_mended(tmp_path: Path, damage: Callable[[Any], object]) -> None:
    """A chunk or vector that is lost or too many makes the copy not intact; a rewrite leaves nothing odd behind."""
    path = tmp_path / "store"
    document = make_document("a", LONG)
    async with open_store(path, create=True) as store:
        (before,) = await put(store, document)
        assert before.intact
    damage(table_of(path))
    async with open_store(path) as store:
        seen = await look(store, "a")
        assert (Presence.LIVE, False) == (seen.presence, seen.intact)
        assert seen.token != before.token
        assert [("a", seen)] == await scan(store)
        (answer,) = await store.read(["a"])
        assert document == answer.document if isinstance(answer, StoredDocument) else isinstance(answer, StoreRejected)
        (after,) = await put(store, document)
        assert after.intact
        assert after == await look(store, "a")
        assert ["a"] == [hit.doc_id for hit in await store.nearest("word7")]
    counts = sorted(rows_of(path, "ordinal", "chunk_count"))
    assert [(index, len(counts)) for index in range(len(counts))] == counts


async def test_forged_text_is_never_read(tmp_path: Path) -> None:
    """Its digest says so."""
    path = tmp_path / "store"
    async with open_store(path, create=True) as store:
        await put(store, make_document("a", LONG))
    table_of(path).update(where="ordinal = 1", values={"text": "forged"})
    async with open_store(path) as store:
        (answer,) = await store.read(["a"])
        assert isinstance(answer, StoreRejected)
        assert "forged" not in str(answer)


# Embedding identities, and nearest neighbours.


async def test_another_embedder_is_drift_that_a_write_mends(tmp_path: Path) -> None:
    """A table of another dimension or chunking opens, shows what it holds, and takes the new identity."""
    path = tmp_path / "store"
    document = make_document("a", LONG)
    held = None
    for embedder, chunker in [
        (HashingEmbedder(16), WindowChunker(40, 10)),
        (HashingEmbedder(32), WindowChunker(40, 10)),
        (HashingEmbedder(32), WindowChunker(60, 0)),
        (HashingEmbedder(16), WindowChunker(60, 0)),
    ]:
        async with open_store(path, embedder, chunker, create=True) as store:
            if held is not None:
                seen = await look(store, "a")
                assert seen.intact
                assert held == seen.embedding != store.traits.embedding
                assert [("a", seen)] == await scan(store)
                (answer,) = await store.read(["a"])
                assert isinstance(answer, StoredDocument)
                assert document == answer.document
                assert [] == list(await store.nearest("word7"))
            (after,) = await put(store, document)
            held = after.embedding
            assert store.traits.embedding == held
            assert after == await look(store, "a")
            assert ["a"] == [hit.doc_id for hit in await store.nearest("word7")]


@attrs.define
class Points:
    """An embedder of texts that name points."""

    points: dict[str, list[float]]
    model: str = "points' model"
    dimension: int = 2

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        await trio.lowlevel.checkpoint()
        return [self.points.get(text.split(" ")[0], [0.5, 0.5]) for text in texts]


async def test_nearest_agrees_with_comparing_them_all(tmp_path: Path) -> None:
    """The nearest live documents are those that a comparison with every vector gives, each once, nearest first."""
    rng = random.Random(3)
    points = {f"{index}": [rng.random(), rng.random()] for index in range(300)}
    async with open_store(tmp_path / "store", Points(points), WindowChunker(1000, 0), create=True) as store:
        assert [] == list(await store.nearest("query"))
        await put(store, *(make_document(doc_id, doc_id) for doc_id in points))
        await put(store, Document.tombstone("0", number=2))
        squares = {doc_id: sum((one - 0.5) ** 2 for one in point) for doc_id, point in points.items() if doc_id != "0"}
        wanted = sorted(squares, key=lambda doc_id: squares[doc_id])
        for limit in (1, 10, 299, 300, 1000):
            hits = await store.nearest("query", limit)
            assert wanted[:limit] == [hit.doc_id for hit in hits]
        assert [pytest.approx(squares[doc_id] ** 0.5, abs=1e-6) for doc_id in wanted] == [hit.distance for hit in hits]
        for limit in (0, 4097, True):
            with pytest.raises(InvalidValue, match="limit"):
                await store.nearest("x", limit)


async def test_many_chunks_of_one_document_hide_no_other(tmp_path: Path) -> None:
    """A document whose chunks fill the first ranks leaves room for the others; a hit tells its passage, not in repr."""
    async with open_store(tmp_path / "store", Points({"far": [9.0, 9.0]}), WindowChunker(10, 0), create=True) as store:
        await put(store, make_document("near", "near " * 400), make_document("b", "far"), make_document("c", "far"))
        hits = await store.nearest("near", 3)
        assert ["near", "b", "c"] == [hit.doc_id for hit in hits]
        assert "far" == hits[1].text
        assert "far" not in repr(hits[1])


# The size on the disk.


def files_in(path: Path) -> int:
    return sum(1 for one in path.rglob("*") if one.is_file())


@pytest.mark.parametrize("tidied", [True, False], ids=["tidied", "control"])
async def test_many_commits_leave_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tidied: bool) -> None:
    """Old versions and small files go, now and then; nothing that is held changes. Control: without, they pile up."""
    monkeypatch.setattr(_lancedb, "_TIDY_COMMITS", 8 if tidied else 1_000_000)
    monkeypatch.setattr(_lancedb, "_KEPT", dt.timedelta(milliseconds=1))
    path = tmp_path / "store"
    async with open_store(path, create=True) as store:
        await put(store, *(make_document(f"{index}", LONG) for index in range(20)))
        counts = []
        for number in range(2, 42):
            views = await put(
                store, *(make_document(f"{index}", f"{LONG} {number}", number=number) for index in range(9))
            )
            assert views == list(await store.observe([f"{index}" for index in range(9)]))  # behind the tidying
            counts.append(files_in(path))
        assert tidied == (max(counts[20:]) <= max(counts[:20])), counts
        assert 20 == len(await scan(store)) == await store.count()


async def test_a_snapshot_is_not_tidied_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan that has begun to read goes on with what it began, however much is written meanwhile."""
    monkeypatch.setattr(_lancedb, "_TIDY_COMMITS", 1)
    monkeypatch.setattr(_lancedb, "_KEPT", dt.timedelta(milliseconds=1))
    async with open_store(tmp_path / "store", create=True) as store:
        await put(store, *(make_document(f"{index:04}", "text") for index in range(3000)))
        async with store.open_scan() as pages:
            for number in range(2, 6):
                await put(store, *(make_document(f"{index:04}", f"{number}", number=number) for index in range(3000)))
            got = [entry async for page in pages for entry in page]
        assert [f"{index:04}" for index in range(3000)] == [doc_id for doc_id, _ in got]
        assert {1} == {view.version.number for _, view in got}  # type: ignore[union-attr]  # each is held
