"""The vector store: chunks as a set, vectors that are really there, embedders that fail, nearest neighbours."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import apsw
import attrs
import pytest
import trio
import trio.testing
from sqlite_support import prepared, scan, sound, sql, summaries, whole
from store_calls import look, put, take_away, write

from trio_repair import (
    ContentDefinition,
    Document,
    EmbeddingIdentity,
    InvalidValue,
    Prepared,
    Presence,
    StoredDocument,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    Write,
    WriteStatus,
)
from trio_repair.abc import Chunk
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores._sqlite import CACHE_KB, Session, SqliteFile
from trio_repair.stores._thread import Call, CallAbandoned
from trio_repair.stores._vector_layout import VectorLayout, delete_vectors, load_sqlite_vec
from trio_repair.stores.sqlite_vector import open_sqlite_vector
from trio_repair.testing import make_document

LONG = " ".join(f"word{index}" for index in range(60))


@attrs.define
class Scripted:
    """An embedder whose answers are scripted; remembers how many texts each call had."""

    answer: Callable[[Sequence[str]], Sequence[Sequence[float]]]
    model: str = "scripted"
    dimension: int = 2
    calls: list[int] = attrs.field(factory=list)

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        await trio.lowlevel.checkpoint()
        self.calls.append(len(texts))
        return self.answer(texts)


def opened(path: Path, embedder: Any = None, chunker: Any = None, **settings: Any) -> Any:
    return open_sqlite_vector(
        path,
        embedder=HashingEmbedder(16) if embedder is None else embedder,
        chunker=WindowChunker(40, 10) if chunker is None else chunker,
        create=True,
        synchronous="normal",
        **settings,
    )


# A batch that cannot be written as a whole.


_POISON = "CREATE TRIGGER poison AFTER INSERT ON chunks WHEN NEW.doc_id = 'poison' BEGIN SELECT RAISE(ABORT, 'no'); END"
_MORE_CHUNKS = (
    "CREATE TRIGGER also AFTER INSERT ON chunks WHEN NEW.doc_id <> 'notes' AND NEW.ordinal = 0 BEGIN"
    " INSERT INTO chunks (doc_id, ordinal, start, text)"
    " SELECT 'notes', ifnull(max(ordinal), -1) + 1, 0, 'of ' || NEW.doc_id FROM chunks WHERE doc_id = 'notes'; END"
)


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("trigger", [_POISON, _MORE_CHUNKS])
async def test_one_by_one_each_document_finds_the_file_as_it_is(
    trigger: str, control: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document's rollback takes the table of vectors with it, and a trigger may take the next id of a chunk.

    Control: what was looked at when the transaction began is wrong by then.
    """
    path = tmp_path / "s.db"
    if control:
        begin = VectorLayout.begin
        monkeypatch.setattr(
            VectorLayout,
            "begin",
            lambda self, connection: 0 if connection in self._held else begin(self, connection),
        )
    documents = [make_document(doc_id, f"text of {doc_id}") for doc_id in ("poison", "a", "b")]
    poisoned = WriteStatus.REJECTED if trigger is _POISON else WriteStatus.LANDED
    async with opened(path) as store:
        sql(path, trigger)
        if control and trigger is _POISON:
            with pytest.raises(StoreUnavailable, match="SQLError"):
                await write(store, *documents)
            return
        answers = await write(store, *documents)
        if control:
            assert WriteStatus.REJECTED in [answer.status for answer in answers]
            return
        assert [poisoned, WriteStatus.LANDED, WriteStatus.LANDED] == [answer.status for answer in answers]
        for document, answer in zip(documents, answers, strict=True):
            seen = await look(store, document.doc_id)
            assert (seen.presence is Presence.LIVE) == (answer.status is WriteStatus.LANDED)
            assert seen.intact
    assert sound(path)


@pytest.mark.parametrize("seq", ["'1200'", "1200.0", "x'31323030'"])
async def test_the_last_id_of_a_chunk_may_be_any_kind_of_number(seq: str, tmp_path: Path) -> None:
    """SQLite's own table of last ids takes what foreign SQL puts there, and so do we."""
    path = tmp_path / "s.db"
    async with opened(path) as store:
        await put(store, make_document("a", LONG))
        sql(path, f"UPDATE sqlite_sequence SET seq = {seq} WHERE name = 'chunks'")
        await put(store, make_document("b", LONG))
        assert {("integer",)} == set(sql(path, "SELECT typeof(seq) FROM sqlite_sequence WHERE name = 'chunks'"))


# A document is a set of chunks.


async def test_rows_are_as_documented(tmp_path: Path) -> None:
    """Chunks are rows in order, each with a vector under its chunk_id; together they give the text."""
    path = tmp_path / "s.db"
    async with opened(path) as store:
        await put(store, make_document("a", LONG))
    chunks = sql(path, "SELECT chunk_id, ordinal, start, text FROM chunks ORDER BY ordinal")
    assert list(range(len(chunks))) == [ordinal for _, ordinal, _, _ in chunks]
    assert all(text == LONG[start : start + len(text)] for _, _, start, text in chunks)
    assert [(chunk_id,) for chunk_id, *_ in chunks] == sql(path, "SELECT rowid FROM vectors_16 ORDER BY rowid")
    assert [("feature-hashing-v1", 16, "windows-v1(size=40,overlap=10)", len(chunks))] == sql(
        path, "SELECT model, dimension, chunking, chunk_count FROM documents"
    )


async def test_stale_chunks_never_survive(tmp_path: Path) -> None:
    """Whatever is written over a document or takes it away, nothing of the chunks and vectors before is left."""
    path = tmp_path / "s.db"
    async with opened(path) as store:
        for document in (
            make_document("a", LONG),
            make_document("a", "short", number=2),
            make_document("a", LONG[::-1], number=3),
            Document.tombstone("a", number=4),
            make_document("a", "", number=5),
        ):
            await put(store, document, make_document("other", LONG, number=document.version.number))
            assert whole(path, "vector")
        await take_away(store, "a")
        await take_away(store, "other")
    assert [(0,)] == sql(path, "SELECT (SELECT count(*) FROM chunks) + (SELECT count(*) FROM vectors_16)")
    assert sound(path)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM chunks WHERE ordinal = 1",
        "DELETE FROM chunks",
        "DELETE FROM vectors_16 WHERE rowid = (SELECT max(chunk_id) FROM chunks)",
        "DELETE FROM vectors_16",
        "DROP TABLE vectors_16",
        "UPDATE chunks SET text = 'forged' WHERE ordinal = 1",
        "UPDATE chunks SET start = 0 WHERE ordinal = 1",
        "UPDATE chunks SET ordinal = 99 WHERE ordinal = 1",
        "UPDATE chunks SET doc_id = 'b' WHERE ordinal = 1",
        "INSERT INTO chunks (doc_id, ordinal, start, text) VALUES ('a', 99, 0, 'x')",
        "UPDATE documents SET chunk_count = chunk_count + 1",
        "DELETE FROM chunks WHERE ordinal = 1; INSERT INTO chunks (doc_id, ordinal, start, text) VALUES ('a', 1, 0, 'x')",
    ],
)
async def test_damage_is_seen_and_mended(damage: str, tmp_path: Path) -> None:
    """A chunk or vector that is lost, forged or too many makes the copy not intact, in observe and scan.

    The version stays what it was, the token moves, forged text is never read, and a rewrite leaves nothing odd behind.
    """
    path = tmp_path / "s.db"
    document = make_document("a", LONG)
    async with opened(path) as store:
        (before,) = await put(store, document)
        assert before.intact
        sql(path, damage)
        seen = await look(store, "a")
        assert not seen.intact
        assert document.version == seen.version
        assert seen.token != before.token
        assert [("a", seen)] == await scan(store)
        assert [("a", "", seen)] == await summaries(store)
        (answer,) = await store.read(["a"])
        if isinstance(answer, StoredDocument):
            assert document == answer.document
        (after,) = await put(store, document)
        assert after.intact
        assert ["a"] == [hit.doc_id for hit in await store.nearest("word7")]
        if "doc_id = 'b'" not in damage:
            assert whole(path, "vector")
    assert sound(path)


async def test_a_vector_without_its_chunk_goes_with_its_document(tmp_path: Path) -> None:
    """A vector whose chunk row was lost is deleted when its document is replaced or removed."""
    path = tmp_path / "s.db"
    async with opened(path) as store:
        for act in (put, take_away):
            await put(store, make_document("a", LONG))
            sql(path, "DELETE FROM chunks WHERE ordinal = 1")
            await (put(store, make_document("a", LONG)) if act is put else take_away(store, "a"))
            assert whole(path, "vector")


async def test_delete_by_plain_sql(tmp_path: Path) -> None:
    """``deleted = 1`` makes a tombstone, whose text cannot be found any more."""
    path = tmp_path / "s.db"
    async with opened(path) as store:
        await put(store, make_document("a", LONG))
        sql(path, "UPDATE documents SET deleted = 1, number = 2")
        seen = await look(store, "a")
        assert (Presence.TOMBSTONE, None) == (seen.presence, seen.embedding)
        assert [] == list(await store.nearest("word7"))
        assert ["a"] == list(await store.tombstones())


async def test_metadata_counts_only_as_content(tmp_path: Path) -> None:
    """An edit of metadata by plain SQL is damage where metadata is content, and no concern elsewhere."""
    titled = ContentDefinition(metadata_keys=("title",))
    for content, intact in ((ContentDefinition(), True), (titled, False)):
        path = tmp_path / f"{intact}.db"
        async with opened(path, content=content) as store:
            await put(store, make_document("a", LONG, metadata={"title": "x"}, content=content))
            sql(path, """UPDATE documents SET metadata = '{"title": "y"}'""")
            assert intact == (await look(store, "a")).intact
            assert intact == isinstance((await store.read(["a"]))[0], StoredDocument)


# Embedding identities.


async def test_another_embedder_is_drift_that_a_write_mends(tmp_path: Path) -> None:
    """A file of another model, dimension or chunking opens, shows what it holds, and takes the new identity."""
    path = tmp_path / "s.db"
    document = make_document("a", LONG)
    others = [
        (HashingEmbedder(16), WindowChunker(40, 10)),
        (HashingEmbedder(32), WindowChunker(40, 10)),
        (HashingEmbedder(32), WindowChunker(60, 0)),
        (Scripted(lambda texts: [[1.0] * 32] * len(texts), dimension=32), WindowChunker(60, 0)),
    ]
    held: EmbeddingIdentity | None = None
    for embedder, chunker in others:
        async with opened(path, embedder, chunker) as store:
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
            assert after.intact
            assert store.traits.embedding == held
            assert ["a"] == [hit.doc_id for hit in await store.nearest("word7")]
        assert whole(path, "vector")
    assert sound(path)


async def test_nearest_compares_one_identity_only(tmp_path: Path) -> None:
    """Vectors of another model of the same dimension are not mixed into the results."""
    path = tmp_path / "s.db"
    old = Scripted(lambda texts: [[1.0, 0.0]] * len(texts), model="old")
    new = Scripted(lambda texts: [[0.0, 1.0]] * len(texts), model="new")
    async with opened(path, old) as store:
        await put(store, *(make_document(f"old {index}", "text") for index in range(5)))
    async with opened(path, new) as store:
        await put(store, make_document("new", "text"))
        assert [("new", 0.0)] == [(hit.doc_id, hit.distance) for hit in await store.nearest("x")]


# Nearest neighbours.


async def test_nearest_agrees_with_comparing_them_all(tmp_path: Path) -> None:
    """The nearest documents are those that a comparison with every vector gives, each once, nearest first."""
    rng = random.Random(3)
    points = {f"{index}": [rng.random(), rng.random()] for index in range(300)}
    embedder = Scripted(lambda texts: [points.get(text, [0.5, 0.5]) for text in texts])
    async with opened(tmp_path / "s.db", embedder, WindowChunker(1000, 0)) as store:
        for start in range(0, 300, 100):
            await put(store, *(make_document(doc_id, doc_id) for doc_id in list(points)[start : start + 100]))
        wanted = sorted(points, key=lambda doc_id: sum((value - 0.5) ** 2 for value in points[doc_id]))
        for limit in (1, 10, 299, 300, 1000):
            hits = await store.nearest("query", limit)
            assert wanted[:limit] == [hit.doc_id for hit in hits]
        assert sorted(hit.distance for hit in hits) == [hit.distance for hit in hits]


async def test_nearest_gives_the_passage(tmp_path: Path) -> None:
    """A hit names the document once, by its nearest chunk, with where that starts; its text is not in the repr."""
    text = "alpha beta gamma delta. " * 3 + "needle haystack " * 3 + "epsilon zeta eta theta. " * 3
    async with opened(tmp_path / "s.db") as store:
        await put(store, make_document("a", text), make_document("b", "alpha beta"))
        hits = await store.nearest("needle haystack", limit=2)
        assert ["a", "b"] == [hit.doc_id for hit in hits]
        assert "needle" in hits[0].text
        assert text[hits[0].start :].startswith(hits[0].text)
        assert "needle" not in repr(hits[0])
        for limit in (0, 4097, True):
            with pytest.raises(InvalidValue, match="limit"):
                await store.nearest("x", limit)


async def test_many_chunks_of_one_document_hide_no_other(tmp_path: Path) -> None:
    """A document whose chunks fill the first ranks leaves room for the others."""
    embedder = Scripted(lambda texts: [[0.0, 1.0] if "far" in text else [1.0, 0.0] for text in texts])
    async with opened(tmp_path / "s.db", embedder, WindowChunker(10, 0)) as store:
        await put(store, make_document("near", "near " * 400), make_document("b", "far"), make_document("c", "far"))
        assert ["near", "b", "c"] == [hit.doc_id for hit in await store.nearest("near", 3)]
        assert 3 == len(await store.nearest("near", 100))


# Embedders and chunkers that fail.

POISON = "poison"


def raising(error: Exception) -> Callable[[Sequence[str]], Sequence[Sequence[float]]]:
    def answer(texts: Sequence[str]) -> Sequence[Sequence[float]]:
        if any(POISON in text for text in texts):
            raise error
        return [[1.0, 0.0]] * len(texts)

    return answer


def spoiling(vector: Any) -> Callable[[Sequence[str]], Sequence[Any]]:
    return lambda texts: [vector if POISON in text else [1.0, 0.0] for text in texts]


@pytest.mark.parametrize(
    ("answer", "kind", "problem"),
    [
        (raising(ValueError("SECRET")), StoreRejected, "raised ValueError"),
        (raising(TypeError("SECRET")), StoreRejected, "raised TypeError"),
        (raising(ConnectionError("SECRET")), StoreUnavailable, "raised ConnectionError"),
        (raising(ExceptionGroup("SECRET", [OSError()])), StoreUnavailable, "raised ExceptionGroup"),
        (lambda texts: [[1.0, 0.0] for text in texts if POISON not in text], StoreRejected, "gave 0 vectors for 1"),
        (spoiling([1.0]), StoreRejected, "gave a vector of 1 numbers, not of 2"),
        (spoiling([1.0, 2.0, 3.0]), StoreRejected, "gave a vector of 3 numbers, not of 2"),
        (spoiling([1.0, float("nan")]), StoreRejected, "gave a vector with NaN or infinity"),
        (spoiling([float("inf"), -float("inf")]), StoreRejected, "gave a vector with NaN or infinity"),
        (spoiling([1e300, 0.0]), StoreRejected, "gave a vector with NaN or infinity"),
        (spoiling(["SECRET", "x"]), StoreRejected, "gave a vector that is not a sequence of numbers"),
        (spoiling(None), StoreRejected, "gave a vector that is not a sequence of numbers"),
    ],
)
async def test_i10_one_poisonous_text_fails_alone(
    answer: Callable[[Sequence[str]], Any], kind: type[StoreError], problem: str, tmp_path: Path
) -> None:
    """I10: of a batch, the document that the embedder cannot take fails alone, with an error that names the embedder."""
    embedder = Scripted(answer)
    async with opened(tmp_path / "s.db", embedder) as store:
        documents = [make_document(f"{index}", f"text {index}") for index in range(20)]
        documents[7] = make_document("bad", f"{'fine ' * 20}{POISON}")
        answers = await store.prepare(documents)
        error = answers[7]
        assert isinstance(error, kind)
        assert "bad" == error.doc_id
        assert f"the embedder 'scripted' {problem}" in str(error)
        assert "SECRET" not in f"{error!r}{error.__cause__!r}"
        assert all(isinstance(one, Prepared) for index, one in enumerate(answers) if index != 7)
        assert len(embedder.calls) < 20, "it was asked for each text singly"
        assert 0 == await store.count()


async def test_an_embedder_that_is_down_is_not_asked_for_every_text(tmp_path: Path) -> None:
    """If nothing succeeds, the rest is not tried, and every document may be tried again later."""

    def fail(_texts: Sequence[str]) -> Sequence[Sequence[float]]:
        raise ConnectionError

    embedder = Scripted(fail)
    async with opened(tmp_path / "s.db", embedder) as store:
        answers = await store.prepare([make_document(f"{index}", "text") for index in range(200)])
        assert all(isinstance(answer, StoreUnavailable) for answer in answers)
        assert len(embedder.calls) < 20
        with pytest.raises(StoreUnavailable, match="the embedder 'scripted' raised ConnectionError"):
            await store.nearest("x")


async def test_an_embedder_that_hangs_is_cancelled(tmp_path: Path) -> None:
    """A hanging embedder holds up nobody but its caller, who can be cancelled; nothing is written."""

    class Hanging(Scripted):
        async def embed(self, _texts: Sequence[str]) -> Sequence[Sequence[float]]:
            await trio.sleep_forever()
            raise AssertionError

    async with opened(tmp_path / "s.db", Hanging(lambda _texts: [])) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.prepare, [make_document("a", "text")])
            await trio.testing.wait_all_tasks_blocked()
            assert (await look(store, "a")).presence is Presence.ABSENT
            nursery.cancel_scope.cancel()
        assert 0 == await store.count()


async def test_texts_come_in_batches(tmp_path: Path) -> None:
    """A call to the embedder has at most 128 texts, and a batch of small documents needs few calls."""
    embedder = Scripted(lambda texts: [[1.0, 0.0]] * len(texts))
    async with opened(tmp_path / "s.db", embedder) as store:
        await store.prepare([make_document(f"{index}", f"text {index}") for index in range(200)])
        assert [128, 72] == embedder.calls
        await store.prepare([Document.tombstone("a", number=1)])
        assert [128, 72] == embedder.calls


@attrs.define
class LikesFew(Scripted):
    """It says how many texts it likes to be given."""

    texts_per_call: Any = 3


async def test_an_embedder_says_how_many_texts_it_takes(tmp_path: Path) -> None:
    """No call has more than that; what is no such number is refused before anything is opened."""
    embedder = LikesFew(lambda texts: [[1.0, 0.0]] * len(texts))
    async with opened(tmp_path / "s.db", embedder) as store:
        await store.prepare([make_document(f"{index}", f"text {index}") for index in range(8)])
    assert [3, 3, 2] == embedder.calls
    for wrong in (0, -1, True, 2.5, "3", None):
        with pytest.raises(InvalidValue, match="texts_per_call must be an int of at least 1"):
            opened(tmp_path / "t.db", LikesFew(lambda _texts: [], texts_per_call=wrong))
    assert not (tmp_path / "t.db").exists()


async def test_what_answers_to_every_name_has_not_said_how_many_texts(tmp_path: Path) -> None:
    """A proxy of an embedder that passes on every attribute is given as many as one that says nothing."""
    inner = LikesFew(lambda texts: [[1.0, 0.0]] * len(texts))

    class Proxy:
        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

    async with opened(tmp_path / "s.db", Proxy()) as store:
        await store.prepare([make_document(f"{index}", f"text {index}") for index in range(130)])
    assert [128, 2] == inner.calls


@attrs.define
class ScriptedChunker:
    answer: Callable[[str], Any]
    identity: str = "scripted"

    def chunk(self, text: str) -> Sequence[Chunk]:
        return self.answer(text)  # type: ignore[no-any-return]  # what a test wants, wrong answers too


def refuse(_text: str) -> Any:
    raise LookupError("SECRET")


class Lookalike(str):
    """Says of every text that it is the same."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda _text: [], "do not cover the text"),
        (lambda text: [Chunk(0, text[:-1])], "do not cover the text"),
        (lambda text: [Chunk(1, text[1:])], "do not cover the text"),
        (lambda text: [Chunk(0, text[:2]), Chunk(3, text[3:])], "do not cover the text"),
        (lambda text: [Chunk(0, text.upper())], "do not cover the text"),
        (lambda text: [Chunk(0, Lookalike(text[:-1]))], "do not cover the text"),
        (lambda text: [Chunk(0, ANY)], "raised"),
        (lambda text: [Chunk(ANY, text)], "raised"),
        (lambda text: {0: Chunk(0, text)}, "raised"),
        (refuse, "raised LookupError"),
    ],
)
async def test_chunks_that_lose_text_are_refused(answer: Callable[[str], Any], problem: str, tmp_path: Path) -> None:
    """What a chunker gives must give the text back; otherwise nothing is written, and the chunker is named."""
    async with opened(tmp_path / "s.db", chunker=ScriptedChunker(answer)) as store:
        (error,) = await store.prepare([make_document("a", "some text")])
        assert isinstance(error, StoreRejected)
        assert f"the chunker 'scripted' {problem}" in f"{error}".replace("gave chunks that ", "")
        assert "SECRET" not in f"{error!r}{error.__cause__!r}"


@pytest.mark.parametrize(("model", "dimension"), [("", 2), ("m", 0), ("m", 8193), ("m", True), ("m", "2"), (None, 2)])
def test_embedders_that_mean_nothing(model: Any, dimension: Any, tmp_path: Path) -> None:
    """An embedder without a name or with an impossible dimension is refused before a file is looked at."""
    with pytest.raises(InvalidValue, match=r"embedder: its (model|dimension) must be"):
        opened(tmp_path / "s.db", Scripted(lambda _texts: [], model=model, dimension=dimension))


@pytest.mark.parametrize(
    ("embedder", "chunker", "problem"),
    [
        (Scripted(lambda _texts: [], model="m\ud800"), None, "embedder: its model holds a lone surrogate"),
        (None, ScriptedChunker(lambda _text: [], "c\ud800"), "chunker: its identity holds a lone surrogate"),
        (None, ScriptedChunker(lambda _text: [], ("c",)), "chunker: its identity must be a str, not tuple"),
    ],
)
def test_identities_that_cannot_be_stored(embedder: Any, chunker: Any, problem: str, tmp_path: Path) -> None:
    """What says how vectors were made must be text; it is refused before a file is looked at."""
    with pytest.raises(InvalidValue, match=problem):
        opened(tmp_path / "s.db", embedder, chunker)


async def test_long_vectors(tmp_path: Path) -> None:
    """Vectors of the largest dimension are kept and found."""
    embedder = Scripted(lambda texts: [[1.0] + [0.0] * 8191] * len(texts), dimension=8192)
    async with opened(tmp_path / "s.db", embedder) as store:
        (seen,) = await put(store, make_document("a", "text"))
        assert seen.intact
        assert ["a"] == [hit.doc_id for hit in await store.nearest("x")]


# Interrupts.


@pytest.mark.parametrize("count", [1, 2, 256, 257, 1024])
def test_vectors_are_deleted_one_by_one(count: int) -> None:
    """Each is looked up, however many there are in a statement; the control, IN, reads the whole table."""
    connection = apsw.Connection(":memory:")
    load_sqlite_vec(connection)
    connection.execute("CREATE VIRTUAL TABLE vectors_2 USING vec0 (identity TEXT PARTITION KEY, embedding FLOAT[2])")

    def scans(sql: str, bindings: Any) -> list[str]:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}", bindings)
        return [detail for *_, detail in plan if "vectors_2 VIRTUAL TABLE" in detail]

    ours = scans(delete_vectors(2, count), [*range(count)])
    assert count == len(ours)
    assert all("INDEX 1:2" in detail for detail in ours)
    (control,) = scans("DELETE FROM vectors_2 WHERE rowid IN (SELECT value FROM json_each(?))", ("[1]",))
    assert "INDEX 0:1" in control


def test_interrupts_do_not_reach_sqlite_vec(tmp_path: Path) -> None:
    """While sqlite-vec writes, neither an interrupt nor the look at the flag stops it; control: elsewhere both do."""
    file = SqliteFile(
        path=tmp_path / "s.db",
        store="vector",
        kind="sqlite-vector",
        content=ContentDefinition(),
        schema="",
        create=False,
        synchronous="normal",
    )
    session = Session(file)
    session._active = connection = apsw.Connection(":memory:")
    session.call = call = Call(lambda _call: None, (), None)
    call.abandon()
    count_up = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 1000) SELECT sum(pause(x)) FROM n"

    def pause(x: int) -> int:
        if x == 500:
            session.interrupt()
        return x

    connection.create_scalar_function("pause", pause)
    assert session._given_up()
    with pytest.raises(apsw.InterruptError):
        connection.execute(count_up).fetchall()
    with pytest.raises(CallAbandoned), session.uninterrupted():
        raise AssertionError("it began although nobody waits")
    session.call = Call(lambda _call: None, (), None)
    with session.uninterrupted():
        session.call.abandon()
        assert not session._given_up()
        assert [(500500,)] == connection.execute(count_up).fetchall()
    assert session._given_up()
    session._active = None
    session.interrupt()
    connection.close()


async def test_whole_documents_under_random_cancellation(tmp_path: Path) -> None:
    """Batches of replaced documents that are cancelled at random leave whole documents and no stray row."""
    rng = random.Random(4)
    path = tmp_path / "s.db"
    landed = 0
    async with opened(path) as store:
        for number in range(60):
            documents = [
                make_document(f"{index}", f"{number} " * rng.randrange(80), number=number) for index in range(5)
            ]
            ready = await prepared(store, documents)
            seen = [await look(store, document.doc_id) for document in documents]
            # Sometimes no time and sometimes enough, so that both ends are met on any machine.
            with trio.move_on_after((0, math.inf, rng.random() * 0.004, rng.random() * 0.02)[number % 4]) as scope:
                await store.write(
                    [Write(prepared=one, token=held.token) for one, held in zip(ready, seen, strict=True)]
                )
            landed += not scope.cancelled_caught
        assert 0 < landed < 60
    assert whole(path, "vector")
    assert sound(path)


@pytest.mark.parametrize(("dimension", "kib"), [(16, 192), (256, 3072), (8192, 32 * 1024)])
async def test_the_page_cache_fits_the_vectors(tmp_path: Path, dimension: int, kib: int) -> None:
    """Three blobs of 1,024 vectors, so that a write does not read one anew for each vector; and not without end."""
    async with open_sqlite_vector(
        tmp_path / "v.db", embedder=HashingEmbedder(dimension), chunker=WindowChunker(), create=True
    ) as store:
        assert -(CACHE_KB + kib) == await store._run(lambda session: session.main.execute("PRAGMA cache_size").get)
