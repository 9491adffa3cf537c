"""Find the documents on which the stores do not agree, while applications go on writing."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Final, NoReturn, Self

import attrs
import trio

from ._config import AutoRepairConfig
from ._divergence import CRITICAL_STORES, Divergence, DivergenceKind, diagnose
from ._errors import MassChangeRefused, TrioRepairError
from ._lanes import StoreReader
from ._merge import Window, merge_ranges, report_failures
from ._model import SyncStrategy, check_doc_id
from ._planning import CacheStep, PlanAction, Policy, plan_repair
from ._views import Observation, Presence
from .abc import Stores

MAX_SUSPECTS: Final = 16_384
"""How many suspects may wait for their second look, some 10 MB with short ids. Then the scan waits for the oldest."""

MAX_FURTHER_LOOKS: Final = 3
"""How often a suspect that has changed between two looks is looked at once more."""

_SLACK: Final = 1 / 8
"""Second looks wait this part of `settle` longer than they must, so that one call takes many suspects."""

_DELIVERIES: Final = 256
"""How many divergences may wait for the caller to take them."""


@attrs.frozen(kw_only=True)
class CheckStatistics:
    """How far a check has come, and what it found."""

    documents: int
    """How many documents the scans have passed: the distinct ids over all stores, tombstones included."""
    divergent: int
    """How many divergences were handed out."""
    by_kind: Mapping[DivergenceKind, int]
    """How many documents show each kind; one document can show several."""
    unsettled: int
    """How many documents kept changing, or could not be looked at one by one, and so are not reported."""
    last_id: str | None
    """All documents up to here are dealt with: `check(..., after=last_id)` goes on. None: nothing is yet."""
    complete: bool
    """True once every document is dealt with."""


@attrs.define
class _Suspect:
    doc_id: str
    state: tuple[str | None, ...]
    """What identifies each store's copy, in the order of the stores."""
    seen: float
    """No earlier than the last look, on the clock of `trio.current_time()`."""
    looks_left: int = MAX_FURTHER_LOOKS


def _state(view: Observation) -> str | None:
    """Changes when the copy does. Not the token of an absent one: a scan gives none for what it passes over."""
    return None if view.presence is Presence.ABSENT else view.token


class Checking:
    """A check under way: iterate over it for divergences, in no promised order.

    Get one from `check`. One consumer that is slow slows the scans down; nothing piles up.
    """

    def __init__(self, stores: Stores, config: AutoRepairConfig, after: str | None) -> None:
        by_name = stores.by_name
        self._settle = config.settle
        self._after = after
        self._readers = [StoreReader(name, store, config.store_call_timeout) for name, store in by_name.items()]
        self._traits = {name: store.traits for name, store in by_name.items()}
        self._batch = min(traits.max_batch for traits in self._traits.values())
        self._send, self._receive = trio.open_memory_channel[Divergence](_DELIVERIES)

        self._documents = 0
        self._scanned_to = after
        self._scanned = False
        self._divergent = 0
        self._by_kind: Counter[DivergenceKind] = Counter()
        self._unsettled = 0
        self._error: TrioRepairError | None = None
        self._finished = False

        # Ordered by `seen`: new suspects and those to be looked at once more both go to the end.
        self._suspects: deque[_Suspect] = deque()
        # Every suspect that is neither dropped nor in the caller's hands, with an id up to which, without those that
        # are in here, nothing is left to do; in ascending order of id, as they were scanned.
        self._open: dict[str, str | None] = {}
        # Keeps `_suspects`, with the batch that is being looked at, within MAX_SUSPECTS.
        self._room = trio.Semaphore(MAX_SUSPECTS, max_value=MAX_SUSPECTS)
        self._news = trio.Event()

    def __repr__(self) -> str:
        return f"<Checking: {self._documents} documents, {len(self._open)} suspects, {self._divergent} divergent>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Divergence:
        """The next divergence that two looks confirmed, with what the second look saw.

        Raises:
            StopAsyncIteration: all documents were looked at.
            CheckIncomplete: a store could not be read to the end.
            StoreMisbehaved: a store's adapter broke its contract, for instance by an unsorted scan.
            trio.ClosedResourceError: the `async with` block has been left.

        **If cancelled:** no divergence is lost; the next call gets it.
        """
        try:
            divergence = await self._receive.receive()
        except trio.EndOfChannel:
            if self._error is not None:
                raise self._error from self._error.__cause__
            raise StopAsyncIteration from None
        self._open.pop(divergence.doc_id, None)
        self._divergent += 1
        self._by_kind.update(divergence.kinds)
        return divergence

    def statistics(self) -> CheckStatistics:
        """How far the check has come; it may be asked at any time, and after the block was left."""
        first_open = next(iter(self._open), None)
        return CheckStatistics(
            documents=self._documents,
            divergent=self._divergent,
            by_kind=MappingProxyType(dict(self._by_kind)),
            unsettled=self._unsettled,
            last_id=self._scanned_to if first_open is None else self._open[first_open],
            complete=self._finished and not self._open,
        )

    async def _run(self) -> None:
        try:
            await report_failures(self._look)
        except TrioRepairError as error:
            self._error = error
        else:
            self._finished = True
        finally:
            self._send.close()

    async def _look(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._confirm)
            await merge_ranges(self._readers, self._suspect, after=self._after)
            self._scanned = True
            self._news.set()

    async def _suspect(self, window: Window) -> None:
        """Note the documents of one window that may diverge."""
        looked = await window.look()
        for doc_id, previous in window.suspects:
            views = looked[doc_id]
            if diagnose(doc_id, views, self._traits) is None:
                continue
            try:
                self._room.acquire_nowait()
            except trio.WouldBlock:
                await self._room.acquire()
            self._open[doc_id] = previous
            state = tuple(_state(views[reader.role]) for reader in self._readers)
            self._suspects.append(_Suspect(doc_id, state, seen=trio.current_time()))
            self._news.set()
        self._documents += window.documents
        self._scanned_to = window.bound

    async def _confirm(self) -> None:
        """Give suspects their further looks, until none is left and none can come."""
        while True:
            while not self._suspects:
                if self._scanned:
                    return
                self._news = trio.Event()
                await self._news.wait()
            await trio.sleep_until(self._suspects[0].seen + self._settle * (1 + _SLACK))
            batch = self._take_due()
            answers = await self._observe([suspect.doc_id for suspect in batch])
            for suspect, answer in zip(batch, answers, strict=True):
                await self._judge(suspect, answer)

    def _take_due(self) -> list[_Suspect]:
        """The oldest suspect, whose time has come, and those that can be looked at with it."""
        latest = trio.current_time() - self._settle
        batch = [self._suspects.popleft()]
        while self._suspects and self._suspects[0].seen <= latest and len(batch) < self._batch:
            batch.append(self._suspects.popleft())
        return batch

    async def _observe(self, doc_ids: Sequence[str]) -> list[Mapping[str, Observation]]:
        """What each store holds of each document; a store that cannot say of one document is left out there."""
        views: list[dict[str, Observation]] = [{} for _ in doc_ids]

        async def look(reader: StoreReader) -> None:
            for view, answer in zip(views, await reader.observe(doc_ids), strict=True):
                if isinstance(answer, Observation):
                    view[reader.role] = answer

        async with trio.open_nursery() as nursery:
            for reader in self._readers:
                nursery.start_soon(look, reader)
        return list(views)

    async def _judge(self, suspect: _Suspect, views: Mapping[str, Observation]) -> None:
        """Drop a suspect, hand it out, or put it back for another look."""
        known = all(name in views for name in CRITICAL_STORES)
        divergence = diagnose(suspect.doc_id, views, self._traits) if known else None
        if divergence is None and len(views) == len(self._readers):
            self._close(suspect)
            return
        before = {reader.role: state for reader, state in zip(self._readers, suspect.state, strict=True)}
        now = {**before, **{name: _state(view) for name, view in views.items()}}
        if divergence is not None and now == before:
            # It stays open until the caller has it: a check that is left early goes on from there.
            await self._send.send(divergence)
            self._room.release()
        elif suspect.looks_left:
            self._suspects.append(
                _Suspect(suspect.doc_id, tuple(now.values()), trio.current_time(), suspect.looks_left - 1)
            )
        else:
            self._unsettled += 1
            self._close(suspect)

    def _close(self, suspect: _Suspect) -> None:
        del self._open[suspect.doc_id]
        self._room.release()


@asynccontextmanager
async def check(
    stores: Stores, config: AutoRepairConfig | None = None, *, after: str | None = None
) -> AsyncGenerator[Checking, None]:
    """Find the documents on which the stores do not agree.

    ``async with check(stores) as checking:`` and, in it, ``async for divergence in checking:``.

    All stores are scanned side by side. What seems to diverge is looked at again `settle` seconds later, and handed
    out if it still diverges and has not changed in between, so that writes under way cause no false alarm. Missing
    from the cache is nothing. Nothing is written. Memory is bounded whatever the stores hold. Leaving the block
    early ends the check and closes the scans.

    Args:
        stores: the stores; they may be in use by an engine.
        config: `settle`, `store_call_timeout`. None: the defaults.
        after: look at documents with a greater id only, for instance `CheckStatistics.last_id` of an earlier check.

    Raises:
        InvalidDocumentId: `after` can be no document's id.

    **If cancelled:** the scans are closed; nothing has changed.
    """
    config = AutoRepairConfig() if config is None else config
    checking = Checking(stores, config, None if after is None else check_doc_id(after))
    body_error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(checking._run)
            try:
                yield checking
            except trio.Cancelled:
                raise
            except BaseException as error:
                # Raised again outside, so that the caller's own exception does not come back in a group.
                body_error = error
            nursery.cancel_scope.cancel()
    finally:
        # Not earlier: a delivery that waits for room would find the channel broken.
        checking._receive.close()
    if body_error is not None:
        raise body_error


@attrs.frozen(kw_only=True)
class ChangeCounts:
    """What a bulk repair would do, counted before it does anything."""

    documents: int
    """The distinct ids over all stores, tombstones included."""
    divergent: int
    changes: int
    """How many documents would be written to a critical store, deletes included."""
    deletes: int
    """How many documents would lose a live copy to a tombstone, or the only copy, which the cache holds."""
    manual: int
    """How many would be left to a person."""

    def guard(self, config: AutoRepairConfig) -> None:
        """Stop a repair that changes suspiciously much: a wrong or emptied store must not become a mass change.

        Raises:
            MassChangeRefused: `max_changed` or `max_deletes` is exceeded, and `allow_mass` is not set.
        """
        if config.allow_mass:
            return
        if self.deletes > config.max_deletes * self.documents:
            self._refuse("delete", self.deletes, "max_deletes", config.max_deletes)
        if self.changes > config.max_changed * self.documents:
            self._refuse("change", self.changes, "max_changed", config.max_changed)

    def _refuse(self, verb: str, count: int, setting: str, allowed: float) -> NoReturn:
        raise MassChangeRefused(
            f"the repair would {verb} {count} of {self.documents} documents "
            f"({100 * count / max(1, self.documents):.3g}%; {setting} is {allowed:g}, which is {100 * allowed:.3g}%) "
            f"and was not begun; "
            f"make sure that the right stores are named and none was emptied, then set allow_mass to go ahead",
            documents=self.documents,
            changes=self.changes,
            deletes=self.deletes,
        )


async def count_changes(
    stores: Stores,
    strategy: SyncStrategy,
    config: AutoRepairConfig | None = None,
    *,
    now: Callable[[], float] = time.time,
    on_progress: Callable[[int], object] | None = None,
) -> ChangeCounts:
    """Count what a repair of everything would do, by one scan of all stores. Nothing is written.

    There is no second look: documents that are being written meanwhile may be counted.

    Args:
        stores: the stores; they may be in use by an engine.
        strategy: which copy the repair would believe.
        config: the settings that the repair would have. None: the defaults.
        now: the wall clock in Unix seconds, for hybrid-logical-clock numbers.
        on_progress: called now and then with the number of documents counted so far.

    Raises:
        CheckIncomplete: a store could not be read to the end.
        StoreMisbehaved: a store's adapter broke its contract.

    **If cancelled:** the scans are closed; nothing has changed.
    """
    config = AutoRepairConfig() if config is None else config
    policy = Policy.of(stores, config)
    counts: Counter[str] = Counter()

    async def count(window: Window) -> None:
        counts["documents"] += window.documents
        for doc_id, views in (await window.look()).items():
            if diagnose(doc_id, views, policy.traits) is None:
                continue
            plan = plan_repair(doc_id, views, strategy, policy, now=now())
            counts["divergent"] += 1
            counts["manual"] += plan.action is PlanAction.MANUAL
            # A copy that only the cache holds is the last one: to remove it is a delete like any other.
            last_copy = plan.version is None and plan.cache_step is CacheStep.INVALIDATE
            counts["changes"] += bool(plan.writes) or last_copy
            counts["deletes"] += last_copy or (
                plan.action is PlanAction.DELETE
                and any(views[write.store].presence is Presence.LIVE for write in plan.writes)
            )
        if on_progress is not None:
            on_progress(counts["documents"])

    readers = [StoreReader(name, store, config.store_call_timeout) for name, store in stores.by_name.items()]
    await report_failures(lambda: merge_ranges(readers, count, after=None))
    return ChangeCounts(
        documents=counts["documents"],
        divergent=counts["divergent"],
        changes=counts["changes"],
        deletes=counts["deletes"],
        manual=counts["manual"],
    )
