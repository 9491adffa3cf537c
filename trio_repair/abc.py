"""The seams: what the engine asks of stores, embedders, chunkers and instruments.

These are Protocols. Implement the methods; inherit nothing. `trio_repair.testing.check_store`
holds a store to every sentence below.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias, runtime_checkable

import attrs

from ._errors import StoreError
from ._events import EngineEvent
from ._model import Document
from ._views import (
    Observation,
    Prepared,
    RangeDigest,
    RangeListing,
    Removal,
    StoredDocument,
    StoreTraits,
    Write,
    WriteAnswer,
)

__all__ = [
    "CallSize",
    "Chunk",
    "Chunker",
    "Embedder",
    "Instrument",
    "ListingsAtHand",
    "RangedStore",
    "Ranges",
    "ScanPage",
    "Store",
    "Stores",
]

ScanPage: TypeAlias = Sequence[tuple[str, Observation]]
"""Consecutive documents of a scan, in ascending order of doc_id."""


@runtime_checkable
class Store(Protocol):
    """One place that keeps copies of documents. Batch-first: each method answers per document, in the order asked.

    A StoreError *in* an answer concerns one document; a StoreError *raised* concerns the call as a whole, and then
    nothing was written. Driver exceptions never leave the store untranslated. Whoever opened a store closes it.

    **If cancelled:** a call ends soon, and raises Cancelled or returns its true result; made in a cancelled scope, it
    raises. `observe`, `read` and `prepare` have changed nothing. `write` and `remove` may have landed for each document
    or not, but never in part: a document's rows change together or not at all. What had not begun to be committed when
    the call ended never lands.
    """

    @property
    def traits(self) -> StoreTraits:
        """What this store promises; constant while it is open."""
        ...

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        """Look at documents without their content."""
        ...

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        """Read documents. `StoreRejected` for one whose content cannot be given back whole."""
        ...

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        """Do everything slow or fallible that a write needs (chunk, embed, validate), without any effect."""
        ...

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """Replace each document whose expected token still holds. A tombstone deletes. No doc_id appears twice."""
        ...

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        """Take each document's rows away, tombstones too, where the expected token still holds."""
        ...

    def open_scan(self, after: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[ScanPage]]:
        """One snapshot of every live document and tombstone with doc_id > `after`, in byte order of UTF-8 doc_id."""
        ...

    async def count(self) -> int:
        """How many documents and tombstones the store holds; may be an estimate.

        The limits on mass changes rest on it. With hundreds of documents held, even an estimate is above 0 and within
        a factor of 2 of the truth.
        """
        ...

    async def aclose(self) -> None:
        """Release everything. Idempotent, and bounded in time even if the driver hangs.

        Calls that touch what is stored raise `StoreUnavailable` from then on.
        """
        ...


class Ranges(Protocol):
    """One snapshot of a store, range by range. Ids are in byte order of UTF-8; `None` as a bound means "to the end".

    A document's summary is what `trio_repair.summarize` makes of its observation, or "" where that costs too much.
    Several calls may come for one range, and for ranges behind the last one; all are asked one after the other.

    **If cancelled:** nothing has changed.
    """

    async def ranges(self, after: str | None, size: int, count: int) -> Sequence[tuple[str, RangeDigest]]:
        """Up to `count` consecutive ranges of up to `size` documents, each with its last id; none at the end.

        The first begins after `after`, each other after the last id of the one before. No range is empty.
        """
        ...

    async def digests(self, after: str | None, bounds: Sequence[str | None], most: int) -> Sequence[RangeDigest | None]:
        """What is held of the ranges (after, bounds[0]], (bounds[0], bounds[1]], ...; only the last bound may be None.

        None for a range that is to be listed instead, as one with more than `most` documents.
        """
        ...

    async def listing(self, after: str | None, bound: str | None) -> RangeListing:
        """The entries of the range (after, bound], or so many of the first as make a page."""
        ...

    async def look(self, doc_ids: Sequence[str]) -> Sequence[Observation]:
        """What the snapshot holds of some documents, in the order asked."""
        ...


@runtime_checkable
class ListingsAtHand(Protocol):
    """What `Ranges` may offer besides: listings that need no call, for which a check does not wait until one ends."""

    def at_hand(self, after: str | None, bound: str | None) -> RangeListing | None:
        """What `Ranges.listing` would give, if it is at hand; also asked for while another call is under way."""
        ...


@runtime_checkable
class RangedStore(Protocol):
    """What a `Store` may offer besides: a check passes ranges on which stores agree by one comparison of digests."""

    def open_ranges(self, after: str | None = None) -> AbstractAsyncContextManager[Ranges]:
        """A snapshot, as `Store.open_scan`. Only ids greater than `after` will be asked for."""
        ...


@attrs.frozen(kw_only=True)
class Stores:
    """The stores of one engine, by role. Text and vector are critical; the cache is not."""

    text: Store
    vector: Store
    cache: Store | None = None

    @property
    def critical(self) -> Mapping[str, Store]:
        """The stores that must be read back equal for a repair to succeed."""
        return {"text": self.text, "vector": self.vector}

    @property
    def by_name(self) -> Mapping[str, Store]:
        """All stores, in the order text, vector, cache."""
        return self.critical if self.cache is None else {**self.critical, "cache": self.cache}


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors."""

    @property
    def model(self) -> str:
        """Names what makes the vectors; another name means that stored vectors are stale."""
        ...

    @property
    def dimension(self) -> int:
        """How many numbers one vector has."""
        ...

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """One vector of `dimension` finite numbers for each text, in order. It may be cancelled at any await."""
        ...


@runtime_checkable
class CallSize(Protocol):
    """What an `Embedder` may offer besides: how many texts it likes to be given."""

    @property
    def texts_per_call(self) -> int:
        """One call of `embed` has so many texts at most, and 128 where an embedder does not say. Read once. A text that
        makes a call fail has all of its company embedded again, in halves: the more, the larger calls are.
        """
        ...


@attrs.frozen
class Chunk:
    """A piece of a text: `text` is exactly what stands at offset `start`, in characters."""

    start: int
    text: str


@runtime_checkable
class Chunker(Protocol):
    """Cuts a text into pieces that together cover every character of it. Pure, and not async."""

    @property
    def identity(self) -> str:
        """Names the method and its parameters; another name means that stored chunks are stale."""
        ...

    def chunk(self, text: str) -> Sequence[Chunk]:
        """The pieces, by ascending start, with neither gap nor lost end; at least one, even for an empty text."""
        ...


@runtime_checkable
class Instrument(Protocol):
    """Watches an engine. One that raises is logged once and dropped; it never disturbs a repair.

    An instrument that is to be told of phases and store calls as well has an attribute ``also_hears`` besides: a
    collection of `EventKind.PHASE`, `CALL_SENT` and `CALL_ENDED`, read when the engine is opened.
    """

    def on_event(self, event: EngineEvent) -> None:
        """Called synchronously, in the step in which something happens. Return soon; do not block.

        That is in whatever task brings it about; where a deadline does, in the scheduler, where no task is current.
        """
        ...
