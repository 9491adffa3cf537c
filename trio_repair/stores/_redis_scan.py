"""Order for a server that has none: a scan of all keys, spooled to the disk and given out in byte order of the ids."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from trio_repair import DocumentVersion, Observation, Presence, StoreUnavailable
from trio_repair.abc import ScanPage

from ._encoding import moment_text, parse_moment
from ._redis_changes import Ledger
from ._redis_connections import Command, Connections
from ._redis_entries import Entry, Form
from ._redis_keys import Keys
from ._spool import Spool
from ._thread import Call, StoreThread

_PAGE: Final = 1000
_KEYS_PER_STEP: Final = 1000
"""Keys that the server goes over at a time; in between, it serves others."""


class Scanner:
    """Goes over all keys of one store."""

    def __init__(self, store: str, connections: Connections, ledger: Ledger, form: Form, keys: Keys) -> None:
        self._store = store
        self._connections = connections
        self._ledger = ledger
        self._form = form
        self._keys = keys

    async def count(self) -> int:
        """How many entries there are: all keys are gone over, since the database may hold others.

        Raises:
            StoreUnavailable: the server cannot be asked now.

        **If cancelled:** nothing has changed.
        """
        total = 0
        cursor = b"0"
        async with self._connections.lend() as connection:
            while True:
                replies = await self._connections.ask(connection, [self._step(cursor)])
                cursor, ids = self._ids(replies)
                total += len(ids)
                if cursor == b"0":
                    return total

    async def fill(self, thread: StoreThread[Spool]) -> None:
        """Put every entry into the spool.

        The cursor of a scan means something to the server that gave it out, as long as that runs. So all is asked on
        one connection: one that is lost ends the scan.

        Raises:
            StoreUnavailable: the server cannot be asked now, or the spool failed.

        **If cancelled:** nothing has changed.
        """
        cursor = b"0"
        async with self._connections.lend() as connection:
            while True:
                cursor, ids = self._ids(await self._connections.ask(connection, [self._step(cursor)]))
                looks = self._ledger.looks(ids, content=self._form.reads_to_observe)
                replies = await self._connections.ask(connection, looks) if looks else []
                entries = await self._ledger.entries(ids, replies, content=self._form.reads_to_observe)
                rows = [
                    (doc_id, _packed(entry.observation))
                    for doc_id, entry in zip(ids, entries, strict=True)
                    if isinstance(entry, Entry)
                ]
                if rows:
                    await self._spool(thread, rows)
                if cursor == b"0":
                    return

    def _step(self, cursor: bytes) -> Command:
        return Command(b"SCAN", (cursor, b"MATCH", self._keys.glob, b"COUNT", _KEYS_PER_STEP, b"TYPE", self._form.kind))

    def _ids(self, replies: Sequence[object]) -> tuple[bytes, list[str]]:
        self._connections.refuse_errors(replies)
        (reply,) = replies
        assert isinstance(reply, list)
        cursor, keys = reply
        found = (self._keys.doc_id(key) for key in dict.fromkeys(keys))
        return cursor, [doc_id for doc_id in found if doc_id is not None]

    async def _spool(self, thread: StoreThread[Spool], rows: list[tuple[str, bytes]]) -> None:
        try:
            await thread.run(_add, rows)
        except sqlite3.Error as error:
            raise self._spool_failed(error) from error

    def _spool_failed(self, error: sqlite3.Error) -> StoreUnavailable:
        return StoreUnavailable(self._store, f"the spool of a scan failed ({type(error).__name__})")

    @asynccontextmanager
    async def open(self, after: str | None) -> AsyncGenerator[Pages, None]:
        """The pages of one scan. **If cancelled:** the spool is let go."""
        thread: StoreThread[Spool] = StoreThread(
            self._store, open_resource=lambda: Spool(after), close_resource=Spool.close, interrupt=_cannot_interrupt
        )
        try:
            self._connections.check_open()
            yield Pages(self, thread)
        finally:
            await thread.aclose()  # noqa: ASYNC102 - bounded and shielded in there

    async def page(self, thread: StoreThread[Spool]) -> ScanPage:
        """The next page; empty at the end. **If cancelled:** nothing has changed."""
        try:
            rows = await thread.run(_next_page)
        except sqlite3.Error as error:
            raise self._spool_failed(error) from error
        # Of a key that came twice, which a scan may do, the later look counts.
        return [(doc_id, _unpacked(held[-1])) for doc_id, held in rows]


class Pages:
    """The pages of one scan: everything is spooled before the first one comes."""

    def __init__(self, scanner: Scanner, thread: StoreThread[Spool]) -> None:
        self._scanner = scanner
        self._thread = thread
        self._filled = False

    def __aiter__(self) -> Pages:
        return self

    async def __anext__(self) -> ScanPage:
        if not self._filled:
            await self._scanner.fill(self._thread)
            self._filled = True
        page = await self._scanner.page(self._thread)
        if not page:
            raise StopAsyncIteration
        return page


def _add(call: Call[Spool], rows: list[tuple[str, bytes]]) -> None:
    call.resource.add(rows)


def _next_page(call: Call[Spool]) -> list[tuple[str, list[bytes]]]:
    return call.resource.next_page(_PAGE)


def _cannot_interrupt(_spool: Spool) -> None:
    """A step of the spool is short."""


def _packed(view: Observation) -> bytes:
    version = view.version
    assert version is not None
    moment = None if version.updated_at is None else moment_text(version.updated_at)
    return json.dumps([view.token, view.intact, version.number, version.digest, moment]).encode()


def _unpacked(row: bytes) -> Observation:
    token, intact, number, digest, moment = json.loads(row)
    version = DocumentVersion(number=number, digest=digest, updated_at=parse_moment(moment))
    return Observation(presence=Presence.LIVE, token=token, intact=intact, version=version)
