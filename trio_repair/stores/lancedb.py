"""A vector store on LanceDB: chunks of documents and their vectors in one table, in a directory of its own.

``documents.lance`` has a row for each chunk, with its place, text and vector, and with the version, the digest and the
embedding identity of its document; a tombstone is one row without a chunk. One call is one commit of the table,
however many documents and rows it has: nobody ever sees a document in part, not even a program that reads the table
besides. A commit costs tens of milliseconds, so documents should come many to a call, of up to 4,096.

**Everything that writes does it through the one handle**, which holds a lock on ``writer.lock`` for as long as it is
open. That lock makes the fence strong: tokens are compared and rows written under it, in one thread, and nobody else
can come between. LanceDB itself would let others in, and tells afterwards how many rows were replaced, not whose. A
second handle, in this process or another, waits two seconds for the lock and is then refused: `StoreFileError` where
it is opened, `StoreUnavailable` where an open one had to lock anew (after its thread hung, or a commit failed). On file
systems that do not honour ``flock`` there is no lock, and so no fence: use local disks. Other programs may read.

Each commit leaves the version before it on the disk. Now and then, after a write and between calls, the table is made
small again: when a quarter of it was written anew, or after 512 commits. Then the next call waits for that.

LanceDB does not push a commit to the disk as SQLite does: after a loss of power the last ones may be gone or damaged. A
killed process loses nothing.

The directory is made with mode 0700, because LanceDB gives its files modes by the umask.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

from trio_repair import (
    ContentDefinition,
    Document,
    Observation,
    Prepared,
    StoredDocument,
    StoreError,
    WriteAnswer,
)
from trio_repair.abc import Chunker, Embedder

from ._directory import StoreDirectory
from ._directory_store import DirectoryStore
from ._encoding import check_limit
from ._fence import ABSENT, Change
from ._lancedb import Session, Snapshot
from ._lancedb_directory import DATASET
from ._lancedb_errors import driver_errors
from ._lancedb_rows import count_documents, fill_snapshot, find, make_changes, nearest, next_page, read_documents
from ._nearest_hit import NearestHit
from ._settings import chunker_setting, embedder_setting, path_setting, refuse_unknown
from ._threaded_store import opened
from ._vector_preparing import VectorPreparing

__all__ = ["LanceDBVectorStore", "NearestHit", "lancedb_vector_from_settings", "open_lancedb_vector"]

_MAX_NEIGHBOURS: Final = 4096


class LanceDBVectorStore(DirectoryStore[Session]):
    """A vector store in one LanceDB table; made by `open_lancedb_vector`.

    A copy whose chunks or vectors are not all there is not intact: to see that vectors are there, LanceDB reads them,
    in a scan all of them. What nobody sees is that another program changed the text or the numbers *in* a row, and left
    its other columns as they were. Texts are rebuilt from the chunks; one that its digest does not prove is never read.
    """

    _driver_errors = driver_errors

    def __init__(self, directory: StoreDirectory, preparing: VectorPreparing) -> None:
        super().__init__(directory, Session, preparing.identity)
        self._preparing = preparing

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        """Check, chunk and embed documents, without any effect. A text that was embedded lately is not embedded again.

        `StoreRejected` for one whose digest is not that of its content, or that chunker or embedder cannot take;
        `StoreUnavailable` for one for which the embedder failed in a way that may pass.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.

        **If cancelled:** nothing has changed.
        """
        return await self._preparing.prepare(await super().prepare(documents))

    async def nearest(self, text: str, limit: int = 10) -> Sequence[NearestHit]:
        """Find the live documents whose chunks are nearest to a text, nearest first, each document once.

        Only documents of the present embedding identity are compared; distances between models mean nothing. Without an
        index of vectors, which LanceDB can make (`create_index` of its tables), the query is compared with every one.

        Args:
            text: the query; it is embedded as it is.
            limit: at most so many documents, from 1 to 4,096.

        Raises:
            InvalidValue: `limit` is not usable.
            StoreRejected: the embedder cannot take the query.
            StoreUnavailable: the embedder failed, or the table cannot be read now.

        **If cancelled:** nothing has changed.
        """
        check_limit(limit, maximum=_MAX_NEIGHBOURS)
        vector = await self._preparing.embed_query(text)
        return await self._run(nearest, self._preparing.identity, vector, limit)

    async def _change(self, changes: list[Change]) -> Sequence[WriteAnswer]:
        answers = await super()._change(changes)
        self._thread.post(lambda call: call.resource.tidy())  # nobody waits for it
        return answers

    # In the store's thread.

    def _observe_call(self, session: Session, doc_ids: Sequence[str]) -> list[Observation]:
        found = find(session, doc_ids)
        return [found[doc_id].observation if doc_id in found else ABSENT for doc_id in doc_ids]

    def _read_call(self, session: Session, doc_ids: Sequence[str]) -> list[StoredDocument | StoreError]:
        return read_documents(session, self._content, doc_ids)

    def _count_call(self, session: Session) -> int:
        return count_documents(session)

    def _change_call(self, session: Session, changes: Sequence[Change]) -> list[WriteAnswer]:
        return make_changes(session, self._preparing.identity, changes)

    def _fill_call(self, session: Session, snapshot: Snapshot) -> None:
        fill_snapshot(session, snapshot)

    def _page_call(self, session: Session, snapshot: Snapshot) -> list[tuple[str, Observation]]:
        return next_page(session, snapshot)


def open_lancedb_vector(
    path: str | os.PathLike[str],
    *,
    embedder: Embedder,
    chunker: Chunker,
    content: ContentDefinition | None = None,
    create: bool = False,
    name: str = "vector",
) -> AbstractAsyncContextManager[LanceDBVectorStore]:
    """Open a vector store in one LanceDB table, and close it on the way out. One handle at a time can.

    Documents that were embedded by another model or in other chunks stay readable; a check finds them, and a repair
    embeds them anew.

    Args:
        path: the directory.
        embedder: makes the vectors, of at most 8,192 numbers.
        chunker: cuts the texts.
        content: what a document's digest covers; None: the text alone. A table remembers what it was made for.
        create: make the directory (mode 0700) if it is not there, or in the place of an empty one.
        name: the store's name in errors.

    Raises (at once, or on entering):
        InvalidValue: an argument is not usable.
        StoreFileError: the directory is missing, foreign, damaged, made for other content, or open elsewhere.

    **If cancelled:** the table is closed. It may have been made; never in part.
    """
    definition = ContentDefinition() if content is None else content
    directory = StoreDirectory(kind=DATASET, path=Path(path), store=name, content=definition, create=create)
    return opened(LanceDBVectorStore(directory, VectorPreparing(name, embedder, chunker)))


def lancedb_vector_from_settings(
    settings: Mapping[str, Any], *, name: str, directory: Path, content: ContentDefinition, create: bool
) -> AbstractAsyncContextManager[LanceDBVectorStore]:
    """The kind "lancedb-vector" of a configuration file: `path`, a directory, and perhaps `embedder` and `chunker`.

    The two tables are those of the kind "sqlite-vector".

    Raises:
        InvalidValue: a setting is unknown, missing or wrong; its key is named.
    """
    refuse_unknown(settings, ("path", "embedder", "chunker"))
    return open_lancedb_vector(
        path_setting(settings, directory),
        embedder=embedder_setting(settings),
        chunker=chunker_setting(settings),
        content=content,
        create=create,
        name=name,
    )
