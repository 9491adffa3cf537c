"""What damage is done with: the stores, a process that runs an old model, and SQL behind the vector store's back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal

import apsw
import attrs
import sqlite_vec
import trio

from trio_repair import Document, Stores
from trio_repair.abc import Store
from trio_repair.embedding import HashingEmbedder, WindowChunker
from trio_repair.stores.sqlite_vector import open_sqlite_vector

from .writing import remove_documents, write_documents

_LAST_CHUNK: Final = "SELECT max(chunk_id) FROM chunks WHERE doc_id = ?"


class OldEmbedder(HashingEmbedder):
    """Stands for the model that was in use before: same dimension, other vectors."""

    @property
    def model(self) -> str:
        """Another name than the present one."""
        return "feature-hashing-v0"

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """Vectors that have nothing to do with those of the present model."""
        return [vector[::-1] for vector in await super().embed(texts)]


@attrs.frozen(kw_only=True)
class Workshop:
    """What the stories happen to; made by `open_workshop`."""

    stores: Stores
    old_vector: Store
    """The vector store, as a process opens it that still runs the previous embedding model."""
    vector_file: Path

    async def write(self, role: str, documents: Sequence[Document]) -> None:
        """Write to one store."""
        await write_documents(self.stores.by_name[role], documents, role=role)

    async def write_with_old_model(self, documents: Sequence[Document]) -> None:
        """Write to the vector store, embedded by the previous model."""
        await write_documents(self.old_vector, documents, role="vector")

    async def remove(self, role: str, documents: Sequence[Document]) -> None:
        """Delete from one store by hand, leaving no tombstone."""
        await remove_documents(self.stores.by_name[role], [document.doc_id for document in documents], role=role)

    async def lose(self, part: Literal["chunk", "vector"], documents: Sequence[Document]) -> None:
        """Delete the last chunk of each document, or the vector of that chunk, by SQL."""
        doc_ids = [document.doc_id for document in documents]
        dimension = HashingEmbedder().dimension
        await trio.to_thread.run_sync(_lose, self.vector_file, part, dimension, doc_ids)


def _lose(file: Path, part: Literal["chunk", "vector"], dimension: int, doc_ids: Sequence[str]) -> None:
    table, key = ("chunks", "chunk_id") if part == "chunk" else (f"vectors_{dimension}", "rowid")
    connection = apsw.Connection(str(file), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.set_busy_timeout(5000)
        connection.enable_load_extension(True)  # noqa: FBT003 - apsw takes it by position
        connection.load_extension(sqlite_vec.loadable_path())
        with connection:
            connection.executemany(
                f"DELETE FROM {table} WHERE {key} = ({_LAST_CHUNK})", [(doc_id,) for doc_id in doc_ids]
            )
    finally:
        connection.close()


@asynccontextmanager
async def open_workshop(stores: Stores, *, vector_file: Path) -> AsyncIterator[Workshop]:
    """Get ready to damage stores.

    Args:
        stores: open stores, as the demo makes them.
        vector_file: the file of the vector store.

    Raises:
        StoreFileError: the file cannot be used.
    """
    old = open_sqlite_vector(vector_file, embedder=OldEmbedder(), chunker=WindowChunker(), synchronous="normal")
    async with old as old_vector:
        yield Workshop(stores=stores, old_vector=old_vector, vector_file=vector_file)
