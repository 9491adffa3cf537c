"""`repair_machine`: engines and stores that keep their promises pass; planted stores and engines do not."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from properties.planted import Bug, planted
from stores.sqlite_support import OPENERS

from trio_repair import (
    AutoRepairConfig,
    Document,
    EventKind,
    InvalidDocumentId,
    InvalidValue,
    Observation,
    Presence,
    RepairOutcome,
    Stores,
    StoreUnavailable,
    WriteAnswer,
    WriteStatus,
)
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import CrashingStore, FaultKind, FaultyStore, make_document
from trio_repair.testing._ground import grounded
from trio_repair.testing.stateful import RepairMachine, repair_machine


@asynccontextmanager
async def unreliable() -> AsyncGenerator[Stores, None]:
    """Stores that fail in every way, crashes included."""
    yield Stores(
        text=FaultyStore(CrashingStore("text", commit_after=1.0)),
        vector=FaultyStore(CrashingStore("vector")),
        cache=FaultyStore(MemoryStore("cache")),
    )


def opens(make: Callable[[str], MemoryStore]) -> Any:
    """Opens stores that `make` makes, without faults."""

    @asynccontextmanager
    async def stores() -> AsyncGenerator[Stores, None]:
        yield Stores(text=make("text"), vector=make("vector"), cache=MemoryStore("cache"))

    return stores


def search(machine: type[RepairMachine], examples: int = 300) -> None:
    """Run it without shrinking what it finds."""
    chosen = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=chosen)


TestUnreliableStores = repair_machine(unreliable).TestCase
TestUnreliableStores.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)

TestClockNumbers = repair_machine(
    unreliable,
    config=AutoRepairConfig(numbers="hlc", missing_source="delete", cache="fill"),
    fault_kinds=[FaultKind.CLOCK_SKEW, FaultKind.LATE_LANDING, FaultKind.STUCK],
).TestCase
TestClockNumbers.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


def test_it_reaches_what_can_happen() -> None:
    """Non-vacuity: a short search sees repairs, failures, retries, what people must decide, and many kinds of fault."""
    outcomes: set[RepairOutcome] = set()
    events: set[EventKind] = set()
    injected: set[FaultKind] = set()

    class Watched(repair_machine(unreliable)):  # type: ignore[misc]  # a class that a function made
        async def at_end(self) -> None:
            await super().at_end()
            outcomes.update(event.result.outcome for event in self.events if event.result is not None)
            events.update(event.kind for event in self.events)
            for store in self.world.faulty.values():
                injected.update(store.injected)

    search(Watched, 150)
    assert {
        RepairOutcome.REPAIRED,
        RepairOutcome.ALREADY_CONSISTENT,
        RepairOutcome.NEEDS_MANUAL,
        RepairOutcome.FAILED,
    } <= outcomes
    assert EventKind.RETRY in events
    assert len(injected) >= 5, injected


def test_sqlite_stores_on_the_real_clock(tmp_path: Path) -> None:
    """The machine drives stores with files and threads: their fences, tombstones and receipts hold."""
    names = itertools.count()

    @asynccontextmanager
    async def on_disk() -> AsyncGenerator[Stores, None]:
        directory = tmp_path / str(next(names))
        directory.mkdir()
        async with AsyncExitStack() as stack:
            opened = {
                name: await stack.enter_async_context(opener(directory / f"{name}.db", create=True))
                for name, opener in OPENERS.items()
            }
            yield Stores(**opened)

    hasty = AutoRepairConfig(settle=0.01, backoff_base=0.01, breaker_reset=0.05, job_timeout_seconds=20.0)
    search(repair_machine(on_disk, config=hasty, real_time=True), 5)


class NoFence(MemoryStore):
    """Writes whatever token it is given."""

    def _change(self, doc_id: str, expected: str, document: Document | None, held: Any) -> WriteAnswer:
        return WriteAnswer(status=WriteStatus.LANDED, observation=self._replace(doc_id, document))


class DropsWrites(MemoryStore):
    """Says that a write has landed, and has not done it; every third one."""

    writes = 0

    def _change(self, doc_id: str, expected: str, document: Document | None, held: Any) -> WriteAnswer:
        self.writes += 1
        if self.writes % 3 == 0:
            return WriteAnswer(status=WriteStatus.LANDED, observation=self.observe_nowait(doc_id))
        return super()._change(doc_id, expected, document, held)


class KeepsTheDeleted(MemoryStore):
    """Says that a delete has landed, and leaves the row."""

    def _replace(self, doc_id: str, document: Document | None) -> Observation:
        if document is None or document.version.deleted:
            return self.observe_nowait(doc_id)
        return super()._replace(doc_id, document)


class Forgets(MemoryStore):
    """Loses what it held of a document when it is asked for the tenth time."""

    looks = 0

    def observe_nowait(self, doc_id: str) -> Observation:
        self.looks += 1
        if self.looks % 10 == 0:
            self._copies.pop(doc_id, None)
        return super().observe_nowait(doc_id)


def test_control_a_store_without_a_fence_is_rejected() -> None:
    """Two writers displace one state, and what is said is that the fence does not hold."""

    @asynccontextmanager
    async def unfenced() -> AsyncGenerator[Stores, None]:
        yield Stores(text=FaultyStore(NoFence("text")), vector=FaultyStore(NoFence("vector")))

    with pytest.raises(AssertionError, match="fence does not hold"):
        search(repair_machine(unfenced, fault_kinds=[FaultKind.CONCURRENT_WRITE]))


@pytest.mark.parametrize("store", [DropsWrites, KeepsTheDeleted, Forgets])
def test_control_a_wrong_store_is_rejected(store: type[MemoryStore]) -> None:
    """A store that breaks a promise makes some program fail, and what fails is an invariant."""
    with pytest.raises(AssertionError, match=r"I\d+"):
        search(repair_machine(opens(store)))


def test_control_right_stores_pass_the_same_search() -> None:
    """The search that rejects the planted stores finds nothing in the store that they are made from."""
    search(repair_machine(opens(MemoryStore)), 15)


BUGS: list[tuple[Bug, Any]] = [
    (
        Bug(
            "a permit is not counted",
            "_active:ActiveTable.__len__",
            "len(self._entries)",
            "(len(self._entries) + 1) // 2",
        ),
        unreliable,
    ),
    (
        Bug(
            "a copy of another number counts as equal",
            "_divergence:is_equal",
            "if held.number != version.number and traits.numbered:",
            "if False:",
        ),
        opens(MemoryStore),
    ),
    (
        Bug(
            "a tombstone is overridden",
            "_planning:_most_recent",
            "live_number > deleted_number",
            "live_number < deleted_number",
        ),
        opens(MemoryStore),
    ),
]


@pytest.mark.parametrize(("bug", "open_stores"), BUGS, ids=[str(bug) for bug, _ in BUGS])
def test_control_a_wrong_engine_is_rejected(bug: Bug, open_stores: Any) -> None:
    """The machine that the engine passes fails for the engine with a planted bug, and names an invariant."""
    with planted(bug), pytest.raises(AssertionError, match=r"I\d+"):
        search(repair_machine(open_stores))


def test_stores_that_hold_something_already() -> None:
    """Contents that are there from the beginning are what the machine goes on from."""
    seen: list[Presence] = []

    @asynccontextmanager
    async def filled() -> AsyncGenerator[Stores, None]:
        text = MemoryStore("text")
        text.put_nowait(make_document("a", "held before", number=7))
        yield Stores(text=text, vector=MemoryStore("vector"))

    class Watched(repair_machine(filled, doc_ids=["a"])):  # type: ignore[misc]  # a class that a function made
        async def at_end(self) -> None:
            await super().at_end()
            seen.append((await self.world.look("a"))["text"].presence)

    search(Watched, 5)
    assert Presence.LIVE in seen


def test_machines_that_make_no_sense_are_refused() -> None:
    """No documents, a wrong id, and a fault that takes wall time out of virtual time are errors at once."""
    with pytest.raises(InvalidValue, match="doc_ids"):
        repair_machine(unreliable, doc_ids=[])
    with pytest.raises(InvalidDocumentId):
        repair_machine(unreliable, doc_ids=[""])
    with pytest.raises(InvalidValue, match="blocked-loop"):
        repair_machine(unreliable, fault_kinds=[FaultKind.BLOCKED_LOOP])


class InTheMiddle:
    """Awaits a coroutine, and does something when it waits for the first time."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], act: Callable[[], None]) -> None:
        self._coroutine = coroutine
        self._act = act

    def __await__(self) -> Generator[Any, Any, Any]:
        trap = self._coroutine.send(None)
        self._act()
        while True:
            value = yield trap
            try:
                trap = self._coroutine.send(value)
            except StopIteration as stop:
                return stop.value


async def test_a_look_that_a_crash_cuts_off_is_an_error_and_no_failure(autojump_clock: None) -> None:
    """What the machine looks at may crash just then; that is no fault of an engine. Control: a look in peace."""
    store = CrashingStore("text")
    ground = grounded("text", store)
    cut_off = await InTheMiddle(ground.look("a"), store.crash)
    in_peace = await ground.look("a")
    assert [StoreUnavailable, Observation] == [type(one) for one in (cut_off, in_peace)]
