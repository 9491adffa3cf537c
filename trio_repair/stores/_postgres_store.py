"""The seam `trio_repair.abc.Store` on a PostgreSQL server: each call is one function in the store's thread."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import psycopg

from trio_repair import (
    Document,
    Observation,
    Prepared,
    StoredDocument,
    StoreError,
    StoreRejected,
    StoreTraits,
    StoreUnavailable,
    Write,
    WriteAnswer,
)
from trio_repair.abc import ScanPage

from ._fence import Change
from ._postgres import Server, Session
from ._postgres_errors import describe, ends_connection, without_content
from ._postgres_layout import View, Writer
from ._postgres_ranges import PostgresRanges
from ._postgres_writing import make_changes
from ._thread import Call, CallAbandoned, StoreThread
from ._threaded_store import Pages, ThreadedStore

MAX_BATCH: Final = 1024
_PATIENCE: Final = 0.5
"""Seconds for a cancelled call to come back with a verdict: a cancel request makes two trips to the server."""

T = TypeVar("T")
S = TypeVar("S", bound="PostgresStore")


class PostgresStore(ThreadedStore[Session]):
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
        thread = make_thread(server) if thread is None else thread
        super().__init__(server.store, server.place, view.content, traits, thread)
        self._server = server
        self._view = view
        self._writer = writer

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """Replace each document whose expected token still holds, all in one transaction.

        UNKNOWN for what was landing if the connection was lost while it was being committed.

        Raises:
            InvalidValue: more documents than `traits.max_batch`, or one twice.
            StoreUnavailable: nothing was written.

        **If cancelled:** all of it may have landed, or nothing; never after Cancelled was raised, unless the server
        takes longer than 0.5 s over a commit that had begun.
        """
        return await super().write(writes)

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> AsyncGenerator[AsyncIterator[ScanPage], None]:
        """One snapshot of all documents and tombstones with doc_id > `after`, in byte order, 1,000 to a page.

        The snapshot is a transaction on a connection of its own, REPEATABLE READ and READ ONLY; while it is open, the
        server keeps row versions that it would have cleaned up.

        Raises:
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed, and the snapshot is let go.
        """
        async with self._snapshot(Session.open_reader, Session.close_reader) as reader:
            yield Pages(lambda last: self._run(self._view.page, reader, last), after)

    async def count(self) -> int:
        """How many documents and tombstones the store holds; above 5 million, what the server's planner estimates.

        Raises:
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed.
        """
        return await super().count()

    async def _open(self) -> None:
        await self._run(self._open_call)

    # In the Trio thread.

    def _prepare(self, document: Document) -> Prepared | StoreError:
        answer = super()._prepare(document)
        if isinstance(answer, Prepared) and document.text is not None and "\0" in document.text:
            return StoreRejected(self._name, "its text holds NUL, which PostgreSQL cannot store", document.doc_id)
        return answer

    # In the store's thread.

    def _call(self, call: Call[Session], work: Callable[..., T], args: tuple[Any, ...]) -> T:
        return call_server(call, self._server, work, args)

    def _open_call(self, session: Session) -> None:
        """See that the tables are there and can be read."""
        self._view.check(session)

    def _observe_call(self, session: Session, doc_ids: Sequence[str]) -> list[Observation]:
        return self._view.observations(session, doc_ids)

    def _read_call(self, session: Session, doc_ids: Sequence[str]) -> list[StoredDocument | StoreError]:
        return self._view.documents(session, doc_ids)

    def _count_call(self, session: Session) -> int:
        return self._view.count(session)

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
        async with self._snapshot(Session.open_reader, Session.close_reader) as reader:
            yield PostgresRanges(self._run, self._view, reader)


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
