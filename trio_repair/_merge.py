"""Read several stores side by side, in order of document id, in memory bounded by two pages for each store.

The scans are opened together, each a snapshot of its store, and each is read ahead by one page in a task of its own.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_right
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, TypeAlias

import attrs
import trio

from ._errors import CheckIncomplete, StoreError, StoreMisbehaved, StoreUnavailable
from ._views import Observation, Presence, StoreTraits
from .abc import ScanPage, Store

Window: TypeAlias = Mapping[str, Mapping[str, Observation]]
"""For each store, what it holds of the documents of one range of ids. No document is in two windows."""

ABSENT: Final = Observation(presence=Presence.ABSENT, token="")
"""What a scan that passes over a document says about it. The token is not the store's, so it fences nothing."""

_END: Final[ScanPage] = ()


class StoreFailed(Exception):
    """A store could not be read. Internal: `report_failures` turns it into what callers see."""

    def __init__(self, role: str, error: StoreError) -> None:
        super().__init__(str(error))
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
        scope = trio.CancelScope()
        answers: Sequence[Observation | StoreError] = ()
        with self._translated(), scope:
            async with self._call(scope):
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
        # One scope around it all, whose deadline is set for each call: a scope around the opening alone would be
        # left before one that the store's own context manager may have opened inside.
        scope = trio.CancelScope()
        with self._translated(), scope:
            async with AsyncExitStack() as stack:
                async with self._call(scope):
                    scan = aiter(await stack.enter_async_context(self.store.open_scan(after)))
                last = after
                while True:
                    async with self._call(scope):
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
    async def _call(self, scope: trio.CancelScope) -> AsyncGenerator[None, None]:
        async with self._gate:
            scope.deadline = trio.current_time() + self.timeout
            try:
                yield
            finally:
                scope.deadline = math.inf
