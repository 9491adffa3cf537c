"""The seam `trio_repair.abc.Store` on a PostgreSQL server: each call is one function in the store's thread."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import psycopg
import trio

from trio_repair import (
    Document,
    InvalidValue,
    Observation,
    Prepared,
    Removal,
    StoredDocument,
    StoreError,
    StoreRejected,
    StoreTraits,
    StoreUnavailable,
    Write,
    WriteAnswer,
)
from trio_repair.abc import ScanPage

from ._postgres import Connection, Server, Session
from ._postgres_errors import describe, ends_connection, without_content
from ._postgres_layout import View, Writer
from ._postgres_ranges import PostgresRanges
from ._postgres_writing import Change, make_changes
from ._preparing import prepare_document
from ._thread import Call, CallAbandoned, StoreThread

MAX_BATCH: Final = 1024
_PATIENCE: Final = 0.5
"""Seconds for a cancelled call to come back with a verdict: a cancel request makes two trips to the server."""

T = TypeVar("T")
S = TypeVar("S", bound="PostgresStore")


class PostgresStore:
    """The methods of `trio_repair.abc.Store` on top of a `View` and a `Writer`."""

    def __init__(
        self,
        server: Server,
        traits: StoreTraits,
        view: View,
        writer: Writer,
        *,
        thread: StoreThread[Session] | None = None,
    ) -> None:
        self._server = server
        self._traits = traits
        self._view = view
        self._writer = writer
        self._name = server.store
        self._thread = make_thread(server) if thread is None else thread

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._server.place}>"

    @property
    def traits(self) -> StoreTraits:
        """What this store promises; constant while it is open."""
        return self._traits

    @property
    def abandoned_threads(self) -> int:
        """How many driver threads hung and were left behind."""
        return self._thread.abandoned

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        """Look at documents without their content.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(doc_ids))
        return await self._run(self._view.observations, list(doc_ids))

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        """Read documents. `StoreRejected` for one whose content is not what its digest says.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(doc_ids))
        return await self._run(self._view.documents, list(doc_ids))

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        """Check that digest and content agree, that the metadata is JSON, and that PostgreSQL can hold both;
        `StoreRejected` otherwise.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(documents))
        await trio.lowlevel.checkpoint()
        return [self._prepare(document) for document in documents]

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """Replace each document whose expected token still holds, all in one transaction.

        UNKNOWN for what was landing if the connection was lost while it was being committed.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: nothing was written.

        **If cancelled:** all of it may have landed, or nothing; never after Cancelled was raised, unless the server
        takes longer than 0.5 s over a commit that had begun.
        """
        self._check_batch(len(writes))
        return await self._change([Change(one.prepared.document.doc_id, one.token, one.prepared) for one in writes])

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        """Take each document's rows away, tombstones too, where the expected token still holds, in one transaction.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: nothing was removed.

        **If cancelled:** as `write`.
        """
        self._check_batch(len(removals))
        return await self._change([Change(one.doc_id, one.token, None) for one in removals])

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> AsyncGenerator[AsyncIterator[ScanPage], None]:
        """One snapshot of all documents and tombstones with doc_id > `after`, in byte order, 1,000 to a page.

        The snapshot is a transaction on a connection of its own, REPEATABLE READ and READ ONLY; while it is open, the
        server keeps row versions that it would have cleaned up.

        Raises:
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed, and the snapshot is let go.
        """
        reader = await self._run(lambda session: session.open_reader())
        try:
            yield _Pages(self, reader, after)
        finally:
            self._thread.post(lambda call: call.resource.close_reader(reader))

    async def count(self) -> int:
        """How many documents and tombstones the store holds; above 5 million, what the server's planner estimates.

        Raises:
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed.
        """
        return await self._run(self._view.count)

    async def aclose(self) -> None:
        """Close the connections and end the thread; a thread that hangs is left behind. Idempotent.

        **If cancelled:** the store is closed all the same.
        """
        await self._thread.aclose()

    async def _open(self) -> None:
        await self._run(self._open_call)

    # In the Trio thread.

    def _prepare(self, document: Document) -> Prepared | StoreError:
        answer = prepare_document(self._name, self._view.content, document)
        if isinstance(answer, Prepared) and document.text is not None and "\0" in document.text:
            return StoreRejected(self._name, "its text holds NUL, which PostgreSQL cannot store", document.doc_id)
        return answer

    def _check_batch(self, size: int) -> None:
        if size > self._traits.max_batch:
            raise InvalidValue(
                "batch", f"names {size} documents; the {self._name} store takes {self._traits.max_batch}"
            )

    async def _change(self, changes: list[Change]) -> Sequence[WriteAnswer]:
        if len({change.doc_id for change in changes}) < len(changes):
            raise InvalidValue("batch", "names a document twice; one call writes each document once")
        return await self._run(self._change_call, changes)

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        return await self._thread.run(call_server, self._server, work, args)

    # In the store's thread.

    def _open_call(self, session: Session) -> None:
        """See that the tables are there and can be read."""
        self._view.check(session)

    def _change_call(self, session: Session, changes: Sequence[Change]) -> list[WriteAnswer]:
        return make_changes(session, self._view, self._writer, changes)


class RangedPostgresStore(PostgresStore):
    """A store whose documents an index holds in byte order, so that a range of them is found at once."""

    @asynccontextmanager
    async def open_ranges(self, after: str | None = None) -> AsyncGenerator[PostgresRanges, None]:  # noqa: ARG002
        """As `open_scan`, by ranges, of which the server makes the digests.

        Raises:
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed, and the snapshot is let go.
        """
        reader = await self._run(lambda session: session.open_reader())
        try:
            yield PostgresRanges(self._run, self._view, reader)
        finally:
            self._thread.post(lambda call: call.resource.close_reader(reader))


def make_thread(server: Server) -> StoreThread[Session]:
    """The thread of a store, with its connections."""
    return StoreThread(
        server.store,
        open_resource=lambda: Session(server),
        close_resource=Session.close,
        interrupt=Session.interrupt,
        patience=_PATIENCE,
    )


def call_server(call: Call[Session], server: Server, work: Callable[..., T], args: tuple[Any, ...]) -> T:
    """In the store's thread: do some work, and say in our own words what goes wrong with the server."""
    session = call.resource
    failure: psycopg.Error
    try:
        session.begin(call)
        return work(session, *args)
    except CallAbandoned as error:
        raise StoreUnavailable(server.store, "the call was given up") from error
    except psycopg.Error as error:
        if ends_connection(error):
            session.drop_active()
        failure = error
    finally:
        session.end()
    # Not within the handler: the server's words, which may quote a row, would be seen as the error's context.
    raise server.error(describe(failure)) from without_content(failure)


class _Pages:
    """The pages of one scan; each is a call of its own, so that other calls come in between."""

    def __init__(self, store: PostgresStore, reader: Connection, after: str | None) -> None:
        self._store = store
        self._reader = reader
        self._after = "" if after is None else after

    def __aiter__(self) -> _Pages:
        return self

    async def __anext__(self) -> ScanPage:
        page = await self._store._run(self._store._view.page, self._reader, self._after)
        if not page:
            raise StopAsyncIteration
        self._after = page[-1][0]
        return page


@asynccontextmanager
async def opened(store: S) -> AsyncGenerator[S, None]:
    """A store whose tables were looked at, closed on the way out."""
    try:
        await store._open()
        yield store
    finally:
        await store.aclose()
