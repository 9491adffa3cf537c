"""Read several stores side by side, in order of document id, in memory bounded by two pages for each store.

The scans are opened together, each a snapshot of its store, and each is read one page ahead by a task of its own.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_right
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Final, TypeAlias

import attrs
import trio

from ._errors import CheckIncomplete, StoreError, StoreMisbehaved, StoreUnavailable
from ._views import Observation, Presence, StoreTraits
from .abc import ScanPage, Store

Window: TypeAlias = Mapping[str, Mapping[str, Observation]]
"""For each store, what it holds of the documents of one range of ids. No document is in two windows."""

ABSENT: Final = Observation(presence=Presence.ABSENT, token="")
"""What a scan says of a document by passing over it. The token is none of a store's, so it fences nothing."""

_END: Final[ScanPage] = ()


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
        answers: Sequence[Observation | StoreError] = ()
        async with self._gate:
            with self._translated(), trio.move_on_after(self.timeout) as scope:
                answers = await self.store.observe(doc_ids)
        self._check_in_time(scope)
        if len(answers) != len(doc_ids):
            raise self._misbehaved(f"observe gave {len(answers)} answers for {len(doc_ids)} documents")
        return answers

    async def pump(self, after: str | None, pages: trio.MemorySendChannel[ScanPage]) -> None:
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
                    scan = aiter(await stack.enter_async_context(self.store.open_scan(after)))
                last = after
                while True:
                    async with self._timed_call(scope):
                        page = await anext(scan, None)
                    if page is None:
                        break
                    if page:
                        last = self._check_order(page, last)
                        await pages.send(page)
                scope.deadline = trio.current_time() + self.timeout
            scope.deadline = math.inf
            await pages.send(_END)
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

    def _check_order(self, page: ScanPage, last: str | None) -> str:
        ids = [doc_id for doc_id, _ in page]
        if any(map(operator.ge, ids, ids[1:])) or (last is not None and ids[0] <= last):
            raise self._misbehaved("its scan is not in strictly ascending byte order of doc_id")
        return ids[-1]

    def _misbehaved(self, problem: str) -> StoreFailed:
        return StoreFailed(self.role, StoreMisbehaved(self.role, problem))


@attrs.define
class _Lane:
    """The page that one store's scan has come to. `start` is the first entry that no window has taken."""

    pages: trio.MemoryReceiveChannel[ScanPage]
    page: ScanPage = ()
    start: int = 0
    ended: bool = False

    async def fill(self) -> None:
        """Have an entry to give, unless the scan has ended."""
        if self.start < len(self.page) or self.ended:
            return
        self.page = await self.pages.receive()
        self.start = 0
        self.ended = not self.page

    def take(self, bound: str) -> dict[str, Observation]:
        """What the store holds up to and including `bound`."""
        end = bisect_right(self.page, bound, lo=self.start, key=operator.itemgetter(0))
        start, self.start = self.start, end
        return dict(self.page[start:end])


async def merge_scans(
    readers: Sequence[StoreReader],
    handle: Callable[[Window, str], Awaitable[None]],
    *,
    after: str | None,
) -> None:
    """Scan all stores and hand over window by window, each with the last id that it covers, in ascending order.

    Raises:
        StoreFailed: a store could not be read; in an ExceptionGroup. The scans of all stores are closed.

    **If cancelled:** the scans are closed; nothing has changed.
    """
    async with trio.open_nursery() as nursery:
        lanes: dict[str, _Lane] = {}
        for reader in readers:
            send, receive = trio.open_memory_channel[ScanPage](0)
            lanes[reader.role] = _Lane(receive)
            nursery.start_soon(reader.pump, after, send)
        while True:
            for lane in lanes.values():
                await lane.fill()
            ends = [lane.page[-1][0] for lane in lanes.values() if not lane.ended]
            if not ends:
                break
            # Up to the smallest last id, every store has said all that it holds.
            bound = min(ends)
            await handle({role: lane.take(bound) for role, lane in lanes.items()}, bound)


@attrs.frozen
class Sieve:
    """Lets documents through on which all stores plainly agree, so that only the rest need a diagnosis.

    This is the hot loop of a check. What it calls equal, `diagnose` does too; `test_check.py` compares them.
    """

    traits: Mapping[str, StoreTraits]

    def suspects(self, window: Window) -> Iterator[tuple[str, str | None, Mapping[str, Observation]]]:
        """Documents that may diverge: the id, the id before it in this window, and what each store holds."""
        text, vector = window["text"], window["vector"]
        cache = window.get("cache")
        wanted_text, wanted_vector = self.traits["text"].embedding, self.traits["vector"].embedding
        cached = {} if cache is None else cache
        wanted_cache = None if cache is None else self.traits["cache"].embedding
        previous: str | None = None
        for doc_id in sorted({*text, *vector, *cached}):
            in_text, in_vector, in_cache = text.get(doc_id), vector.get(doc_id), cached.get(doc_id)
            if not (
                in_text is not None
                and in_vector is not None
                and _same(in_text, in_vector)
                and (wanted_text is None or in_text.embedding == wanted_text)
                and (wanted_vector is None or in_vector.embedding == wanted_vector)
                and (
                    in_cache is None
                    or (_same(in_text, in_cache) and (wanted_cache is None or in_cache.embedding == wanted_cache))
                )
            ):
                views = {"text": in_text or ABSENT, "vector": in_vector or ABSENT}
                if cache is not None:
                    views["cache"] = in_cache or ABSENT
                yield doc_id, previous, views
            previous = doc_id


def _same(one: Observation, other: Observation) -> bool:
    """Both live and whole, with one version."""
    if one.presence is not Presence.LIVE or other.presence is not Presence.LIVE:
        return False
    first, second = one.version, other.version
    return (
        one.intact
        and other.intact
        and first is not None
        and second is not None
        and first.digest == second.digest
        and first.number == second.number
    )


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
