"""The seam `trio_repair.abc.Store` on a driver that blocks: each call is one function in the store's thread."""

from __future__ import annotations

import abc
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import trio

from trio_repair import (
    ContentDefinition,
    Document,
    InvalidValue,
    Observation,
    Prepared,
    Removal,
    StoredDocument,
    StoreError,
    StoreTraits,
    Write,
    WriteAnswer,
)
from trio_repair.abc import ScanPage

from ._fence import Change
from ._preparing import prepare_document
from ._thread import Call, StoreThread

R = TypeVar("R")
T = TypeVar("T")
S = TypeVar("S", bound="ThreadedStore[Any]")


class ThreadedStore(abc.ABC, Generic[R]):
    """The methods of `trio_repair.abc.Store` that are the same for every driver in a thread.

    A kind of store adds `open_scan`, `_open`, and what is done in the thread: `_call`, which runs a function there and
    puts the driver's errors into our words, and the functions that look and write (`_observe_call` and so on).

    Args:
        name: the store's name in errors.
        place: where it is, for people.
        content: what a document's digest covers.
        traits: what it promises.
        thread: where the driver is, with its session.
    """

    def __init__(
        self, name: str, place: str, content: ContentDefinition, traits: StoreTraits, thread: StoreThread[R]
    ) -> None:
        self._name = name
        self._place = place
        self._content = content
        self._traits = traits
        self._thread = thread

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._place}>"

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
            StoreUnavailable: the store cannot be read now.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(doc_ids))
        return await self._run(self._observe_call, list(doc_ids))

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        """Read documents. `StoreRejected` for one whose content is not what its digest says.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.
            StoreUnavailable: the store cannot be read now.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(doc_ids))
        return await self._run(self._read_call, list(doc_ids))

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        """Check that digest and content agree, that the metadata is JSON, and that the store can hold both;
        `StoreRejected` otherwise.

        Raises:
            InvalidValue: more documents than `traits.max_batch`.

        **If cancelled:** nothing has changed.
        """
        self._check_batch(len(documents))
        await trio.lowlevel.checkpoint()
        return [self._prepare(document) for document in documents]

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """Replace each document whose expected token still holds, all in one transaction."""
        self._check_batch(len(writes))
        return await self._change([Change(one.prepared.document.doc_id, one.token, one.prepared) for one in writes])

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        """Take each document's rows away, tombstones too, where the expected token still holds, in one transaction.

        Raises:
            InvalidValue: more documents than `traits.max_batch`, or one twice.
            StoreUnavailable: nothing was removed.

        **If cancelled:** as `write`.
        """
        self._check_batch(len(removals))
        return await self._change([Change(one.doc_id, one.token, None) for one in removals])

    async def count(self) -> int:
        """How many documents and tombstones the store holds.

        Raises:
            StoreUnavailable: the store cannot be read now.

        **If cancelled:** nothing has changed.
        """
        return await self._run(self._count_call)

    async def aclose(self) -> None:
        """Close the connections and end the thread; a thread that hangs is left behind. Idempotent.

        **If cancelled:** the store is closed all the same.
        """
        await self._thread.aclose()

    # In the Trio thread.

    @abc.abstractmethod
    async def _open(self) -> None:
        """See that the store is there and can be read."""

    def _prepare(self, document: Document) -> Prepared | StoreError:
        return prepare_document(self._name, self._content, document)

    def _check_batch(self, size: int) -> None:
        if size > self._traits.max_batch:
            raise InvalidValue(
                "batch", f"names {size} documents; the {self._name} store takes {self._traits.max_batch}"
            )

    async def _change(self, changes: list[Change]) -> Sequence[WriteAnswer]:
        if len({change.doc_id for change in changes}) < len(changes):
            raise InvalidValue("batch", "names a document twice; one call writes each document once")
        return await self._run(self._change_call, changes)

    @asynccontextmanager
    async def _snapshot(self, begin: Callable[[R], T], close: Callable[[R, T], object]) -> AsyncGenerator[T, None]:
        """What `begin` gives, until `close`, for which nobody waits."""
        snapshot = await self._run(begin)
        try:
            yield snapshot
        finally:
            self._thread.post(lambda call: close(call.resource, snapshot))

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        return await self._thread.run(self._call, work, args)

    # In the store's thread.

    @abc.abstractmethod
    def _call(self, call: Call[R], work: Callable[..., T], args: tuple[Any, ...]) -> T:
        """Do some work, and say in our own words what goes wrong with the driver."""

    @abc.abstractmethod
    def _observe_call(self, session: R, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        """What is held of each document, in order."""

    @abc.abstractmethod
    def _read_call(self, session: R, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        """What is stored of each document, in order."""

    @abc.abstractmethod
    def _count_call(self, session: R) -> int:
        """How many documents and tombstones are held."""

    @abc.abstractmethod
    def _change_call(self, session: R, changes: Sequence[Change]) -> Sequence[WriteAnswer]:
        """Make these changes, all or nothing; each that still holds its token, or the answer why not."""


class Pages:
    """The pages of one scan; each is asked for by calls of its own, so that other calls come in between.

    Args:
        ask: gives the page that begins after an id; an empty one is the end.
        after: the id to begin after; None: at the start.
    """

    def __init__(self, ask: Callable[[str], Awaitable[ScanPage]], after: str | None) -> None:
        self._ask = ask
        self._after = "" if after is None else after

    def __aiter__(self) -> Pages:
        return self

    async def __anext__(self) -> ScanPage:
        page = await self._ask(self._after)
        if not page:
            raise StopAsyncIteration
        self._after = page[-1][0]
        return page


@asynccontextmanager
async def opened(store: S) -> AsyncGenerator[S, None]:
    """A store that was looked at, closed on the way out."""
    try:
        await store._open()
        yield store
    finally:
        await store.aclose()
