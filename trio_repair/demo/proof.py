"""Whether three SQLite store files agree, read with the standard library's sqlite3 and nothing else.

No line of the engine or of the stores has a part in this: what is proved here does not rest on the code that is
being proved. sqlite-vec's and FTS5's own tables are ordinary tables and are read as such.

While stores are open, read in a process of its own: two copies of SQLite in one process (the standard library's, and
the one that the stores bundle) drop each other's POSIX locks (https://www.sqlite.org/howtocorrupt.html, 2.2.1).
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import attrs


class Held(NamedTuple):
    """What one file holds of a document."""

    number: int | None
    digest: str
    """SHA-256 of the text that is there, not of what the file says it is; "" for a tombstone."""
    deleted: bool


@attrs.frozen
class Disagreement:
    """Something that does not hold."""

    doc_id: str | None
    """None if it is not about one document."""
    problem: str


@attrs.frozen(kw_only=True)
class Proof:
    """What the files hold, and where they disagree."""

    text: Mapping[str, Held] = attrs.field(repr=False)
    """Live documents and tombstones of the text store."""
    live: int
    tombstones: int
    chunks: int
    vectors: int
    cached: int
    disagreements: tuple[Disagreement, ...]
    """Empty if and only if every document is proved; at most one for each document and file."""

    @property
    def holds(self) -> bool:
        """True if all files agree on every document."""
        return not self.disagreements


class _VectorCopy(NamedTuple):
    held: Held
    embedding: tuple[str | None, int | None, str | None]
    problem: str | None
    """What is wrong with the copy taken by itself."""


def prove(*, text: Path, vector: Path, cache: Path, embedding: tuple[str, int, str]) -> Proof:
    """Compare the three files, document by document.

    A live document must be in text and vector store at one version, be indexed for full-text search, give the digest
    that stands beside it when its text, or what its chunks are put together to, is hashed, have all its chunks and a
    vector for each of them, and be embedded as it should be. A tombstone must be in both. A cached copy must equal
    the live one. Content is text alone, as in every demo.

    Args:
        text: the text store's file.
        vector: the vector store's file.
        cache: the cache's file.
        embedding: model, dimension and chunking that every live document should have.

    Raises:
        sqlite3.Error: a file cannot be read.
    """
    found: list[Disagreement] = []

    def note(doc_id: str | None, problem: str | None) -> None:
        if problem is not None:
            found.append(Disagreement(doc_id, problem))

    with _reading(text) as connection:
        in_text: dict[str, Held] = {}
        for doc_id, held, problem in _plain_copies(connection, _TEXT_ROWS):
            in_text[doc_id] = held
            note(doc_id, problem and f"text: {problem}")
    with _reading(vector) as connection:
        in_vector = dict(_vector_copies(connection))
        chunks = int(connection.execute("SELECT count(*) FROM chunks").fetchone()[0])
        vectors = sum(len(searchable) for searchable in _vectors(connection).values())
    for doc_id in sorted(in_text.keys() | in_vector.keys()):
        note(doc_id, _critical_problem(in_text.get(doc_id), in_vector.get(doc_id), embedding))
    if chunks != vectors:
        note(None, f"vector: {vectors} vectors for {chunks} chunks")
    cached = 0
    with _reading(cache) as connection:
        for doc_id, held, problem in _plain_copies(connection, _CACHE_ROWS):
            cached += 1
            note(doc_id, _cache_problem(held, problem, in_text.get(doc_id)))
    return Proof(
        text=in_text,
        live=sum(not held.deleted for held in in_text.values()),
        tombstones=sum(held.deleted for held in in_text.values()),
        chunks=chunks,
        vectors=vectors,
        cached=cached,
        disagreements=tuple(found),
    )


def fingerprint(*files: Path) -> str:
    """SHA-256 over every row of every ordinary table: equal if and only if nothing was written in between.

    Raises:
        sqlite3.Error: a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        with _reading(file) as connection:
            for table in _ordinary_tables(connection):
                digest.update(f"\n{table}\n".encode())
                for row in connection.execute(f'SELECT * FROM "{table}"'):
                    digest.update(repr(row).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[sqlite3.Connection]:
    """One snapshot of a file, which cannot be written through this connection."""
    with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        connection.execute("BEGIN")
        yield connection


def _ordinary_tables(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name"
    )
    return [name for (name,) in rows]


_TEXT_ROWS: Final = (
    "SELECT d.doc_id, d.number, d.digest, d.deleted, d.text, f.id IS NOT NULL"
    " FROM documents AS d LEFT JOIN documents_fts_docsize AS f ON f.id = d.id ORDER BY d.doc_id"
)

_CACHE_ROWS: Final = "SELECT doc_id, number, digest, 0, text, 1 FROM documents ORDER BY doc_id"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plain_copies(connection: sqlite3.Connection, rows: str) -> Iterator[tuple[str, Held, str | None]]:
    """Each document of a table that has the text in its rows, and what is wrong with the copy taken by itself."""
    for doc_id, number, digest, deleted, text, indexed in connection.execute(rows):
        if deleted:
            yield doc_id, Held(number, "", deleted=True), "still indexed although it is deleted" if indexed else None
            continue
        actual = _sha256(text)
        problem = None
        if actual != digest:
            problem = "the text is not what its digest says"
        elif not indexed:
            problem = "not in the full-text index"
        yield doc_id, Held(number, actual, deleted=False), problem


def _vectors(connection: sqlite3.Connection) -> dict[int, set[int]]:
    """By dimension, the chunk ids that have a vector which a search can find."""
    names = [name for name in _ordinary_tables(connection) if name.startswith("vectors_") and name.endswith("_rowids")]
    found: dict[int, set[int]] = {}
    for name in names:
        dimension = int(name.removeprefix("vectors_").removesuffix("_rowids"))
        valid = dict(connection.execute(f"SELECT chunk_id, validity FROM vectors_{dimension}_chunks"))
        rows = connection.execute(f"SELECT rowid, chunk_id, chunk_offset FROM {name}")
        found[dimension] = {
            rowid for rowid, block, place in rows if block in valid and valid[block][place // 8] >> place % 8 & 1
        }
    return found


def _vector_copies(connection: sqlite3.Connection) -> Iterator[tuple[str, _VectorCopy]]:
    vectors = _vectors(connection)
    pieces: dict[str, list[tuple[int, int, int, str]]] = {}
    rows = connection.execute("SELECT doc_id, ordinal, chunk_id, start, text FROM chunks ORDER BY doc_id, ordinal")
    for doc_id, *piece in rows:
        pieces.setdefault(doc_id, []).append(tuple(piece))
    documents = connection.execute(
        "SELECT doc_id, number, digest, deleted, model, dimension, chunking, chunk_count FROM documents"
    )
    for doc_id, number, digest, deleted, model, dimension, chunking, chunk_count in documents:
        own = pieces.pop(doc_id, [])
        embedding = (model, dimension, chunking)
        if deleted:
            problem = "still has chunks although it is deleted" if own else None
            yield doc_id, _VectorCopy(Held(number, "", deleted=True), embedding, problem)
            continue
        text = _joined((start, text) for _, _, start, text in own)
        actual = "" if text is None else _sha256(text)
        problem = None
        if [ordinal for ordinal, *_ in own] != list(range(chunk_count)):
            problem = f"{len(own)} of {chunk_count} chunks are there"
        elif not vectors.get(dimension, set()).issuperset(chunk_id for _, chunk_id, _, _ in own):
            problem = "a chunk has no vector"
        elif actual != digest:
            problem = "the chunks do not give the text that the digest says"
        yield doc_id, _VectorCopy(Held(number, actual, deleted=False), embedding, problem)
    for doc_id in pieces:
        yield doc_id, _VectorCopy(Held(None, "", deleted=False), (None, None, None), "has chunks but no document row")


def _joined(pieces: Iterable[tuple[int, str]]) -> str | None:
    """What chunks (start, text) give when each is laid where it starts; None if they leave a gap or contradict."""
    whole = ""
    for start, text in pieces:
        laid = whole[start:]
        if start > len(whole) or laid[: len(text)] != text[: len(laid)]:
            return None
        whole += text[len(laid) :]
    return whole


def _critical_problem(text: Held | None, vector: _VectorCopy | None, embedding: tuple[str, int, str]) -> str | None:
    if text is None:
        return "vector: holds it, but text does not"
    if vector is None:
        return "vector: does not hold it, but text does"
    if vector.problem is not None:
        return f"vector: {vector.problem}"
    if text != vector.held:
        return f"text holds {_words(text)}, vector holds {_words(vector.held)}"
    if not text.deleted and vector.embedding != embedding:
        return "vector: embedded by another model, dimension or chunking"
    return None


def _cache_problem(cached: Held, problem: str | None, text: Held | None) -> str | None:
    if problem is not None:
        return f"cache: {problem}"
    if text is None:
        return "cache: holds it, but text does not"
    if cached != text:
        return f"text holds {_words(text)}, cache holds {_words(cached)}"
    return None


def _words(held: Held) -> str:
    return f"a tombstone at {held.number}" if held.deleted else f"version {held.number} ({held.digest[:12]})"
