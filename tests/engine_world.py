"""Three stores in memory with faults and time in front of each, and the jobs and settings that the tests share."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import attrs
import trio

from trio_repair import (
    AutoRepairConfig,
    Document,
    DocumentVersion,
    Presence,
    RepairJob,
    StepState,
    Stores,
    StoreTraits,
    SyncStrategy,
)
from trio_repair._stepping import Gather, Steps, Unwinding
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import FaultyStore, SimulatedStore, make_document

NAMES = ("text", "vector", "cache")


class World:
    """Stores by name, from the engine inwards: faults, then time, then memory. `traits` are those of `only`."""

    def __init__(
        self,
        latencies: Mapping[str, Mapping[str, float]] | None = None,
        *,
        cache: bool = True,
        only: Sequence[str] = NAMES,
        **traits: Any,
    ) -> None:
        names = NAMES if cache else NAMES[:2]
        slow = {} if latencies is None else latencies
        self.memory = {name: MemoryStore(name) for name in names}
        for name in set(names) & set(only):
            self.memory[name] = MemoryStore(name, traits=attrs.evolve(self.memory[name].traits, **traits))
        self.slow = {name: SimulatedStore(self.memory[name], slow.get(name, {})) for name in names}
        self.faulty = {name: FaultyStore(self.slow[name], name=name) for name in names}

    @property
    def stores(self) -> Stores:
        return Stores(**self.faulty)

    def put(self, name: str, doc_id: str = "d", *, number: int | None = 1, text: str | None = None) -> Document:
        """An application's write to one store."""
        document = make_document(doc_id, f"{doc_id} at {number}" if text is None else text, number=number)
        self.memory[name].put_nowait(document)
        return document

    def put_all(self, doc_id: str = "d", *, number: int | None = 1) -> None:
        for name in self.memory:
            self.put(name, doc_id, number=number)

    def drift(self, *doc_ids: str) -> None:
        """The text store holds version 2, the others (the cache too) version 1."""
        for doc_id in doc_ids or ("d",):
            self.put_all(doc_id, number=1)
            self.put("text", doc_id, number=2)

    def version(self, name: str, doc_id: str = "d") -> DocumentVersion | None:
        return self.memory[name].observe_nowait(doc_id).version

    def number(self, name: str, doc_id: str = "d") -> int | None:
        version = self.version(name, doc_id)
        return None if version is None else version.number

    def numbers(self, doc_id: str = "d") -> dict[str, int | None]:
        return {name: self.number(name, doc_id) for name in self.memory}

    def is_live(self, name: str, doc_id: str = "d") -> bool:
        return self.memory[name].observe_nowait(doc_id).presence is Presence.LIVE

    def snapshot(self) -> dict[str, object]:
        return {name: store.snapshot() for name, store in self.memory.items()}


def job(doc_id: str = "d", **given: Any) -> RepairJob:
    """A job that believes the text store, unless told otherwise."""
    return RepairJob(doc_id=doc_id, **{"strategy": SyncStrategy.TEXT_SOURCE_OF_TRUTH, **given})


def config(**given: Any) -> AutoRepairConfig:
    """Settings whose waits are short, so that the numbers in tests are small."""
    return AutoRepairConfig(**{"backoff_base": 0.1, "backoff_cap": 1.0, "drain_timeout": 1000.0, **given})


def states(result: Any) -> dict[str, StepState]:
    """The receipt, store by store."""
    return {step.store: step.state for step in result.receipt}


class Stubborn:
    """A store whose calls of one kind cannot be cancelled until `release` is set, as a driver's thread cannot."""

    def __init__(self, inner: Any, operation: str, *, doc_id: str | None = None, times: int | None = None) -> None:
        self.inner = inner
        self.peak_calls = 0
        """The most calls of that kind that were under way at once."""
        self._under_way = 0
        self._times = times
        self.release = trio.Event()
        self._operation = operation
        self._doc_id = doc_id

    @property
    def traits(self) -> StoreTraits:
        return self.inner.traits

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if name != self._operation:
            return method

        async def stubborn(items: Any) -> Any:
            self._under_way += 1
            self.peak_calls = max(self.peak_calls, self._under_way)
            try:
                if not self._strikes(items):
                    return await method(items)
                with trio.CancelScope(shield=True):
                    # Not for ever, so that a test that fails ends.
                    with trio.move_on_after(1e6):
                        await self.release.wait()
                    return await method(items)
            finally:
                self._under_way -= 1

        return stubborn

    def _strikes(self, items: Any) -> bool:
        if self._times == 0 or (self._doc_id is not None and self._doc_id not in map(_doc_id, items)):
            return False
        self._times = None if self._times is None else self._times - 1
        return True


def _doc_id(item: Any) -> str:
    if isinstance(item, str):
        return item
    document = getattr(item, "prepared", item)
    document = getattr(document, "document", document)
    return document.doc_id


def stepped(coroutine: Coroutine[Gather, None, Any], cut_off: Callable[[], bool] = lambda: False) -> Steps[Any]:
    """Runs it outside the scheduler; alone, unless `cut_off` gives True."""
    return Steps(coroutine, cut_off, Unwinding())


async def answered(gather: Gather) -> None:
    """Wait for a gather in a task of one's own."""

    async def wait() -> None:
        await gather

    await stepped(wait()).run()
