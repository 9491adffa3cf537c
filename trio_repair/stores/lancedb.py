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
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from trio_repair import (
    AbsentMeans,
    ContentDefinition,
    Document,
    Fence,
    InvalidValue,
    Observation,
    Prepared,
    Removal,
    StoredDocument,
    StoreError,
    StoreFileError,
    StoreTraits,
    StoreUnavailable,
    Write,
    WriteAnswer,
)
from trio_repair.abc import Chunker, Embedder, ScanPage

from ._directory import StoreDirectory, open_directory
from ._encoding import check_limit
from ._lancedb import Session, Snapshot
from ._lancedb_directory import DATASET
from ._lancedb_errors import DriverFailed, driver_errors
from ._lancedb_rows import (
    ABSENT,
    Change,
    count_documents,
    fill_snapshot,
    find,
    make_changes,
    nearest,
    next_page,
    read_documents,
)
from ._nearest_hit import NearestHit
from ._preparing import prepare_document
from ._settings import chunker_setting, embedder_setting, path_setting, refuse_unknown
from ._thread import Call, CallAbandoned, StoreThread
from ._vector_preparing import VectorPreparing

__all__ = ["LanceDBVectorStore", "NearestHit", "lancedb_vector_from_settings", "open_lancedb_vector"]

T = TypeVar("T")

_PATIENCE: Final = 1.5
"""Seconds that a cancelled call gets to come back. LanceDB cannot be interrupted, and a thread that is left behind
keeps the lock: more than a commit takes."""
_CLOSE_GRACE: Final = 10.0
"""Seconds that making the table small gets to end when the store is closed."""
_MAX_NEIGHBOURS: Final = 4096


class LanceDBVectorStore:
    """A vector store in one LanceDB table; made by `open_lancedb_vector`.

    What nobody sees is that another program changed the text or the numbers *in* a row, and left its other columns as
    they were. Such a text is never read: its digest says so.
    """

    def __init__(self, directory: StoreDirectory, preparing: VectorPreparing) -> None:
        self._directory = directory
        self._name = directory.store
        self._preparing = preparing
        self._traits = StoreTraits(
            fence=Fence.STRONG,
            holds_text=True,
            keeps_tombstones=True,
            absent=AbsentMeans.MISSING,
            max_batch=4096,
            max_batch_bytes=32 * 2**20,
            embedding=preparing.identity,
        )
        self._thread: StoreThread[Session] = StoreThread(
            directory.store,
            open_resource=lambda: Session(directory),
            close_resource=Session.close,
            interrupt=_cannot_interrupt,
            patience=_PATIENCE,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self._directory.path)!r}>"

    @property
    def traits(self) -> StoreTraits:
        """What this store promises; constant while it is open."""
        return self._traits

    @property
    def abandoned_threads(self) -> int:
        """How many driver threads hung and were left behind."""
        return self._thread.abandoned

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        """Look at documents without their content. A copy whose chunks or vectors are not all there is not intact.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: the table cannot be read now.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(doc_ids))
        found = await self._run(find, list(doc_ids))
        return [found[doc_id].observation if doc_id in found else ABSENT for doc_id in doc_ids]

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        """Read documents, their texts rebuilt from the chunks. `StoreRejected` for one that its digest does not prove.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: the table cannot be read now.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(doc_ids))
        return await self._run(read_documents, self._directory.content, list(doc_ids))

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        """Check, chunk and embed documents, without any effect. A text that was embedded lately is not embedded again.

        `StoreRejected` for one whose digest is not that of its content, or that chunker or embedder cannot take;
        `StoreUnavailable` for one for which the embedder failed in a way that may pass.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(documents))
        await trio.lowlevel.checkpoint()
        return await self._preparing.prepare(
            [prepare_document(self._name, self._directory.content, document) for document in documents]
        )

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """Replace each document whose expected token still holds, all in one commit.

        Raises:
            InvalidValue: more documents than `traits.max_batch`, or one twice.
            StoreUnavailable: nothing was written.

        **If cancelled:** all of it may have landed, or nothing; never after Cancelled was raised, unless a commit that
        had begun takes longer than 1.5 s.
        """
        self._check_batch(len(writes))
        changes = [Change(one.prepared.document.doc_id, one.token, one.prepared) for one in writes]
        return await self._change(changes)

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        """Take each document's rows away, tombstones too, where the expected token still holds, in one commit.

        Raises:
            InvalidValue: more documents than `traits.max_batch`, or one twice.
            StoreUnavailable: nothing was removed.

        **If cancelled:** as `write`.
        """
        self._check_batch(len(removals))
        return await self._change([Change(one.doc_id, one.token, None) for one in removals])

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> AsyncGenerator[AsyncIterator[ScanPage], None]:
        """One snapshot of all documents and tombstones with doc_id > `after`, in byte order, 1,000 to a page.

        LanceDB keeps rows as they came: before the first page comes, ids and versions of the whole snapshot are spooled
        to a temporary file. Memory is bounded. To see that vectors are there, LanceDB reads them.

        Raises:
            StoreUnavailable: the table cannot be read now.

        **If cancelled:** nothing has changed, and the snapshot is let go.
        """
        snapshot = await self._run(Session.open_snapshot, after)
        try:
            yield _Pages(self, snapshot)
        finally:
            self._thread.post(lambda call: call.resource.close_snapshot(snapshot))

    async def count(self) -> int:
        """How many documents and tombstones the store holds.

        Raises:
            StoreUnavailable: the table cannot be read now.

        **If cancelled:** nothing has changed.
        """
        return await self._run(count_documents)

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

    async def aclose(self) -> None:
        """Wait for the call under way, at most 10 s, let the lock go and end the thread. Idempotent.

        What takes longer keeps the lock until it ends, or the process does.

        **If cancelled:** the store is closed all the same.
        """
        await self._thread.aclose(grace=_CLOSE_GRACE)

    async def _open(self) -> None:
        await self._thread.run(self._call, _open_call, (self._directory,))

    # In the Trio thread.

    def _check_batch(self, size: int) -> None:
        if size > self._traits.max_batch:
            raise InvalidValue(
                "batch", f"names {size} documents; the {self._name} store takes {self._traits.max_batch}"
            )

    async def _change(self, changes: list[Change]) -> Sequence[WriteAnswer]:
        if len({change.doc_id for change in changes}) < len(changes):
            raise InvalidValue("batch", "names a document twice; one call writes each document once")
        answers = await self._run(make_changes, self._preparing.identity, changes)
        self._thread.post(lambda call: call.resource.tidy())  # nobody waits for it
        return answers

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        return await self._thread.run(self._call, work, args)

    # In the store's thread.

    def _call(self, call: Call[Session], work: Callable[..., T], args: tuple[Any, ...]) -> T:
        session = call.resource
        try:
            session.begin(call)
            with driver_errors():
                return work(session, *args)
        except StoreFileError as error:
            if work is _open_call:
                raise
            raise StoreUnavailable(self._name, error.problem) from error
        except CallAbandoned as error:
            raise StoreUnavailable(self._name, "the call was given up") from error
        except DriverFailed as error:
            if isinstance(error.__cause__, sqlite3.Error):
                problem = f"the spool of a scan failed ({type(error.__cause__).__name__})"
                raise StoreUnavailable(self._name, problem) from error
            raise StoreUnavailable(self._name, error.problem) from error
        finally:
            session.call = None  # an idle thread must not keep the last call's documents alive


class _Pages:
    """The pages of one scan; each call takes a part of it, so that other calls come in between."""

    def __init__(self, store: LanceDBVectorStore, snapshot: Snapshot) -> None:
        self._store = store
        self._snapshot = snapshot
        self._filled = False

    def __aiter__(self) -> _Pages:
        return self

    async def __anext__(self) -> ScanPage:
        while not self._filled:
            self._filled = not await self._store._run(fill_snapshot, self._snapshot)
        page = await self._store._run(next_page, self._snapshot)
        if not page:
            raise StopAsyncIteration
        return page


def _cannot_interrupt(_session: Session) -> None:
    """The driver goes on until it is done; calls look between its steps whether they were abandoned."""


def _open_call(session: Session, directory: StoreDirectory) -> None:
    open_directory(directory)
    session.open()


@asynccontextmanager
async def _opened(store: LanceDBVectorStore) -> AsyncGenerator[LanceDBVectorStore, None]:
    try:
        await store._open()
        yield store
    finally:
        await store.aclose()


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
    return _opened(LanceDBVectorStore(directory, VectorPreparing(name, embedder, chunker)))


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
