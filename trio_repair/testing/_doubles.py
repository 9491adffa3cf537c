"""Small doubles: documents made in one call, stores that take their time, an instrument that remembers."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, Final, Literal

import trio

from trio_repair import (
    ContentDefinition,
    Document,
    DocumentVersion,
    EngineEvent,
    EventKind,
    InvalidValue,
    Observation,
    Prepared,
    Removal,
    RepairResult,
    StoredDocument,
    StoreError,
    StoreTraits,
    Write,
    WriteAnswer,
)
from trio_repair.abc import ScanPage, Store, Stores
from trio_repair.stores.memory import MemoryStore

SEED_LATENCIES: Final[Mapping[str, float]] = MappingProxyType({"text": 0.150, "vector": 0.100, "cache": 0.050})
"""Seconds that an update of each store takes in the simulation which this project grew out of."""

OPERATIONS: Final = ("observe", "read", "prepare", "write", "remove", "scan", "count")
"""The operations that doubles can slow down or spoil. "scan" is each page of an open scan."""


def make_document(
    doc_id: str,
    text: str = "",
    *,
    number: int | None = 1,
    metadata: Mapping[str, Any] | None = None,
    updated_at: dt.datetime | None = None,
    content: ContentDefinition | None = None,
) -> Document:
    """A document whose digest is right.

    Args:
        doc_id: 1 to 2,048 bytes of UTF-8.
        text: the content; an empty text is a text.
        number: orders the versions of this document; None: never ordered.
        metadata: JSON values by key.
        updated_at: timezone-aware; for people.
        content: what the digest covers; None: the text alone.

    Raises:
        InvalidValue: one of these cannot be used.
    """
    given = {} if metadata is None else metadata
    digest = (ContentDefinition() if content is None else content).digest(text, given)
    version = DocumentVersion(number=number, digest=digest, updated_at=updated_at)
    return Document(doc_id=doc_id, text=text, metadata=given, version=version)


class SimulatedStore:
    """A store whose calls take time on Trio's clock, real or virtual.

    The time passes before the call reaches the store inside, so a call that is cancelled in it has no effect.

    Args:
        inner: the store that does the work.
        latencies: seconds by operation ("observe", "read", "prepare", "write", "remove", "count", and "scan" for
            each page); what is not named takes none. It may be changed while the store is in use.

    Raises:
        InvalidValue: an operation or a latency that does not exist.
    """

    def __init__(self, inner: Store, latencies: Mapping[str, float]) -> None:
        for operation, seconds in latencies.items():
            if operation not in OPERATIONS:
                raise InvalidValue("latencies", f"there is no operation {operation!r}; use {', '.join(OPERATIONS)}")
            if not math.isfinite(seconds) or seconds < 0:
                raise InvalidValue("latencies", f"{operation!r} must take finite seconds of at least 0, not {seconds}")
        self.inner = inner
        self.latencies = dict(latencies)

    @classmethod
    def seed(cls, name: Literal["text", "vector", "cache"]) -> SimulatedStore:
        """An empty `MemoryStore` called `name` whose writes and removals take `SEED_LATENCIES[name]`."""
        seconds = SEED_LATENCIES[name]
        return cls(MemoryStore(name), {"write": seconds, "remove": seconds})

    @property
    def traits(self) -> StoreTraits:
        """Those of the store inside."""
        return self.inner.traits

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        """As the store inside, later. **If cancelled:** as the store inside."""
        await self._take_time("observe")
        return await self.inner.observe(doc_ids)

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        """As the store inside, later. **If cancelled:** as the store inside."""
        await self._take_time("read")
        return await self.inner.read(doc_ids)

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        """As the store inside, later. **If cancelled:** as the store inside."""
        await self._take_time("prepare")
        return await self.inner.prepare(documents)

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """As the store inside, later. **If cancelled:** as the store inside."""
        await self._take_time("write")
        return await self.inner.write(writes)

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        """As the store inside, later. **If cancelled:** as the store inside."""
        await self._take_time("remove")
        return await self.inner.remove(removals)

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> AsyncGenerator[AsyncIterator[ScanPage], None]:
        """As the store inside; each page comes later. **If cancelled:** as the store inside."""
        async with self.inner.open_scan(after) as pages:
            yield _SlowPages(self, pages)

    async def count(self) -> int:
        """As the store inside, later. **If cancelled:** as the store inside."""
        await self._take_time("count")
        return await self.inner.count()

    async def aclose(self) -> None:
        """Close the store inside. **If cancelled:** as the store inside."""
        await self.inner.aclose()

    async def _take_time(self, operation: str) -> None:
        seconds = self.latencies.get(operation, 0.0)
        if seconds > 0:
            await trio.sleep(seconds)


class _SlowPages:
    def __init__(self, store: SimulatedStore, pages: AsyncIterator[ScanPage]) -> None:
        self._store = store
        self._pages = pages

    def __aiter__(self) -> AsyncIterator[ScanPage]:
        return self

    async def __anext__(self) -> ScanPage:
        await self._store._take_time("scan")
        return await anext(self._pages)


def seed_stores() -> Stores:
    """Three empty `SimulatedStore.seed` stores: text 150 ms an update, vector 100 ms, cache 50 ms."""
    return Stores(
        text=SimulatedStore.seed("text"), vector=SimulatedStore.seed("vector"), cache=SimulatedStore.seed("cache")
    )


class RecordingInstrument:
    """Remembers every event of an engine, for assertions. It never forgets, so use it on runs of known length."""

    def __init__(self) -> None:
        self.events: list[EngineEvent] = []

    def __repr__(self) -> str:
        return f"<RecordingInstrument: {len(self.events)} events>"

    def on_event(self, event: EngineEvent) -> None:
        """Remember `event`."""
        self.events.append(event)

    @property
    def kinds(self) -> list[EventKind]:
        """What happened, in order."""
        return [event.kind for event in self.events]

    @property
    def results(self) -> list[RepairResult]:
        """The result of each job that has settled, in order."""
        return [event.result for event in self.events if event.result is not None]

    def of(self, *kinds: EventKind) -> list[EngineEvent]:
        """The events of these kinds, in order."""
        return [event for event in self.events if event.kind in kinds]
