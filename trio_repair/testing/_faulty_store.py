"""A store that fails on purpose."""

from __future__ import annotations

import datetime as dt
import itertools
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias, TypeVar

import trio

from trio_repair import (
    Document,
    InvalidValue,
    Observation,
    Prepared,
    Removal,
    StoredDocument,
    StoreError,
    StoreTraits,
    StoreUnavailable,
    Write,
    WriteAnswer,
    WriteStatus,
)
from trio_repair._model import utc_now
from trio_repair.abc import ScanPage, Store

from ._ailments import Ailment, Crashable, Strike, write_by_clock, write_newer, write_over
from ._faults import DriverFault, Fault, FaultKind
from ._faulty_answers import (
    COUNTED_AFTERWARDS,
    COUNTED_WHEN_STRUCK,
    COUNTED_WHEN_WITHHELD,
    Spoilt,
    as_error,
    as_verdict,
    decide_withheld,
    explain_withheld,
    no_answer,
)

_T = TypeVar("_T")
_Act: TypeAlias = Callable[[Sequence[Any]], Awaitable[Sequence[_T]]]

logger = logging.getLogger("trio_repair.testing")


class FaultyStore:
    """Any store, with faults injected between it and its caller.

    Faults strike in the order given; a call may be struck by several. All chance comes from `rng`, drawn when a call
    starts, so one seed and one order of calls give one run.

    Args:
        inner: the store that does the work.
        faults: what goes wrong; `add` and `heal` change it later.
        rng: decides `probability` and which document of a batch is struck; None: `random.Random(0)`.
        rival: for CONCURRENT_WRITE, what somebody else writes over what is held; `write_newer` unless given.
        name: the role, for error messages; None: that of the store inside, where it has one.
        wall_clock: the time of day that CLOCK_SKEW is off from, timezone-aware; the system's unless given.

    Raises:
        InvalidValue: a fault is CRASH, and `inner` cannot crash.
    """

    def __init__(
        self,
        inner: Store,
        faults: Iterable[Fault] = (),
        *,
        rng: random.Random | None = None,
        rival: Callable[[str, Observation], Document] = write_newer,
        name: str | None = None,
        wall_clock: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        self.inner = inner
        self.name: str = getattr(inner, "name", "faulty") if name is None else name
        self.injected: Counter[FaultKind] = Counter()
        """How often each kind had its effect: a SWALLOWED_CANCEL that nobody cancelled, a CONCURRENT_WRITE or
        CLOCK_SKEW that lost its own race, a LATE_LANDING that its fence refused, or an OVERTAKEN call that nothing
        overtook is not counted. Nor is a fault to which others that struck the same call before it left nothing: a
        REQUEST_LOST where every document was REJECTED, or an ACK_LOST without an answer to lose."""
        self.rival_writes: list[Document] = []
        """What CONCURRENT_WRITE and CLOCK_SKEW wrote, in order."""
        self.calls: Counter[str] = Counter()
        """Calls by operation."""
        self.documents: Counter[str] = Counter()
        """Documents named in calls, by operation."""
        self.calls_under_way = 0
        self.landing_late = 0
        """Calls by LATE_LANDING that are still to be done."""
        self.peak_calls = 0
        """The most calls that were under way at once; to be held against `traits.max_calls`."""
        self._rng = random.Random(0) if rng is None else rng
        self._rival = rival
        self._wall_clock = wall_clock
        self._faults: list[Ailment] = []
        self._spent: list[Ailment] = []
        """Those that strike no more; their calls may still hang."""
        self._order = itertools.count(1)
        self._last_ended: Counter[str] = Counter()
        """By operation: the highest number of a call that has ended."""
        self._one_ended = trio.Event()
        self._one_landed = trio.Event()
        self._crashes = 0
        self._down_until = float("-inf")
        self.add(*faults)

    @property
    def traits(self) -> StoreTraits:
        """Those of the store inside."""
        return self.inner.traits

    def add(self, *faults: Fault) -> None:
        """From now on these strike as well.

        Raises:
            InvalidValue: one is CRASH, and the store inside cannot crash; none was added.
        """
        for fault in faults:
            self.check_fault(fault)
        self._faults.extend(Ailment(fault, fault.times) for fault in faults)

    def check_fault(self, fault: Fault) -> None:
        """Do nothing, if `fault` can be added.

        Raises:
            InvalidValue: it is CRASH, and the store inside cannot crash.
        """
        if fault.kind is FaultKind.CRASH and not isinstance(self.inner, Crashable):
            raise InvalidValue("fault", f"{type(self.inner).__name__} cannot crash; wrap a CrashingStore")

    def heal(self, *faults: Fault) -> None:
        """Stop these faults, or all if none is named; calls that hang on them go on, and have their effect now.

        What a LATE_LANDING has taken in still lands.
        """
        for ailment in [*self._faults, *self._spent]:
            if not faults or ailment.fault in faults:
                ailment.release()
                if ailment in self._faults:
                    self._faults.remove(ailment)
        self._spent = [ailment for ailment in self._spent if ailment.hanging]
        if not faults or any(fault.kind is FaultKind.CRASH for fault in faults):
            self._down_until = float("-inf")

    async def wait_for_late_landings(self) -> None:
        """Return when all that a LATE_LANDING has taken in is done. **If cancelled:** nothing has changed."""
        while self.landing_late:
            await self._one_landed.wait()

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        """As the store inside, unless a fault strikes. **If cancelled:** as the store inside."""
        return await self._call("observe", doc_ids, doc_ids, self.inner.observe, as_error)

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        """As the store inside, unless a fault strikes. **If cancelled:** as the store inside."""
        return await self._call("read", doc_ids, doc_ids, self.inner.read, as_error)

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        """As the store inside, unless a fault strikes. **If cancelled:** as the store inside."""
        ids = [document.doc_id for document in documents]
        return await self._call("prepare", ids, documents, self.inner.prepare, as_error)

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """As the store inside, unless a fault strikes. **If cancelled:** as the store inside."""
        ids = [write.prepared.document.doc_id for write in writes]
        return await self._call("write", ids, writes, self.inner.write, as_verdict)

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        """As the store inside, unless a fault strikes. **If cancelled:** as the store inside."""
        ids = [removal.doc_id for removal in removals]
        return await self._call("remove", ids, removals, self.inner.remove, as_verdict)

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> AsyncGenerator[AsyncIterator[ScanPage], None]:
        """As the store inside; "scan" faults strike when it is opened and at each page.

        **If cancelled:** as the store inside.
        """
        struck = self._draw("scan", ())
        await self._before(struck, "scan", next(self._order))
        async with self.inner.open_scan(after) as pages:
            await self._after(struck)
            yield _FaultyPages(self, pages)

    async def count(self) -> int:
        """As the store inside, unless a fault strikes. **If cancelled:** as the store inside."""

        async def count(_nothing: Sequence[None]) -> Sequence[int]:
            return [await self.inner.count()]

        (total,) = await self._call("count", (), (None,), count, no_answer)
        return total

    async def aclose(self) -> None:
        """Close the store inside. **If cancelled:** as the store inside."""
        await self.inner.aclose()

    async def _call(
        self,
        operation: str,
        doc_ids: Sequence[str],
        items: Sequence[Any],
        act: _Act[_T],
        answer: Callable[[StoreError], _T],
    ) -> Sequence[_T]:
        struck = self._draw(operation, doc_ids)
        order, crashes = next(self._order), self._crashes
        withholding = decide_withheld(struck, doc_ids)
        self._take_in_late(withholding, items, act)
        self.calls_under_way += 1
        self.peak_calls = max(self.peak_calls, self.calls_under_way)
        try:
            deaf = await self._before(struck, operation, order)
            if self._crashes != crashes:
                raise StoreUnavailable(self.name, "injected: the store has crashed")
            withheld = self._withhold(withholding, doc_ids, answer)
            served = [item for index, item in enumerate(items) if index not in withheld]
            fresh: Iterator[_T] = iter(())
            if served or not withheld:
                # A swallowed cancellation must not resurface in the work of the very call that swallowed it. It may in
                # what strikes afterwards: a call that hangs then can be cancelled, whatever came before.
                with trio.CancelScope(shield=deaf):
                    fresh = iter(await act(served))
            answers = [withheld[index] if index in withheld else next(fresh) for index in range(len(items))]
            await self._after(struck)
            if self._crashes != crashes:
                # It was done, and nobody can tell whether it was committed.
                error = StoreUnavailable(self.name, "injected: the store has crashed")
                return [answer(error) for _ in items]
            spoilt = Spoilt.of(self.name, doc_ids, answers, answer)
            self.injected.update(ailment.fault.kind for ailment, _ in struck if spoilt.suffer(ailment.fault.kind))
            return spoilt.answers
        finally:
            self.calls_under_way -= 1
            self._last_ended[operation] = max(self._last_ended[operation], order)
            self._one_ended.set()
            self._one_ended = trio.Event()

    def _draw(self, operation: str, doc_ids: Sequence[str]) -> list[Strike]:
        """Decide, at once and for the whole call, which faults strike and which document each one picks."""
        self.calls[operation] += 1
        self.documents[operation] += len(doc_ids)
        struck: list[Strike] = []
        for ailment in list(self._faults):
            fault = ailment.fault
            if not fault.matches(operation, doc_ids):
                continue
            if fault.probability < 1 and self._rng.random() >= fault.probability:
                continue
            victim = fault.doc_id
            if victim is None and doc_ids:
                victim = self._rng.choice(doc_ids)
            struck.append((ailment, victim))
            if ailment.left is not None:
                ailment.left -= 1
                if ailment.left == 0:
                    self._faults.remove(ailment)
                    self._spent = [*(spent for spent in self._spent if spent.hanging), ailment]
        return struck

    async def _before(self, struck: Sequence[Strike], operation: str, order: int) -> bool:
        """Do what strikes before the call; True if a cancellation was swallowed, or could not reach it."""
        if trio.current_time() < self._down_until:
            raise StoreUnavailable(self.name, "injected: the store has crashed and is not back")
        deaf = False
        for ailment, victim in struck:
            fault = ailment.fault
            if fault.kind in COUNTED_WHEN_STRUCK:
                self.injected[fault.kind] += 1
            match fault.kind:
                case FaultKind.UNAVAILABLE:
                    raise StoreUnavailable(self.name, "injected: not now")
                case FaultKind.DRIVER_ERROR:
                    raise DriverFault("injected: the driver failed")
                case FaultKind.CRASH:
                    self._crash(fault.delay)
                    raise StoreUnavailable(self.name, "injected: the store has crashed")
                case FaultKind.LATENCY:
                    await trio.sleep(fault.delay)
                case FaultKind.HANG:
                    await ailment.hang()
                case FaultKind.STUCK:
                    deaf = True
                    with trio.move_on_after(fault.delay, shield=True):
                        await ailment.hang()
                case FaultKind.OVERTAKEN:
                    await self._be_overtaken(operation, order, fault.delay)
                case FaultKind.BLOCKED_LOOP:
                    time.sleep(fault.delay)  # noqa: ASYNC251 - blocking is the fault
                case FaultKind.SWALLOWED_CANCEL:
                    ended = False
                    with suppress(trio.Cancelled):  # swallowing is the fault
                        await trio.sleep(fault.delay)
                        ended = True
                    if not ended:
                        self.injected[fault.kind] += 1
                        deaf = True
                case FaultKind.CONCURRENT_WRITE | FaultKind.CLOCK_SKEW if victim is not None:
                    await self._write_as_rival(fault, victim)
        return deaf

    async def _be_overtaken(self, operation: str, order: int, seconds: float) -> None:
        with trio.move_on_after(seconds):
            while self._last_ended[operation] < order:
                await self._one_ended.wait()
        if self._last_ended[operation] > order:
            self.injected[FaultKind.OVERTAKEN] += 1

    def _crash(self, seconds: float) -> None:
        assert isinstance(self.inner, Crashable)
        self._crashes += 1
        self._down_until = trio.current_time() + seconds
        self.inner.crash()
        for ailment in [*self._faults, *self._spent]:
            # Calls that hang wake up to find their connection gone.
            ailment.release()

    def _take_in_late(self, withholding: Mapping[int, Ailment], items: Sequence[Any], act: _Act[Any]) -> None:
        """Have what a LATE_LANDING withholds done by a task of its own, which outlives the call."""
        for ailment in dict.fromkeys(withholding.values()):
            if ailment.fault.kind is FaultKind.LATE_LANDING:
                late = [items[index] for index, by in sorted(withholding.items()) if by is ailment]
                self.landing_late += 1
                trio.lowlevel.spawn_system_task(self._land_late, late, act, ailment.fault.delay)

    async def _land_late(self, items: Sequence[Any], act: _Act[Any], seconds: float) -> None:
        crashes = self._crashes
        try:
            await trio.sleep(seconds)
            if self._crashes == crashes:
                answers = await act(items)
                if any(answer.status is WriteStatus.LANDED for answer in answers):
                    self.injected[FaultKind.LATE_LANDING] += 1
        except Exception as error:
            # Nobody is left to be told: a system task that raises ends the whole run.
            logger.warning("%s store: a late landing failed: %s", self.name, type(error).__name__)
        finally:
            self.landing_late -= 1
            self._one_landed.set()
            self._one_landed = trio.Event()

    def _withhold(
        self, withholding: Mapping[int, Ailment], doc_ids: Sequence[str], answer: Callable[[StoreError], _T]
    ) -> dict[int, _T]:
        """The answers that are given without asking the store, by index."""
        for ailment in dict.fromkeys(withholding.values()):
            if ailment.fault.kind in COUNTED_WHEN_WITHHELD:
                self.injected[ailment.fault.kind] += 1
        return {
            index: answer(explain_withheld(by.fault.kind, self.name, doc_ids[index]))
            for index, by in withholding.items()
        }

    async def _after(self, struck: Sequence[Strike]) -> None:
        """Do what strikes when the call has had its effect."""
        for ailment, _victim in struck:
            kind = ailment.fault.kind
            if kind in COUNTED_AFTERWARDS:
                self.injected[kind] += 1
            if kind is FaultKind.HANG_AFTER:
                await ailment.hang()
            elif kind is FaultKind.LATE_ERROR:
                raise StoreUnavailable(self.name, "injected: the connection broke after the call")
            elif kind is FaultKind.PARTIAL_BULK:
                raise StoreUnavailable(self.name, "injected: the connection broke half-way")

    async def _write_as_rival(self, fault: Fault, doc_id: str) -> None:
        def by_clock(doc_id: str, _held: Observation) -> Document:
            return write_by_clock(doc_id, self._wall_clock() + dt.timedelta(seconds=fault.delay))

        rival = by_clock if fault.kind is FaultKind.CLOCK_SKEW else self._rival
        written = await write_over(self.inner, doc_id, rival)
        if written is not None:
            self.injected[fault.kind] += 1
            self.rival_writes.append(written)


class _FaultyPages:
    def __init__(self, store: FaultyStore, pages: AsyncIterator[ScanPage]) -> None:
        self._store = store
        self._pages = pages

    def __aiter__(self) -> AsyncIterator[ScanPage]:
        return self

    async def __anext__(self) -> ScanPage:
        struck = self._store._draw("scan", ())
        await self._store._before(struck, "scan", next(self._store._order))
        page = await anext(self._pages)
        await self._store._after(struck)
        return page
