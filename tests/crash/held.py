"""What a store holds of a document, read directly: from the dict of a memory store, or by SQL from a store's file."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw
import attrs
import sqlite_vec

from trio_repair import DocumentVersion
from trio_repair.embedding import rebuild_text
from trio_repair.stores.memory import MemoryStore

ABSENT_STAMP = "absent"
NAMES = ("text", "vector", "cache")


@attrs.frozen(kw_only=True)
class Held:
    """One document in one store."""

    copies: int = 0
    """How many live copies a reader finds, each whole and with the text that its digest promises."""
    present: bool = False
    """There is a row, whole or not, alive or a tombstone."""
    deleted: bool = False
    number: int | None = None
    digest: str | None = None
    stamp: str = ABSENT_STAMP
    """Another one after each write; the fence token begins with it."""
    problems: tuple[str, ...] = ()
    """Remains of other contents: chunks, vectors or index rows that belong to nothing."""

    def holds(self, version: DocumentVersion | None) -> bool:
        """Whether this is `version`, whole; None: nothing at all."""
        if version is None:
            return not self.present
        if version.deleted:
            return self.deleted and self.number == version.number
        return self.copies == 1 and (self.number, self.digest) == (version.number, version.digest)


Holdings = Mapping[str, Held]
"""By store."""

ABSENT = Held()


@functools.lru_cache(maxsize=1024)
def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def held_in_memory(store: MemoryStore, doc_id: str) -> Held:
    copy = store.snapshot().get(doc_id)
    if copy is None:
        return ABSENT
    document = copy.document
    return Held(
        copies=int(document.text is not None and copy.intact and sha256(document.text) == document.version.digest),
        present=True,
        deleted=document.version.deleted,
        number=document.version.number,
        digest=document.version.digest,
        stamp=copy.token,
    )


class Files:
    """The three files of SQLite stores in a directory, each read through a connection of its own."""

    def __init__(self, directory: Path) -> None:
        self._connections = {name: apsw.Connection(str(directory / f"{name}.db")) for name in NAMES}
        vector = self._connections["vector"]
        vector.enable_load_extension(True)  # noqa: FBT003 - the driver takes no keyword
        vector.load_extension(sqlite_vec.loadable_path())
        for connection in self._connections.values():
            connection.set_busy_timeout(5000)

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    def execute(self, name: str, sql: str, bindings: Sequence[Any] = ()) -> None:
        """Foreign SQL, as an application's."""
        list(self._connections[name].execute(sql, tuple(bindings)))

    def unsound(self) -> list[str]:
        """What SQLite itself finds wrong with the files."""
        found = []
        for name, connection in self._connections.items():
            said = connection.execute("PRAGMA integrity_check").get
            if said != "ok":
                found.append(f"{name}: {said}")
        try:
            self.execute("text", "INSERT INTO documents_fts (documents_fts) VALUES ('integrity-check')")
        except apsw.CorruptError:
            found.append("text: the full-text index does not fit the documents")
        return found

    def held(self, doc_ids: Sequence[str]) -> dict[str, Holdings]:
        """What each document is in each store, by document."""
        stores = {"text": self._text(), "vector": self._vector(), "cache": self._cache()}
        return {doc_id: {name: stores[name].get(doc_id, ABSENT) for name in NAMES} for doc_id in doc_ids}

    def _text(self) -> dict[str, Held]:
        connection = self._connections["text"]
        indexed = Counter(row for (row,) in connection.execute("SELECT id FROM documents_fts_docsize"))
        found: dict[str, Held] = {}
        rows = connection.execute("SELECT id, doc_id, number, digest, deleted, rev, text FROM documents")
        for row, doc_id, number, digest, deleted, rev, text in rows:
            proven = None if text is None else sha256(text)
            found[doc_id] = Held(
                copies=indexed[row] if not deleted and (digest is None or digest == proven) else 0,
                present=True,
                deleted=bool(deleted),
                number=number,
                digest="" if deleted else proven,
                stamp=str(rev),
                problems=("a deleted document can be found",) if deleted and indexed[row] else (),
            )
            indexed.pop(row, None)
        assert not indexed, f"index rows of no document: {sorted(indexed)}"
        return found

    def _vector(self) -> dict[str, Held]:
        connection = self._connections["vector"]
        tables = list(connection.execute("SELECT name FROM sqlite_schema WHERE name GLOB 'vectors_[0-9]*_rowids'"))
        vectors = {rowid for (table,) in tables for (rowid,) in connection.execute(f"SELECT rowid FROM {table}")}
        chunks: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        ordered = "SELECT doc_id, chunk_id, start, text FROM chunks ORDER BY doc_id, ordinal"
        for doc_id, chunk_id, start, text in connection.execute(ordered):
            chunks[doc_id].append((chunk_id, start, text))
        found: dict[str, Held] = {}
        rows = "SELECT doc_id, number, digest, deleted, rev, first_chunk, chunk_count FROM documents"
        for doc_id, number, digest, deleted, rev, first, count in connection.execute(rows):
            own = chunks.pop(doc_id, [])
            ids = {chunk_id for chunk_id, _, _ in own}
            remains = (vectors & set(range(first, first + count))) - ids
            text = rebuild_text([(start, text) for _, start, text in own]) if own else None
            whole = not deleted and len(own) == count and ids <= vectors and text is not None and sha256(text) == digest
            problems = [f"{len(remains)} vectors without a chunk"] if remains else []
            if deleted and own:
                problems.append(f"{len(own)} chunks of a deleted document")
            vectors -= ids | remains
            found[doc_id] = Held(
                copies=int(whole),
                present=True,
                deleted=bool(deleted),
                number=number,
                digest=digest,
                stamp=str(rev),
                problems=tuple(problems),
            )
        assert not chunks, f"chunks of no document: {sorted(chunks)}"
        assert not vectors, f"vectors of no document: {sorted(vectors)}"
        return found

    def _cache(self) -> dict[str, Held]:
        found: dict[str, Held] = {}
        rows = self._connections["cache"].execute("SELECT doc_id, number, digest, rev, text FROM documents")
        for doc_id, number, digest, rev, text in rows:
            proven = sha256(text)
            found[doc_id] = Held(
                copies=int(digest is None or digest == proven),
                present=True,
                number=number,
                digest=proven,
                stamp=str(rev),
            )
        return found
