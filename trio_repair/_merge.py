"""Read several stores side by side, in order of document id, in memory bounded by two pages for each store.

The scans are opened together, each a snapshot of its store, and each is read one page ahead by a task of its own.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Final, TypeVar

import attrs
import trio

from ._errors import CheckIncomplete, StoreError, StoreMisbehaved, StoreUnavailable
from ._summary import ODD, summarize
from ._views import Observation, Presence, StoreTraits
from .abc import ScanPage, Store, SummarizingStore, SummaryPage

_A = TypeVar("_A")

ABSENT: Final = Observation(presence=Presence.ABSENT, token="")
"""What a scan says of a document by passing over it. The token is none of a store's, so it fences nothing."""


class StoreFailed(Exception):
    """A store could not be read. Internal: `report_failures` turns it into what callers see."""

    def __init__(self, role: str, error: StoreError) -> None:
        super().__init__(f"{role} store: {error.problem}")
        self.role = role
        self.error = error


@attrs.define(eq=False)
class StoreReader:
    """Calls one store: never more at once than it allows, and none for longer than `timeout` seconds."""

    role: str
    store: Store
    timeout: float
    _gate: trio.Semaphore = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._gate = trio.Semaphore(self.store.traits.max_calls)

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        """Look at documents again.

        Raises:
            StoreFailed: the call failed, took too long, or gave too few or too many answers.
        """
        return await self._answers(self.store.observe, doc_ids)

    async def look(self, page: SummaryPage, doc_ids: Sequence[str]) -> Sequence[Observation]:
        """Look at documents of a page, in the snapshot that it is of.

        Raises:
            StoreFailed: the call failed, took too long, or gave too few or too many answers.
        """
        return await self._answers(page.look, doc_ids)

    async def _answers(
        self, call: Callable[[Sequence[str]], Awaitable[Sequence[_A]]], doc_ids: Sequence[str]
    ) -> Sequence[_A]:
        answers: Sequence[_A] = ()
        async with self._gate:
            with self._translated(), trio.move_on_after(self.timeout) as scope:
                answers = await call(doc_ids)
        self._check_in_time(scope)
        if len(answers) != len(doc_ids):
            raise self._misbehaved(f"a look gave {len(answers)} answers for {len(doc_ids)} documents")
        return answers

    async def pump(self, after: str | None, pages: trio.MemorySendChannel[SummaryPage], finished: trio.Event) -> None:
        """Scan the store into `pages`, with an empty page at the end.

        The channel is left open: a scan that fails must not look like one that has come to its end.

        Raises:
            StoreFailed: a call failed or took too long, or the scan is not in strictly ascending order.
        """
        # One scope around it all, whose deadline is set for each call: a scope around the opening alone would have
        # to be left before the scopes and nurseries that the store opens in there.
        with self._translated(), trio.CancelScope() as scope:
            async with AsyncExitStack() as stack:
                async with self._timed_call(scope):
                    store = self.store
                    summarizing = isinstance(store, SummarizingStore)
                    opened: AbstractAsyncContextManager[AsyncIterator[Any]] = (
                        store.open_summaries(after) if isinstance(store, SummarizingStore) else store.open_scan(after)
                    )
                    scan = aiter(await stack.enter_async_context(opened))
                last = after
                while True:
                    async with self._timed_call(scope):
                        page = await anext(scan, None)
                    if page is None:
                        break
                    page = page if summarizing else _Listed(page, store.traits)
                    if page.ids:
                        last = self._check_order(page.ids, last)
                        await pages.send(page)
                await pages.send(_Listed((), store.traits))
                # Its pages may be looked at until all have been compared.
                await finished.wait()
                scope.deadline = trio.current_time() + self.timeout
            scope.deadline = math.inf
        self._check_in_time(scope)

    @asynccontextmanager
    async def _timed_call(self, scope: trio.CancelScope) -> AsyncGenerator[None, None]:
        async with self._gate:
            scope.deadline = trio.current_time() + self.timeout
            try:
                yield
            finally:
                scope.deadline = math.inf

    @contextmanager
    def _translated(self) -> Generator[None, None, None]:
        try:
            yield
        except StoreFailed:
            raise
        except StoreError as error:
            raise StoreFailed(self.role, error) from error
        except Exception as error:
            # The message of a foreign exception may quote the document: only its type is safe to show.
            problem = f"failed with {type(error).__name__}; see the cause"
            raise StoreFailed(self.role, StoreUnavailable(self.role, problem)) from error

    def _check_in_time(self, scope: trio.CancelScope) -> None:
        if scope.cancelled_caught:
            problem = f"did not answer within {self.timeout:g} s (store_call_timeout)"
            raise StoreFailed(self.role, StoreUnavailable(self.role, problem))

    def _check_order(self, ids: Sequence[str], last: str | None) -> str:
        if any(map(operator.ge, ids, ids[1:])) or (last is not None and ids[0] <= last):
            raise self._misbehaved("its scan is not in strictly ascending byte order of doc_id")
        return ids[-1]

    def _misbehaved(self, problem: str) -> StoreFailed:
        return StoreFailed(self.role, StoreMisbehaved(self.role, problem))


class _Listed:
    """A page of observations, summarized here: for stores that do not do it themselves."""

    def __init__(self, page: ScanPage, traits: StoreTraits) -> None:
        self._views = dict(page)
        self.ids: Sequence[str] = [doc_id for doc_id, _ in page]
        self.summaries: Sequence[str] = [summarize(view, traits) for _, view in page]

    async def look(self, doc_ids: Sequence[str]) -> Sequence[Observation]:
        return [self._views[doc_id] for doc_id in doc_ids]


@attrs.frozen
class Slice:
    """What one store holds of the documents of one range of ids."""

    reader: StoreReader
    page: SummaryPage
    ids: Sequence[str]
    summaries: Sequence[str]

    async def look(self, doc_ids: Sequence[str]) -> dict[str, Observation]:
        """What it holds of these, whose ids are among its own."""
        answers = await self.reader.look(self.page, doc_ids) if doc_ids else ()
        return dict(zip(doc_ids, answers, strict=True))


@attrs.frozen
class Window:
    """What all stores hold of the documents of one range of ids. No document is in two windows."""

    slices: Mapping[str, Slice]
    bound: str
    """The last id that it covers."""

    def compare(self) -> tuple[int, list[tuple[str, str | None]]]:
        """How many documents there are, and those on which the stores may disagree, each with the id before it.

        This is the hot loop of a check. What it calls equal, `diagnose` does too; `test_check.py` compares them.
        """
        text, vector, cache = self.slices["text"], self.slices["vector"], self.slices.get("cache")
        odd: set[str] = set()
        copies: set[tuple[str, str]] | None = None
        if text.ids != vector.ids or text.summaries != vector.summaries:
            copies = set(zip(text.ids, text.summaries, strict=True))
            others = zip(vector.ids, vector.summaries, strict=True)
            odd.update(doc_id for doc_id, _ in copies.symmetric_difference(others))
        for one in self.slices.values():
            if ODD in one.summaries:
                odd.update(doc_id for doc_id, summary in zip(one.ids, one.summaries, strict=True) if summary == ODD)
        if cache is not None and (cache.ids != text.ids or cache.summaries != text.summaries):
            copies = set(zip(text.ids, text.summaries, strict=True)) if copies is None else copies
            odd.update(doc_id for doc_id, _ in set(zip(cache.ids, cache.summaries, strict=True)).difference(copies))
        if not odd:
            # Whatever is in the vector store and the cache is in the text store too.
            return len(text.ids), []
        ids = sorted({doc_id for one in self.slices.values() for doc_id in one.ids})
        before = zip(ids, [None, *ids[:-1]], strict=True)
        return len(ids), [(doc_id, previous) for doc_id, previous in before if doc_id in odd]

    async def look(self, doc_ids: Sequence[str]) -> dict[str, dict[str, Observation]]:
        """For each of these documents, by role, what each store holds."""
        views: dict[str, dict[str, Observation]] = {doc_id: {} for doc_id in doc_ids}
        for role, one in self.slices.items():
            held = set(one.ids).intersection(doc_ids)
            found = await one.look([doc_id for doc_id in doc_ids if doc_id in held])
            for doc_id, view in views.items():
                view[role] = found.get(doc_id, ABSENT)
        return views


@attrs.define
class _Lane:
    """The page that one store's scan has come to. `start` is the first entry that no window has taken."""

    reader: StoreReader
    pages: trio.MemoryReceiveChannel[SummaryPage]
    page: SummaryPage
    start: int = 0
    ended: bool = False

    async def fill(self) -> None:
        """Have an entry to give, unless the scan has ended."""
        if self.start < len(self.page.ids) or self.ended:
            return
        self.page = await self.pages.receive()
        self.start = 0
        self.ended = not self.page.ids

    def take(self, bound: str) -> Slice:
        """What the store holds up to and including `bound`."""
        page, start = self.page, self.start
        self.start = end = bisect_right(page.ids, bound, lo=start)
        if start == 0 and end == len(page.ids):
            return Slice(self.reader, page, page.ids, page.summaries)
        return Slice(self.reader, page, page.ids[start:end], page.summaries[start:end])


async def merge_scans(
    readers: Sequence[StoreReader],
    handle: Callable[[Window], Awaitable[None]],
    *,
    after: str | None,
) -> None:
    """Scan all stores and hand over window by window, in ascending order.

    Raises:
        StoreFailed: a store could not be read; in an ExceptionGroup. The scans of all stores are closed.

    **If cancelled:** the scans are closed; nothing has changed.
    """
    async with trio.open_nursery() as nursery:
        lanes: dict[str, _Lane] = {}
        finished = trio.Event()
        for reader in readers:
            send, receive = trio.open_memory_channel[SummaryPage](0)
            lanes[reader.role] = _Lane(reader, receive, _Listed((), reader.store.traits))
            nursery.start_soon(reader.pump, after, send, finished)
        while True:
            for lane in lanes.values():
                await lane.fill()
            ends = [lane.page.ids[-1] for lane in lanes.values() if not lane.ended]
            if not ends:
                finished.set()
                break
            # Up to the smallest last id, every store has said all that it holds.
            bound = min(ends)
            await handle(Window({role: lane.take(bound) for role, lane in lanes.items()}, bound))


async def report_failures(run: Callable[[], Awaitable[None]]) -> None:
    """Await `run()`, and turn the failures of stores in it into one error.

    Raises:
        StoreMisbehaved: an adapter broke its contract.
        CheckIncomplete: stores could not be read.
    """
    failed: list[StoreFailed] = []
    try:
        await run()
    except* StoreFailed as group:
        failed.extend(_leaves(group))
    if not failed:
        return
    for failure in failed:
        if isinstance(failure.error, StoreMisbehaved):
            raise failure.error
    stores = tuple(dict.fromkeys(failure.role for failure in failed))
    # By its role here, whatever name the store was given.
    problems = "; ".join(f"{failure.role} store: {failure.error.problem}" for failure in failed)
    raise CheckIncomplete(f"could not read every store to the end: {problems}", stores=stores) from failed[0].error


def _leaves(group: BaseExceptionGroup[StoreFailed]) -> Iterator[StoreFailed]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
