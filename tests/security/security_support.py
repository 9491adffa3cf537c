"""What the tests of security share: what was told, and every row of the stores' files as it lies there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import apsw
import attrs
import sqlite_vec

ROWS = {
    "text.db": {
        "documents": "SELECT doc_id, * FROM documents",
        "index": "SELECT d.doc_id, s.* FROM documents_fts_docsize AS s LEFT JOIN documents AS d ON d.id = s.id",
    },
    "vector.db": {
        "documents": "SELECT doc_id, * FROM documents",
        "chunks": "SELECT doc_id, * FROM chunks",
        "vectors": (
            "SELECT c.doc_id, v.rowid, v.identity, v.embedding FROM vectors_32 AS v"
            " LEFT JOIN chunks AS c ON c.chunk_id = v.rowid"
        ),
    },
    "cache.db": {"documents": "SELECT doc_id, * FROM documents"},
}
"""Queries for all rows, the document that each belongs to first; None for a row that belongs to none."""


@attrs.frozen(kw_only=True)
class Told:
    """A command that has ended, and all that it said."""

    status: int
    out: str
    err: str
    log: str

    @property
    def all(self) -> str:
        """Everything."""
        return f"{self.out}\n{self.err}\n{self.log}"


def rows(directory: Path) -> Mapping[str | None, list[Any]]:
    """Every row of the three files, by document, read by SQL behind the stores' backs."""
    held: dict[str | None, list[Any]] = {}
    for name, queries in ROWS.items():
        connection = apsw.Connection(str(directory / name), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            connection.enable_load_extension(enable=True)
            connection.load_extension(sqlite_vec.loadable_path())
            for what, query in queries.items():
                for doc_id, *row in connection.execute(query):
                    held.setdefault(doc_id, []).append((name, what, *row))
        finally:
            connection.close()
    return {doc_id: sorted(found, key=repr) for doc_id, found in held.items()}
