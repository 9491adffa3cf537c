"""What the tests of the LanceDB store share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lancedb

from trio_repair import Document, Observation, Removal, StoredDocument, StoreError, Write, WriteAnswer, WriteStatus
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores.lancedb import LanceDBVectorStore, open_lancedb_vector


def open_store(path: Path, embedder: Any = None, chunker: Any = None, **options: Any) -> Any:
    return open_lancedb_vector(
        path, embedder=embedder or HashingEmbedder(16), chunker=chunker or WindowChunker(40, 10), **options
    )


async def look(store: LanceDBVectorStore, doc_id: str) -> Observation:
    (seen,) = await store.observe([doc_id])
    assert isinstance(seen, Observation)
    return seen


async def write(store: LanceDBVectorStore, *documents: Document) -> list[WriteAnswer]:
    """Write over whatever is held."""
    seen = await store.observe([document.doc_id for document in documents])
    writes = []
    for view, prepared in zip(seen, await store.prepare(documents), strict=True):
        assert not isinstance(view, StoreError)
        assert not isinstance(prepared, StoreError)
        writes.append(Write(prepared=prepared, token=view.token))
    return list(await store.write(writes))


async def put(store: LanceDBVectorStore, *documents: Document) -> list[Observation]:
    """Write over whatever is held; it must land."""
    answers = await write(store, *documents)
    assert {WriteStatus.LANDED} == {answer.status for answer in answers}, answers
    return [answer.observation for answer in answers if answer.observation is not None]


async def take_away(store: LanceDBVectorStore, doc_id: str) -> None:
    (answer,) = await store.remove([Removal(doc_id=doc_id, token=(await look(store, doc_id)).token)])
    assert answer.status is WriteStatus.LANDED


async def scan(store: LanceDBVectorStore, after: str | None = None) -> list[tuple[str, Observation]]:
    async with store.open_scan(after) as pages:
        return [entry async for page in pages for entry in page]


async def text_of(store: LanceDBVectorStore, doc_id: str) -> str | None:
    (answer,) = await store.read([doc_id])
    assert isinstance(answer, StoredDocument), answer
    return None if answer.document is None else answer.document.text


def table_of(path: Path) -> Any:
    """The table, as a program that knows LanceDB and not this store opens it."""
    return lancedb.connect(str(path)).open_table("documents")


def rows_of(path: Path, *columns: str) -> list[tuple[Any, ...]]:
    """Some columns of all rows, in order."""
    found = table_of(path).search().select(list(columns)).limit(None).to_arrow()
    return sorted(zip(*(found[name].to_pylist() for name in columns), strict=True), key=repr)
