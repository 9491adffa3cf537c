"""A store that fails on purpose."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import trio

from trio_repair import (
    Document,
    Observation,
    Prepared,
    Removal,
    StoredDocument,
    StoreError,
    StoreRejected,
    StoreTraits,
    StoreUnavailable,
    Write,
    WriteAnswer,
    WriteStatus,
)
from trio_repair.abc import ScanPage, Store

from ._doubles import make_document
from ._faults import PER_DOCUMENT, DriverFault, Fault, FaultKind

_T = TypeVar("_T")


def write_newer(doc_id: str, held: Observation) -> Document:
    """What somebody else writes by default: a live document, one number above the one held."""
    number = 0 if held.version is None or held.version.number is None else held.version.number
    return make_document(doc_id, f"written meanwhile, number {number + 1}", number=number + 1)


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
    """

    def __init__(
        self,
        inner: Store,
        faults: Iterable[Fault] = (),
        *,
        rng: random.Random | None = None,
        rival: Callable[[str, Observation], Document] = write_newer,
        name: str | None = None,
    ) -> None:
        self.inner = inner
        self.name: str = getattr(inner, "name", "faulty") if name is None else name
        self.injected: Counter[FaultKind] = Counter()
        """How often each kind had its effect: a SWALLOWED_CANCEL that nobody cancelled, or a CONCURRENT_WRITE that
        lost its own race, is not counted."""
        self.rival_writes: list[Document] = []
        """What CONCURRENT_WRITE wrote, in order."""
        self.calls: Counter[str] = Counter()
        """Calls by operation."""
        self.documents: Counter[str] = Counter()
        """Documents named in calls, by operation."""
        self.calls_under_way = 0
        self.peak_calls = 0
        """The most calls that were under way at once; to be held against `traits.max_calls`."""
        self._rng = random.Random(0) if rng is None else rng
        self._rival = rival
        # Each fault with the number of strikes left; one that has none left is dropped.
        self._faults: list[tuple[Fault, int | None]] = []
        self._healed = trio.Event()
        self.add(*faults)

    @property
    def traits(self) -> StoreTraits:
        """Those of the store inside."""
        return self.inner.traits

    def add(self, *faults: Fault) -> None:
        """From now on these strike as well."""
        self._faults.extend((fault, fault.times) for fault in faults)

    def heal(self) -> None:
        """Stop all faults; calls that hang go on, and have their effect now."""
        self._faults.clear()
        self._healed.set()
        self._healed = trio.Event()

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        """As the store inside, unless a fault strikes. **If cancelled:** as the store inside."""
        return await self._call("observe", doc_ids, doc_ids, self.inner.observe, _as_error)

    async def read(self, doc_ids: Sequence[str]) -> Sequence[StoredDocument | StoreError]:
        """As the store inside, unless a fault strikes. **If cancelled:** as the store inside."""
        return await self._call("read", doc_ids, doc_ids, self.inner.read, _as_error)

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Prepared | StoreError]:
        """As the store inside, unless a fault strikes. **If cancelled:** as the store inside."""
        ids = [document.doc_id for document in documents]
        return await self._call("prepare", ids, documents, self.inner.prepare, _as_error)

    async def write(self, writes: Sequence[Write]) -> Sequence[WriteAnswer]:
        """As the store inside, unless a fault strikes. **If cancelled:** as the store inside."""
        ids = [write.prepared.document.doc_id for write in writes]
        return await self._call("write", ids, writes, self.inner.write, _as_verdict)

    async def remove(self, removals: Sequence[Removal]) -> Sequence[WriteAnswer]:
        """As the store inside, unless a fault strikes. **If cancelled:** as the store inside."""
        ids = [removal.doc_id for removal in removals]
        return await self._call("remove", ids, removals, self.inner.remove, _as_verdict)

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> AsyncGenerator[AsyncIterator[ScanPage], None]:
        """As the store inside; "scan" faults strike when it is opened and at each page.

        **If cancelled:** as the store inside.
        """
        struck = self._draw("scan", ())
        await self._before(struck)
        async with self.inner.open_scan(after) as pages:
            await self._after(struck)
            yield _FaultyPages(self, pages)

    async def count(self) -> int:
        """As the store inside, unless a fault strikes. **If cancelled:** as the store inside."""

        async def count(_nothing: Sequence[None]) -> Sequence[int]:
            return [await self.inner.count()]

        (total,) = await self._call("count", (), (None,), count, _no_answer)
        return total

    async def aclose(self) -> None:
        """Close the store inside. **If cancelled:** as the store inside."""
        await self.inner.aclose()

    async def _call(
        self,
        operation: str,
        doc_ids: Sequence[str],
        items: Sequence[Any],
        act: Callable[[Sequence[Any]], Awaitable[Sequence[_T]]],
        answer: Callable[[StoreError], _T],
    ) -> Sequence[_T]:
        struck = self._draw(operation, doc_ids)
        self.calls_under_way += 1
        self.peak_calls = max(self.peak_calls, self.calls_under_way)
        try:
            # A swallowed cancellation must not resurface at the next checkpoint of the very call that swallowed it.
            with trio.CancelScope() as scope:
                scope.shield = await self._before(struck)
                withheld = self._withhold(struck, doc_ids, answer)
                served = [item for index, item in enumerate(items) if index not in withheld]
                fresh = iter(await act(served)) if served or not withheld else iter(())
                answers = [withheld[index] if index in withheld else next(fresh) for index in range(len(items))]
                await self._after(struck)
                return self._spoil(struck, doc_ids, answers, answer)
        finally:
            self.calls_under_way -= 1
        raise AssertionError("the scope above is never cancelled")

    def _draw(self, operation: str, doc_ids: Sequence[str]) -> list[tuple[Fault, str | None]]:
        """Decide, at once and for the whole call, which faults strike and which document each one picks."""
        self.calls[operation] += 1
        self.documents[operation] += len(doc_ids)
        struck: list[tuple[Fault, str | None]] = []
        kept: list[tuple[Fault, int | None]] = []
        for fault, left in self._faults:
            strikes = fault.matches(operation, doc_ids)
            if strikes and fault.probability < 1:
                strikes = self._rng.random() < fault.probability
            if strikes:
                victim = fault.doc_id
                if victim is None and doc_ids:
                    victim = self._rng.choice(doc_ids)
                struck.append((fault, victim))
                left = None if left is None else left - 1  # noqa: PLW2901 - the rest of the strikes
            if left is None or left > 0:
                kept.append((fault, left))
        self._faults = kept
        return struck

    async def _before(self, struck: Sequence[tuple[Fault, str | None]]) -> bool:
        """Do what strikes before the call; True if a cancellation was swallowed."""
        swallowed = False
        for fault, victim in struck:
            match fault.kind:
                case FaultKind.UNAVAILABLE:
                    self.injected[fault.kind] += 1
                    raise StoreUnavailable(self.name, "injected: not reachable")
                case FaultKind.DRIVER_ERROR:
                    self.injected[fault.kind] += 1
                    raise DriverFault("injected: the driver failed")
                case FaultKind.LATENCY:
                    self.injected[fault.kind] += 1
                    await trio.sleep(fault.delay)
                case FaultKind.HANG:
                    self.injected[fault.kind] += 1
                    await self._healed.wait()
                case FaultKind.BLOCKED_LOOP:
                    self.injected[fault.kind] += 1
                    time.sleep(fault.delay)  # noqa: ASYNC251 - blocking is the fault
                case FaultKind.SWALLOWED_CANCEL:
                    ended = False
                    with suppress(trio.Cancelled):  # swallowing is the fault
                        await trio.sleep(fault.delay)
                        ended = True
                    if not ended:
                        self.injected[fault.kind] += 1
                        swallowed = True
                case FaultKind.CONCURRENT_WRITE if victim is not None:
                    await self._write_as_rival(victim)
                case _:
                    pass
        return swallowed

    def _withhold(
        self, struck: Sequence[tuple[Fault, str | None]], doc_ids: Sequence[str], answer: Callable[[StoreError], _T]
    ) -> dict[int, _T]:
        """The answers that are given without asking the store, by index."""
        withheld: dict[int, _T] = {}
        for fault, victim in struck:
            for index, doc_id in enumerate(doc_ids):
                if fault.kind is FaultKind.REQUEST_LOST:
                    error: StoreError = StoreUnavailable(self.name, "injected: the request was lost", doc_id)
                elif doc_id != victim:
                    continue
                elif fault.kind is FaultKind.REJECTED:
                    error = StoreRejected(self.name, "injected: never", doc_id)
                elif fault.kind is FaultKind.DOCUMENT_UNAVAILABLE:
                    error = StoreUnavailable(self.name, "injected: not now", doc_id)
                else:
                    continue
                withheld.setdefault(index, answer(error))
            if fault.kind in PER_DOCUMENT or fault.kind is FaultKind.REQUEST_LOST:
                self.injected[fault.kind] += 1
        return withheld

    async def _after(self, struck: Sequence[tuple[Fault, str | None]]) -> None:
        """Do what strikes when the call has had its effect."""
        for fault, _victim in struck:
            if fault.kind is FaultKind.HANG_AFTER:
                self.injected[fault.kind] += 1
                await self._healed.wait()
            elif fault.kind is FaultKind.LATE_ERROR:
                self.injected[fault.kind] += 1
                raise StoreUnavailable(self.name, "injected: the connection broke after the call")

    def _spoil(
        self,
        struck: Sequence[tuple[Fault, str | None]],
        doc_ids: Sequence[str],
        answers: list[_T],
        answer: Callable[[StoreError], _T],
    ) -> list[_T]:
        """Change answers that were given truly."""
        for fault, _victim in struck:
            if fault.kind is FaultKind.ACK_LOST:
                self.injected[fault.kind] += 1
                answers = [
                    answer(StoreUnavailable(self.name, "injected: the answer was lost", doc_id)) for doc_id in doc_ids
                ]
            elif fault.kind is FaultKind.WRONG_LENGTH:
                self.injected[fault.kind] += 1
                answers = answers[:-1]
        return answers

    async def _write_as_rival(self, doc_id: str) -> None:
        """Write over what is held, through the contract alone, so that any store can be wrapped."""
        with suppress(StoreError):  # a rival that cannot write does not write
            (held,) = await self.inner.observe([doc_id])
            if isinstance(held, StoreError):
                return
            document = self._rival(doc_id, held)
            (prepared,) = await self.inner.prepare([document])
            if isinstance(prepared, StoreError):
                return
            (verdict,) = await self.inner.write([Write(prepared=prepared, token=held.token)])
            if verdict.status is WriteStatus.LANDED:
                self.injected[FaultKind.CONCURRENT_WRITE] += 1
                self.rival_writes.append(document)


class _FaultyPages:
    def __init__(self, store: FaultyStore, pages: AsyncIterator[ScanPage]) -> None:
        self._store = store
        self._pages = pages

    def __aiter__(self) -> AsyncIterator[ScanPage]:
        return self

    async def __anext__(self) -> ScanPage:
        struck = self._store._draw("scan", ())
        await self._store._before(struck)
        page = await anext(self._pages)
        await self._store._after(struck)
        return page


def _as_error(error: StoreError) -> StoreError:
    return error


def _as_verdict(error: StoreError) -> WriteAnswer:
    status = WriteStatus.REJECTED if isinstance(error, StoreRejected) else WriteStatus.UNKNOWN
    return WriteAnswer(status=status, error=error)


def _no_answer(error: StoreError) -> int:
    raise error
