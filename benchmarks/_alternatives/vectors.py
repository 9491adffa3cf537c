"""The vector store that the other tools get: plain rows and a sqlite-vec table, on apsw.

It knows what the tools' interfaces ask of a vector store, and what damage needs.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import apsw

from trio_repair import DivergenceKind
from trio_repair.stores._vector_layout import load_sqlite_vec

from .judge import Chunks, Copies
from .scenario import EMBEDDER, Scenario, other_content

FILE: Final = "vectors.db"

_IN: Final = "IN (SELECT value FROM json_each(?))"


class Row(NamedTuple):
    """One chunk."""

    key: str
    doc_id: str
    text: str
    metadata: str
    vector: bytes


class Neighbour(NamedTuple):
    """A chunk near a query."""

    key: str
    text: str
    metadata: str
    distance: float


def pack(vector: Sequence[float]) -> bytes:
    """A vector as sqlite-vec takes it."""
    return array("f", vector).tobytes()


def embed(texts: Sequence[str]) -> list[bytes]:
    """Vectors as sqlite-vec takes them."""
    return [vector.tobytes() for vector in EMBEDDER.embed_all(list(texts))]


class VectorFile:
    """A vector store in one file; get one from `open_vectors`."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def put(self, rows: Sequence[Row]) -> None:
        """Add chunks, in the place of those that have the same key."""
        connection = self._connection
        with connection:
            self._delete("key", [row.key for row in rows])
            last = connection.execute("SELECT ifnull(max(rowid), 0) FROM chunks").get
            numbered = list(enumerate(rows, int(last) + 1))
            connection.executemany(
                "INSERT INTO chunks (rowid, key, doc_id, text, metadata) VALUES (?, ?, ?, ?, ?)",
                [(rowid, *row[:4]) for rowid, row in numbered],
            )
            connection.executemany(
                "INSERT INTO vectors (rowid, embedding) VALUES (?, ?)", [(rowid, row.vector) for rowid, row in numbered]
            )

    def delete_keys(self, keys: Sequence[str]) -> None:
        """Delete chunks."""
        with self._connection:
            self._delete("key", keys)

    def delete_documents(self, doc_ids: Sequence[str]) -> None:
        """Delete all chunks of documents."""
        with self._connection:
            self._delete("doc_id", doc_ids)

    def nearest(self, vector: bytes, count: int) -> list[Neighbour]:
        """The chunks that are nearest to a vector, nearest first."""
        sql = (
            "SELECT c.key, c.text, c.metadata, v.distance FROM"
            " (SELECT rowid, distance FROM vectors WHERE embedding MATCH ? AND k = ?) AS v"
            " JOIN chunks AS c ON c.rowid = v.rowid ORDER BY v.distance"
        )
        return [Neighbour(*row) for row in self._connection.execute(sql, (vector, count))]

    def damage(self, scenario: Scenario) -> None:
        """Do what the scenario says, behind the back of the tool that wrote these rows."""
        self.delete_documents(scenario.damaged[DivergenceKind.MISSING])
        connection = self._connection
        with connection:
            for rowid, text in self._rows(scenario.damaged[DivergenceKind.CONFLICT]):
                other = other_content(text)
                connection.execute("UPDATE chunks SET text = ? WHERE rowid = ?", (other, rowid))
                connection.execute("UPDATE vectors SET embedding = ? WHERE rowid = ?", (*embed([other]), rowid))
            for rowid, text in self._rows(scenario.damaged[DivergenceKind.STALE_EMBEDDING]):
                (vector,) = EMBEDDER.embed_all([text])
                connection.execute("UPDATE vectors SET embedding = ? WHERE rowid = ?", (vector[::-1].tobytes(), rowid))
            for doc_id in scenario.damaged[DivergenceKind.INCOMPLETE]:
                rowid, _text = self._rows([doc_id])[-1]
                connection.execute("DELETE FROM chunks WHERE rowid = ?", (rowid,))
                connection.execute("DELETE FROM vectors WHERE rowid = ?", (rowid,))

    def copies(self) -> Copies:
        """What is there."""
        rows = self._connection.execute(
            "SELECT c.doc_id, c.text, v.embedding FROM chunks AS c LEFT JOIN vectors AS v ON v.rowid = c.rowid"
            " UNION ALL SELECT '', '', embedding FROM vectors WHERE rowid NOT IN (SELECT rowid FROM chunks)"
        )
        return Copies(chunks=collect(rows))

    def _delete(self, column: str, values: Sequence[str]) -> None:
        given = (json.dumps(values),)
        connection = self._connection
        connection.execute(f"DELETE FROM vectors WHERE rowid IN (SELECT rowid FROM chunks WHERE {column} {_IN})", given)
        connection.execute(f"DELETE FROM chunks WHERE {column} {_IN}", given)

    def _rows(self, doc_ids: Sequence[str]) -> list[tuple[int, str]]:
        sql = f"SELECT rowid, text FROM chunks WHERE doc_id {_IN} ORDER BY rowid"
        return list(self._connection.execute(sql, (json.dumps(doc_ids),)))


def collect(rows: Iterable[tuple[str, str, bytes | None]]) -> dict[str, Chunks]:
    """(document, text, vector) rows, by document."""
    found: defaultdict[str, Chunks] = defaultdict(Counter)
    for doc_id, text, vector in rows:
        found[doc_id][text, vector] += 1
    return dict(found)


@contextmanager
def open_vectors(folder: Path) -> Iterator[VectorFile]:
    """Open the vector store of a folder, and make it if it is not there. Commits reach the disk, as everywhere."""
    connection = apsw.Connection(str(folder / FILE))
    try:
        load_sqlite_vec(connection)
        _ = connection.execute("PRAGMA journal_mode = WAL").get
        connection.execute("PRAGMA synchronous = full")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS chunks (rowid INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE,"
            " doc_id TEXT NOT NULL, text TEXT NOT NULL, metadata TEXT NOT NULL);"
            "CREATE INDEX IF NOT EXISTS chunks_by_document ON chunks (doc_id);"
            f"CREATE VIRTUAL TABLE IF NOT EXISTS vectors USING vec0 (embedding FLOAT[{EMBEDDER.dimension}])"
        )
        yield VectorFile(connection)
    finally:
        connection.close()
