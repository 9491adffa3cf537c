"""The calls that a check makes on one store: each in its time, and each failure told under the store's name."""

from __future__ import annotations

import functools
import math
import operator
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

import attrs
import trio

from ._errors import StoreError, StoreMisbehaved, StoreUnavailable
from ._ranges import entry
from ._views import Observation, Presence, RangeDigest, RangeListing
from .abc import ListingsAtHand, RangedStore, Ranges, ScanPage, Store

T = TypeVar("T")

ABSENT: Final = Observation(presence=Presence.ABSENT, token="")
"""What a scan says of a document by passing over it. The token is none of a store's, so it fences nothing."""

_Timed: TypeAlias = Callable[[], AbstractAsyncContextManager[None]]
"""Around one call: it waits until the store can take one, and bounds its time."""


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
            with self.translated(), trio.move_on_after(self.timeout) as scope:
                answers = await self.store.observe(doc_ids)
        self.check_in_time(scope)
        self.check_answers("look", answers, doc_ids)
        return answers

    @asynccontextmanager
    async def timed_call(self, scope: trio.CancelScope) -> AsyncGenerator[None, None]:
        """Around one call inside `scope`, whose deadline it sets."""
        # Without a checkpoint where there is room: the next call goes out in the step that took in the last answer, and
        # the store does not wait for the comparison that the answer sets off.
        try:
            self._gate.acquire_nowait()
        except trio.WouldBlock:
            await self._gate.acquire()
        try:
            scope.deadline = trio.current_time() + self.timeout
            yield
        finally:
            scope.deadline = math.inf
            self._gate.release()

    @contextmanager
    def translated(self) -> Generator[None, None, None]:
        """Whatever is raised in here is a failure of the store.

        Raises:
            StoreFailed: something was.
        """
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

    def check_in_time(self, scope: trio.CancelScope) -> None:
        """Fail if the time of a call was up.

        Raises:
            StoreFailed: it was.
        """
        if scope.cancelled_caught:
            problem = f"did not answer within {self.timeout:g} s (store_call_timeout)"
            raise StoreFailed(self.role, StoreUnavailable(self.role, problem))

    def check_answers(
        self, what: str, answers: Sequence[object], asked: Sequence[object], of: str = "documents"
    ) -> None:
        """Answers are matched to what was asked by position.

        Raises:
            StoreFailed: their number is wrong.
        """
        if len(answers) != len(asked):
            raise self.misbehaved(f"a {what} gave {len(answers)} answers for {len(asked)} {of}")

    def misbehaved(self, problem: str) -> StoreFailed:
        """The adapter broke its contract, and how."""
        return StoreFailed(self.role, StoreMisbehaved(self.role, problem))

    def out_of_order(self, what: str) -> StoreFailed:
        """What it gave cannot be compared with what others gave."""
        return self.misbehaved(f"its {what} not in strictly ascending byte order of doc_id")


class Answer(Generic[T]):
    """The answer to a call that a lane makes at its turn."""

    def __init__(self) -> None:
        self._given = trio.Event()
        self._value: T | None = None

    def set(self, value: T) -> None:
        """Give it."""
        self._value = value
        self._given.set()

    async def get(self) -> T:
        """Wait for it. Where the call fails, the lane's task fails, and with it everything that waits."""
        await self._given.wait()
        return cast("T", self._value)


class Lane:
    """A snapshot of one store, and the calls on it, which are made one after the other in the task of `run`.

    In one task, because a scan may be a generator with scopes and nurseries in it.
    """

    def __init__(self, reader: StoreReader) -> None:
        self.reader = reader
        self.ranged = isinstance(reader.store, RangedStore)
        self._calls: deque[tuple[Callable[[Ranges], Awaitable[Any]], Answer[Any]]] = deque()
        self._finished = False
        self._news = trio.Event()
        self._scanned: Scanned | None = None
        self._at_hand: Callable[[str | None, str | None], RangeListing | None] = _not_at_hand

    async def run(self, after: str | None) -> None:
        """Open a snapshot, make calls on it until `finish`, and close it.

        Raises:
            StoreFailed: a call failed or took too long, or a scan is not in strictly ascending order.
        """
        reader, store = self.reader, self.reader.store
        # One scope around it all, whose deadline is set for each call: a scope around the opening alone would have
        # to be left before the scopes and nurseries that the store opens in there.
        with reader.translated(), trio.CancelScope() as scope:
            async with AsyncExitStack() as stack:
                timed = functools.partial(reader.timed_call, scope)
                held: Ranges
                around: _Timed
                if isinstance(store, RangedStore):
                    async with timed():
                        held, around = await stack.enter_async_context(store.open_ranges(after)), timed
                else:
                    async with timed():
                        pages = aiter(await stack.enter_async_context(store.open_scan(after)))
                    held = self._scanned = Scanned(reader, pages, after, timed)
                    around = nullcontext
                if isinstance(held, ListingsAtHand):
                    self._at_hand = held.at_hand
                while (following := await self._following()) is not None:
                    call, answer = following
                    async with around():
                        value = await call(held)
                    answer.set(value)
                scope.deadline = trio.current_time() + reader.timeout
            scope.deadline = math.inf
        reader.check_in_time(scope)

    def finish(self) -> None:
        """Nothing more will be asked."""
        self._finished = True
        self._news.set()

    async def ranges(self, after: str | None, size: int, count: int) -> Sequence[tuple[str, RangeDigest]]:
        """See `Ranges.ranges`.

        Raises:
            StoreFailed: they are not in order.
        """
        found = await self._ask(lambda held: held.ranges(after, size, count)).get()
        bounds = [bound for bound, _ in found]
        if any(map(operator.ge, bounds, bounds[1:])) or (bounds and after is not None and bounds[0] <= after):
            raise self.reader.out_of_order("ranges are")
        return found

    def digests(
        self, after: str | None, bounds: Sequence[str | None], most: int
    ) -> Answer[Sequence[RangeDigest | None]]:
        """See `Ranges.digests`."""
        return self._ask(lambda held: held.digests(after, bounds, most))

    def listings(self, bounds: Sequence[tuple[str | None, str | None]]) -> Answer[Sequence[RangeListing]]:
        """See `Ranges.listing`. They are made before the calls that wait, since these only read ahead.

        Raises:
            StoreFailed: the snapshot failed at saying whether they are at hand.
        """
        with self.reader.translated():
            at_hand = [self._at_hand(after, bound) for after, bound in bounds]
        if None not in at_hand:
            answer: Answer[Sequence[RangeListing]] = Answer()
            answer.set(cast("list[RangeListing]", at_hand))
            return answer

        async def list_all(held: Ranges) -> Sequence[RangeListing]:
            return [await held.listing(after, bound) for after, bound in bounds]

        return self._ask(list_all, first=True)

    def look(self, doc_ids: Sequence[str]) -> Answer[Sequence[Observation]]:
        """See `Ranges.look`. It is made before the calls that wait."""
        return self._ask(lambda held: held.look(doc_ids), first=True)

    def forget(self, bound: str) -> None:
        """Nothing at or before `bound` will be asked for."""
        if self._scanned is not None:
            self._scanned.forget(bound)

    def _ask(self, call: Callable[[Ranges], Awaitable[T]], *, first: bool = False) -> Answer[T]:
        answer: Answer[T] = Answer()
        if first:
            self._calls.appendleft((call, answer))
        else:
            self._calls.append((call, answer))
        self._news.set()
        return answer

    async def _following(self) -> tuple[Callable[[Ranges], Awaitable[Any]], Answer[Any]] | None:
        while not self._calls and not self._finished:
            self._news = trio.Event()
            await self._news.wait()
        return self._calls.popleft() if self._calls else None


def _not_at_hand(_after: str | None, _bound: str | None) -> None:
    """A snapshot that must be asked for each listing."""


class Scanned:
    """`Ranges` of a scan, for stores that have no ranges of their own: summaries and digests are made here.

    A scan cannot go back: what was read stays until it is forgotten. That is a few pages, because a range with too many
    documents is given no digest: the rest of it is read when it is listed, and until then, no digests follow.
    """

    def __init__(self, reader: StoreReader, pages: AsyncIterator[ScanPage], after: str | None, timed: _Timed) -> None:
        self._reader = reader
        self._traits = reader.store.traits
        self._pages = pages
        self._timed = timed
        self._read_to = after
        self._ended = False
        self._ids: list[str] = []
        self._entries: list[bytes] = []
        self._views: dict[str, Observation] = {}

    async def ranges(self, after: str | None, size: int, count: int) -> Sequence[tuple[str, RangeDigest]]:
        found: list[tuple[str, RangeDigest]] = []
        while len(found) < count:
            start = self._place(after)
            end = min(start + size, len(self._ids))
            if start < end:
                after = self._ids[end - 1]
                found.append((after, RangeDigest.of(b"".join(self._entries[start:end]))))
            elif found or self._ended:
                break
            else:
                await self._read()
        return found

    async def digests(self, after: str | None, bounds: Sequence[str | None], most: int) -> Sequence[RangeDigest | None]:
        found: list[RangeDigest | None] = []
        for bound in bounds:
            found.append(await self._digest(after, bound, most))
            after = bound
        return found

    async def listing(self, after: str | None, bound: str | None) -> RangeListing:
        while self._place(after) == len(self._ids) and not self._reaches(bound):
            await self._read()
        entries = self._entries[self._place(after) : self._end(bound)]
        return RangeListing(entries=b"".join(entries), more=not self._reaches(bound))

    async def look(self, doc_ids: Sequence[str]) -> Sequence[Observation]:
        return [self._views.get(doc_id, ABSENT) for doc_id in doc_ids]

    def forget(self, bound: str) -> None:
        """Nothing at or before `bound` will be asked for."""
        end = self._place(bound)
        for doc_id in self._ids[:end]:
            del self._views[doc_id]
        del self._ids[:end], self._entries[:end]

    async def _digest(self, after: str | None, bound: str | None, most: int) -> RangeDigest | None:
        if after is not None and not self._reaches(after):
            return None
        while not self._reaches(bound):
            if len(self._ids) - self._place(after) > most:
                return None
            await self._read()
        return RangeDigest.of(b"".join(self._entries[self._place(after) : self._end(bound)]))

    def _reaches(self, bound: str | None) -> bool:
        """Whether everything up to `bound` (None: the end) was read."""
        return self._ended or (bound is not None and self._read_to is not None and self._read_to >= bound)

    def _place(self, after: str | None) -> int:
        """The index of the first id > `after`."""
        return 0 if after is None else bisect_right(self._ids, after)

    def _end(self, bound: str | None) -> int:
        return len(self._ids) if bound is None else bisect_right(self._ids, bound)

    async def _read(self) -> None:
        """Read a page."""
        async with self._timed():
            page = await anext(self._pages, None)
        if page is None:
            self._ended = True
        elif page:
            ids = [doc_id for doc_id, _ in page]
            last = self._read_to
            if any(map(operator.ge, ids, ids[1:])) or (last is not None and ids[0] <= last):
                raise self._reader.out_of_order("scan is")
            self._ids += ids
            self._entries += [entry(doc_id, view, self._traits) for doc_id, view in page]
            self._views.update(page)
            self._read_to = ids[-1]
