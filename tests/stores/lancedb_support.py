"""What the tests of the LanceDB store share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lancedb

from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores.lancedb import open_lancedb_vector


def open_store(path: Path, embedder: Any = None, chunker: Any = None, **options: Any) -> Any:
    return open_lancedb_vector(
        path, embedder=embedder or HashingEmbedder(16), chunker=chunker or WindowChunker(40, 10), **options
    )


def table_of(path: Path) -> Any:
    """The table, as a program that knows LanceDB and not this store opens it."""
    return lancedb.connect(str(path)).open_table("documents")


def rows_of(path: Path, *columns: str) -> list[tuple[Any, ...]]:
    """Some columns of all rows, in order."""
    found = table_of(path).search().select(list(columns)).limit(None).to_arrow()
    return sorted(zip(*(found[name].to_pylist() for name in columns), strict=True), key=repr)
