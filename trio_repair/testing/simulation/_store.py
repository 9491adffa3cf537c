"""A store that takes time and fails in every way, and says what it really held to whoever watches."""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Protocol

import attrs
import trio

from trio_repair import (
    Document,
    EmbeddingIdentity,
    Observation,
    Removal,
    StoreError,
    StoreRejected,
    StoreTraits,
    StoreUnavailable,
    Write,
    WriteAnswer,
    WriteStatus,
)
from trio_repair.abc import ScanPage
from trio_repair.stores.memory import MemoryCopy, MemoryStore

from .._faults import PER_DOCUMENT, SEVERAL, DriverFault, FaultKind
from ._profiles import Mishap

_GRID_SECONDS: Final = 0.02
_COMMIT_SECONDS: Final = 2.0
"""A change that is older is on disk."""


class Watcher(Protocol):
    """Who is told what stores really do."""

    def count(self, what: FaultKind | Mishap) -> None:
        """It has had its effect."""

    def call_began(self, store: str, operation: str, items: Sequence[Any]) -> Sequence[Any]:
        """The engine makes a call. Returns something for each item, to be handed back with its effect."""

    def call_ended(self, store: str, operation: str, records: Sequence[Any], answers: Sequence[Any] | None) -> None:
        """The call has ended with these answers; None: with none."""

    def changed(
        self, store: str, doc_id: str, author: str, record: Any, before: Observation, after: Observation
    ) -> None:
        """What a store holds has changed."""

    def rival(self, store: MemoryStore, doc_id: str) -> None:
        """Let the application write a document, here and now."""


def _weight(fault: FaultKind, operation: str, *, several: bool) -> int:
    """How much more often than others it strikes such a call; 0: never."""
    if operation not in fault.operations or (fault in SEVERAL and not several):
        return 0
    if fault is FaultKind.SHUFFLED_ANSWERS:
        # Elsewhere it is a lie that nobody can see through, see `LEFT_OUT`.
        return 12 if operation in ("read", "prepare") else 0
    if fault is FaultKind.STUCK and operation in ("write", "remove"):
        # What a write that was given up may still do is the hardest to keep account of.
        return 6
    return 3 if len(fault.operations) <= 2 or fault in SEVERAL else 1


class SimStore(MemoryStore):
    """The truth. The engine sees it through `Front`, checks see it as it is, in fair weather and foul."""

    def __init__(
        self,
        name: str,
        watcher: Watcher,
        rng: random.Random,
        *,
        traits: StoreTraits,
        embedding: EmbeddingIdentity | None,
        latency: float,
    ) -> None:
        super().__init__(name, traits=traits, embedding=embedding)
        self.nursery: trio.Nursery
        self.mood: Mishap | None = None
        """STORE_REFUSING, STORE_HANGING, STORE_SLOW, or None: well."""
        self.fault_rate = 0.0
        self.faults: tuple[FaultKind, ...] = ()
        self._watcher = watcher
        self._rng = rng
        self._latency = latency
        self._healed = trio.Event()
        self._crashes = 0
        self._possible: dict[tuple[str, bool], list[FaultKind]] = {}
        """By operation, and whether it names several documents: the faults that can strike it."""
        self._order = itertools.count()
        self._last_effect = -1
        self._author = "app"
        self._record: Any = None
        self._uncommitted: deque[tuple[float, str, MemoryCopy | None]] = deque()

    def heal(self) -> None:
        """Be well again. Calls that hang go on."""
        self.mood = None
        self.fault_rate = 0.0
        self._healed.set()
        self._healed = trio.Event()

    def crash(self, *, lose: float) -> None:
        """Forget what was confirmed in the last `lose` seconds, fail the calls under way, and refuse new ones."""
        self._crashes += 1
        self.mood = Mishap.STORE_REFUSING
        self._watcher.count(Mishap.STORE_CRASH)
        now = trio.current_time()
        while self._uncommitted and self._uncommitted[-1][0] > now - min(lose, _COMMIT_SECONDS):
            _, doc_id, copy = self._uncommitted.pop()
            before = self.observe_nowait(doc_id)
            if copy is None:
                self._copies.pop(doc_id, None)
            else:
                self._copies[doc_id] = copy
            self._watcher.count(Mishap.LOST_COMMIT)
            self._watcher.changed(self.name, doc_id, "crash", None, before, self.observe_nowait(doc_id))
        # Calls that hang wake up to find their connection gone.
        self._healed.set()
        self._healed = trio.Event()

    # What the engine calls, by way of `Front`

    async def serve(
        self, operation: str, ids: Sequence[str], items: Sequence[Any], records: Sequence[Any]
    ) -> list[Any]:
        """One call, with whatever goes wrong with it."""
        rng = self._rng
        order, crashes = next(self._order), self._crashes
        fault = self._draw(operation, len(ids))
        seconds = self._latency * (0.5 + rng.random())
        if self.mood is Mishap.STORE_SLOW:
            self._watcher.count(Mishap.STORE_SLOW)
            seconds *= rng.uniform(5, 60)
        if fault is FaultKind.LATENCY:
            self._watcher.count(fault)
            seconds += rng.uniform(0.1, 5)
        if fault is FaultKind.SWALLOWED_CANCEL:
            await self._sleep_through_cancellation(fault, seconds + rng.uniform(0.5, 8))
        elif fault is FaultKind.STUCK:
            await self._sleep_through_cancellation(fault, seconds + rng.uniform(5, 40))
        else:
            await self._sleep(seconds)
        if operation != "prepare":
            await self._weather(crashes)
        if fault is FaultKind.HANG:
            self._watcher.count(fault)
            await self._healed.wait()
            await self._weather(crashes)
        self._fail_before(fault)
        if order < self._last_effect:
            self._watcher.count(Mishap.REORDERING)
        self._last_effect = max(order, self._last_effect)
        if fault is FaultKind.CONCURRENT_WRITE and operation != "prepare":
            self._watcher.count(fault)
            self._watcher.rival(self, rng.choice(ids))
        if fault is FaultKind.REQUEST_LOST and rng.random() < 0.5:
            fault = None
            self.nursery.start_soon(self._land_late, items, records, rng.uniform(0.01, 6), self._crashes)
            error = StoreUnavailable(self.name, "the connection broke")
            return [WriteAnswer(status=WriteStatus.UNKNOWN, error=error) for _ in ids]
        answers = self._act(operation, ids, items, records, fault)
        if fault is FaultKind.HANG_AFTER:
            self._watcher.count(fault)
            await self._healed.wait()
        return self._spoil(fault, answers)

    def _draw(self, operation: str, documents: int) -> FaultKind | None:
        several = documents > 1
        # Writes are rare, and what befalls them matters most; rarer still are calls that carry several documents on.
        rare = operation in ("write", "remove") or (several and operation != "observe")
        rate = 3 * self.fault_rate if rare else self.fault_rate
        if not self.faults or rate == 0 or self._rng.random() >= rate:
            return None
        possible = self._possible.get((operation, several))
        if possible is None:
            # Those that can strike few operations, or few calls, come as often as the others.
            possible = self._possible[operation, several] = [
                fault for fault in self.faults for _ in range(_weight(fault, operation, several=several))
            ]
        return self._rng.choice(possible)

    @staticmethod
    async def _sleep(seconds: float) -> None:
        """Sleep to a moment of a grid: what ends together costs one round of the scheduler, and meets."""
        moment = (trio.current_time() + seconds) / _GRID_SECONDS
        await trio.sleep_until(math.ceil(moment) * _GRID_SECONDS)

    async def _sleep_through_cancellation(self, fault: FaultKind, seconds: float) -> None:
        """What is stuck, unlike what swallows its cancellation, goes on at once when the store is well again."""
        with trio.CancelScope(shield=True):
            if fault is FaultKind.STUCK:
                with trio.move_on_after(seconds):
                    await self._healed.wait()
            else:
                await trio.sleep(seconds)
        if trio.current_effective_deadline() < trio.current_time():
            self._watcher.count(fault)

    async def _weather(self, crashes: int) -> None:
        """Pass, wait, or fail, as the store is."""
        if self.mood is Mishap.STORE_HANGING:
            self._watcher.count(Mishap.STORE_HANGING)
            await self._healed.wait()
        if self._crashes != crashes:
            raise StoreUnavailable(self.name, "the connection broke: the store has crashed")
        if self.mood is Mishap.STORE_REFUSING:
            self._watcher.count(Mishap.STORE_REFUSING)
            raise StoreUnavailable(self.name, "connection refused")

    def _fail_before(self, fault: FaultKind | None) -> None:
        if fault is FaultKind.UNAVAILABLE:
            self._watcher.count(fault)
            raise StoreUnavailable(self.name, "injected: not now")
        if fault is FaultKind.DRIVER_ERROR:
            self._watcher.count(fault)
            raise DriverFault(f"{self.name}: injected")

    def _act(
        self, operation: str, ids: Sequence[str], items: Sequence[Any], records: Sequence[Any], fault: FaultKind | None
    ) -> list[Any]:
        """Have the effect, in one step, on every document that is served."""
        victim = self._rng.randrange(len(ids)) if fault in PER_DOCUMENT else -1
        effect = operation in ("write", "remove")
        if fault is FaultKind.REQUEST_LOST:
            self._watcher.count(fault)
            error: StoreError = StoreUnavailable(self.name, "injected: the request was lost")
            return [WriteAnswer(status=WriteStatus.UNKNOWN, error=error) for _ in ids]
        answers: list[Any] = []
        served = self._rng.randrange(1, len(ids)) if fault is FaultKind.PARTIAL_BULK else len(ids)
        for index, (doc_id, item) in enumerate(zip(ids[:served], items[:served], strict=True)):
            if index == victim:
                assert fault is not None
                answers.append(self._turn_down(fault, doc_id, effect=effect))
            elif effect:
                answers.append(self._apply(item, records[index]))
            elif operation == "observe":
                answers.append(self.observe_nowait(doc_id))
            elif operation == "read":
                answers.append(self._read(doc_id))
            else:
                answers.append(self._prepare(item))
        return answers

    def _turn_down(self, fault: FaultKind, doc_id: str, *, effect: bool) -> Any:
        self._watcher.count(fault)
        rejected = fault is FaultKind.REJECTED
        kind = StoreRejected if rejected else StoreUnavailable
        error = kind(self.name, f"injected: {'never' if rejected else 'not now'}", doc_id)
        if not effect:
            return error
        return WriteAnswer(status=WriteStatus.REJECTED if rejected else WriteStatus.UNKNOWN, error=error)

    def _apply(self, item: Write | Removal, record: Any) -> WriteAnswer:
        self._author, self._record = "engine", record
        try:
            if isinstance(item, Removal):
                return self._change(item.doc_id, item.token, None, None)
            return self._change(item.prepared.document.doc_id, item.token, item.prepared.document, None)
        finally:
            self._author, self._record = "app", None

    def _spoil(self, fault: FaultKind | None, answers: list[Any]) -> list[Any]:
        if fault is FaultKind.ACK_LOST:
            self._watcher.count(fault)
            error = StoreUnavailable(self.name, "injected: the answer was lost")
            return [WriteAnswer(status=WriteStatus.UNKNOWN, error=error) for _ in answers]
        if fault is FaultKind.WRONG_LENGTH:
            self._watcher.count(fault)
            return answers[:-1]
        if fault is FaultKind.SHUFFLED_ANSWERS:
            self._watcher.count(fault)
            return [*answers[1:], *answers[:1]]
        if fault is FaultKind.PARTIAL_BULK:
            self._watcher.count(fault)
            raise StoreUnavailable(self.name, "injected: the connection broke half-way")
        if fault is FaultKind.LATE_ERROR:
            self._watcher.count(fault)
            raise StoreUnavailable(self.name, "injected: the connection broke after the call")
        return answers

    async def _land_late(self, items: Sequence[Any], records: Sequence[Any], seconds: float, crashes: int) -> None:
        await trio.sleep(seconds)
        if self._crashes != crashes:
            return
        answers = [self._apply(item, record) for item, record in zip(items, records, strict=True)]
        if any(answer.status is WriteStatus.LANDED for answer in answers):
            self._watcher.count(Mishap.LATE_LANDING)

    # What checks call

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Observation | StoreError]:
        """As `MemoryStore`, unless the store is down."""
        return await self.serve("observe", doc_ids, doc_ids, ())

    @asynccontextmanager
    async def open_scan(self, after: str | None = None) -> AsyncGenerator[AsyncIterator[ScanPage], None]:
        """As `MemoryStore`, unless the store is down."""
        if self.mood is not None or self.fault_rate:
            raise StoreUnavailable(self.name, "connection refused")
        async with super().open_scan(after) as pages:
            yield pages

    # The truth, as it changes

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        before = self.observe_nowait(doc_id)
        self._remember(doc_id)
        after = super()._replace(doc_id, document)
        self._watcher.changed(self.name, doc_id, self._author, self._record, before, after)
        return after

    def damage(self, doc_id: str, *, intact: bool = False, embedding: EmbeddingIdentity | None = None) -> Observation:
        """As `MemoryStore`."""
        before = self.observe_nowait(doc_id)
        self._remember(doc_id)
        after = super().damage(doc_id, intact=intact, embedding=embedding)
        self._watcher.changed(self.name, doc_id, self._author, None, before, after)
        return after

    def _remember(self, doc_id: str) -> None:
        now = trio.current_time()
        while self._uncommitted and self._uncommitted[0][0] < now - _COMMIT_SECONDS:
            self._uncommitted.popleft()
        self._uncommitted.append((now, doc_id, self._copies.get(doc_id)))


@attrs.define
class Front:
    """What an engine is given as a store: every call and answer is witnessed."""

    store: SimStore
    watcher: Watcher

    @property
    def traits(self) -> StoreTraits:
        """Those of the store."""
        return self.store.traits

    async def observe(self, doc_ids: Sequence[str]) -> Sequence[Any]:
        """Witnessed."""
        return await self._call("observe", doc_ids, doc_ids)

    async def read(self, doc_ids: Sequence[str]) -> Sequence[Any]:
        """Witnessed."""
        return await self._call("read", doc_ids, doc_ids)

    async def prepare(self, documents: Sequence[Document]) -> Sequence[Any]:
        """Witnessed."""
        return await self._call("prepare", [document.doc_id for document in documents], documents)

    async def write(self, writes: Sequence[Write]) -> Sequence[Any]:
        """Witnessed."""
        return await self._call("write", [write.prepared.document.doc_id for write in writes], writes)

    async def remove(self, removals: Sequence[Removal]) -> Sequence[Any]:
        """Witnessed."""
        return await self._call("remove", [removal.doc_id for removal in removals], removals)

    def open_scan(self, after: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[ScanPage]]:
        """As the store."""
        return self.store.open_scan(after)

    async def count(self) -> int:
        """As the store."""
        return await self.store.count()

    async def aclose(self) -> None:
        """As the store."""
        await self.store.aclose()

    async def _call(self, operation: str, ids: Sequence[str], items: Sequence[Any]) -> Sequence[Any]:
        name = self.store.name
        records = self.watcher.call_began(name, operation, items)
        answers: Sequence[Any] | None = None
        try:
            answers = await self.store.serve(operation, ids, items, records)
        finally:
            self.watcher.call_ended(name, operation, records, answers)
        return answers
