"""Stores on tables that somebody else made: what they are made of is asked of the server before they are."""

from __future__ import annotations

import abc
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from trio_repair import (
    AbsentMeans,
    ContentDefinition,
    Document,
    Fence,
    InvalidValue,
    Observation,
    Prepared,
    StoreError,
    StoreTraits,
)

from ._jsonb import check_jsonb
from ._postgres import Connection, Server, Session, literal
from ._postgres_catalog import declare, fetch
from ._postgres_layout import PAGE_ROWS, View
from ._postgres_mapping import TextMapping
from ._postgres_preparing import Preparation, apply, text_preparations
from ._postgres_store import MAX_BATCH, PostgresStore, RangedPostgresStore, call_server, make_thread
from ._postgres_table import (
    TextTable,
    TextTableWriter,
    check_content,
    find_text_table,
    is_served,
    text_looking,
    unique_columns,
)
from ._thread import StoreThread

S = TypeVar("S", bound=PostgresStore)

_CURSOR: Final = "trio_repair_scan"


class SortedView(View):
    """A view of a table whose ids no index holds in byte order: a scan sorts them once, behind a cursor."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._sorted: weakref.WeakSet[Connection] = weakref.WeakSet()

    def page(self, session: Session, reader: Connection, after: str) -> list[tuple[str, Observation]]:
        """Some documents of a snapshot, from the first doc_id > `after` on; none at the end."""
        session.use_reader(reader)
        looking = self.looking
        if reader not in self._sorted:
            # Ids alone, so that the sort stays small.
            behind = f"{looking.order} > {literal(after)}"
            sql = f"SELECT {looking.doc_id} FROM {looking.table} WHERE {behind} AND ({looking.held})"
            declare(session, reader, _CURSOR, f"{sql} ORDER BY {looking.order}")
            self._sorted.add(reader)
        ids = [row[0] for row in fetch(session, reader, _CURSOR, PAGE_ROWS)]
        rows = self.rows(session, ids, connection=reader) if ids else {}
        return [(doc_id, self.observation(rows[doc_id])) for doc_id in ids]


class MappedStore(PostgresStore, abc.ABC):
    """A store on a table of somebody else's."""

    comparison: str
    """What its copies are compared by: "text", "digest", "version", "chunks" or "presence"."""

    async def preparations(self) -> Sequence[Preparation]:
        """What could be added to the database to help; nothing of it is needed, and nothing is done.

        Raises:
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed.
        """
        return await self._run(self._suggest)

    async def apply(self, preparations: Sequence[Preparation]) -> None:
        """Do what `preparations` has suggested, all in one transaction.

        Raises:
            StoreUnavailable: it could not be done, and nothing was.

        **If cancelled:** all of it is done, or nothing.
        """
        await self._run(apply, list(preparations))

    @abc.abstractmethod
    def _suggest(self, session: Session) -> list[Preparation]:
        """What `preparations` says, found out in the store's thread."""


class MappedTextStore(MappedStore):
    """Documents in a table of somebody else's; made by `open_postgres_table`."""

    comparison = "digest"

    def __init__(
        self,
        server: Server,
        traits: StoreTraits,
        view: View,
        writer: TextTableWriter,
        *,
        thread: StoreThread[Session],
        table: TextTable,
        served: bool,
    ) -> None:
        super().__init__(server, traits, view, writer, thread=thread)
        self._table = table
        self._served = served

    def _prepare(self, document: Document) -> Prepared | StoreError:
        answer = super()._prepare(document)
        if isinstance(answer, StoreError):
            return answer
        refused = check_jsonb(self._name, self._view.content, document)
        return answer if refused is None else refused

    def _suggest(self, session: Session) -> list[Preparation]:
        del session
        return text_preparations(self._server.store, self._table, served=self._served)


class RangedMappedTextStore(RangedPostgresStore, MappedTextStore):
    """The same, where an index holds the ids in byte order."""


@asynccontextmanager
async def open_mapped(server: Server, find: Callable[[Session, StoreThread[Session]], S]) -> AsyncGenerator[S, None]:
    """A store that `find` makes, in the store's thread, of what it sees in the database."""
    thread = make_thread(server)
    try:
        store = await thread.run(call_server, server, find, (thread,))
        await store._open()
        yield store
    finally:
        await thread.aclose()


def text_finder(
    server: Server, mapping: TextMapping, content: ContentDefinition
) -> Callable[[Session, StoreThread[Session]], MappedTextStore]:
    """How a table of documents is found."""

    def find(session: Session, thread: StoreThread[Session]) -> MappedTextStore:
        table = find_text_table(session, mapping)
        check_content(table, content)
        unique = unique_columns(table)
        served = is_served(session, table)
        looking = text_looking(table, content)
        view = View(server.store, content, looking) if served else SortedView(server.store, content, looking)
        graves = table.deleted is not None
        traits = StoreTraits(
            numbered=table.numbered,
            keeps_metadata=table.metadata is not None,
            fence=Fence.STRONG,
            holds_text=True,
            keeps_tombstones=graves,
            absent=mapping.absent or (AbsentMeans.MISSING if graves else AbsentMeans.MANUAL),
            max_batch=MAX_BATCH,
        )
        kind = RangedMappedTextStore if served else MappedTextStore
        writer = TextTableWriter(table, unique, view)
        return kind(server, traits, view, writer, thread=thread, table=table, served=served)

    return find


def refuse_beside(settings: Any, *names: str) -> None:
    """Refuse settings that are for tables of this library's own.

    Raises:
        InvalidValue: one is given.
    """
    for name in names:
        if name in settings:
            raise InvalidValue(
                name, "is for tables of this library's own; table names an existing one. Give one of them"
            )
