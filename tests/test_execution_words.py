"""What a repair tells, to the word: error, warnings and the receipt's details for each way in which it may end."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from engine_world import Stubborn, World, config, job, states

from trio_repair import (
    ContentDefinition,
    Document,
    DocumentVersion,
    EventKind,
    RepairExecutionEngine,
    RepairOutcome,
    RepairPhase,
    StepState,
    Stores,
    SyncStrategy,
    WriteAnswer,
    WriteStatus,
    open_repair_engine,
)
from trio_repair._clock import pack
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import Fault, FaultKind, RecordingInstrument

ONCE: dict[str, Any] = {"max_retries": 0}
WARNING = "Cache update warning: cache store"


async def _repair(world: World, *, settings: dict[str, Any] | None = None, instruments: Any = (), **given: Any) -> Any:
    settings = {} if settings is None else settings
    async with open_repair_engine(
        world.stores, config(**settings), instruments=instruments, rng=random.Random(1)
    ) as engine:
        return await engine.execute_repair_job(job(**given))


@pytest.mark.parametrize(
    ("faults", "error", "details"),
    [
        (
            {"vector": [Fault(FaultKind.REJECTED, "prepare")]},
            "Vector store update failed: injected: never",
            {"text": None, "vector": "injected: never", "cache": None},
        ),
        (
            {"vector": [Fault(FaultKind.DRIVER_ERROR, "prepare")]},
            "Vector store update failed: prepare raised DriverFault",
            {"text": None, "vector": "prepare raised DriverFault", "cache": None},
        ),
        (
            {"vector": [Fault(FaultKind.REJECTED, "write")]},
            "Vector store update failed: injected: never",
            {"text": None, "vector": "injected: never", "cache": None},
        ),
        (
            {"vector": [Fault(FaultKind.UNAVAILABLE, "write")]},
            "Vector store update failed: injected: not now",
            {"text": None, "vector": "injected: not now", "cache": None},
        ),
        (
            {"vector": [Fault(FaultKind.REQUEST_LOST, "write")]},
            "Vector store update failed: injected: the request was lost",
            {"text": None, "vector": "injected: the request was lost", "cache": None},
        ),
        (
            {"vector": [Fault(FaultKind.HANG, "write")]},
            "Vector store update failed: write did not answer within 1 s",
            {"text": None, "vector": "write did not answer within 1 s", "cache": None},
        ),
        (
            {"text": [Fault(FaultKind.UNAVAILABLE, "observe")], "vector": [Fault(FaultKind.UNAVAILABLE, "observe")]},
            "text store: injected: not now; vector store: injected: not now",
            {"text": "injected: not now", "vector": "injected: not now", "cache": None},
        ),
        (
            {"text": [Fault(FaultKind.UNAVAILABLE, "read")]},
            "text store: injected: not now",
            {"text": None, "vector": None, "cache": None},
        ),
        (
            {"text": [Fault(FaultKind.REJECTED, "read")]},
            "Manual resolution required: the text store cannot give the text (injected: never)",
            {"text": None, "vector": None, "cache": None},
        ),
    ],
)
async def test_what_went_wrong_with_a_critical_store(
    autojump_clock, faults: dict[str, list[Fault]], error: str, details: dict[str, str | None]
):
    """The error says what was tried and what came of it; the receipt says it of that store and of no other."""
    world = World()
    world.drift()
    for name, given in faults.items():
        world.faulty[name].add(*given)
    result = await _repair(world, settings={"store_call_timeout": 1.0, "breaker_reset": 0.1}, **ONCE)
    assert error == result.error
    assert details == {step.store: step.detail for step in result.receipt}
    assert {"text": 2, "vector": 1, "cache": 1} == world.numbers()


class Mute:
    """A store that writes nothing, and gives a verdict without a reason."""

    def __init__(self, inner: Any, status: WriteStatus) -> None:
        self.inner = inner
        self.status = status

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def write(self, writes: Any) -> Any:
        return [WriteAnswer(status=self.status) for _ in writes]

    async def remove(self, removals: Any) -> Any:
        if self.status is WriteStatus.UNKNOWN:
            return await self.write(removals)
        return await self.inner.remove(removals)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (WriteStatus.UNKNOWN, "Vector store update failed: the store gave no verdict and holds nothing new"),
        (WriteStatus.REJECTED, "Vector store update failed: the store refuses the document"),
        (WriteStatus.REFUSED, "vector store: document 'd' changed while being repaired; look again"),
    ],
)
async def test_a_store_that_gives_a_verdict_without_a_reason(autojump_clock, status: WriteStatus, error: str):
    """Then the error says that much, and the receipt adds nothing of its own."""
    world = World()
    world.drift()
    stores = attrs.evolve(world.stores, vector=Mute(world.faulty["vector"], status))
    async with open_repair_engine(stores, config()) as engine:
        result = await engine.execute_repair_job(job(**ONCE))
    assert (RepairOutcome.FAILED, error) == (result.outcome, result.error)
    assert None is result.step("vector").detail


async def test_a_cache_that_refuses_without_a_reason(autojump_clock):
    """Its entry is removed, and the warning does not make up a reason."""
    world = World()
    world.drift()
    stores = attrs.evolve(world.stores, cache=Mute(world.faulty["cache"], WriteStatus.REJECTED))
    async with open_repair_engine(stores, config()) as engine:
        result = await engine.execute_repair_job(job(**ONCE))
    assert (f"{WARNING}: entry removed, not refreshed: the entry may be stale",) == result.warnings
    assert None is world.number("cache")


async def test_an_earlier_write_that_has_not_ended(autojump_clock):
    """The document has changed beside a write that goes on after it was given up: no second one, and that is said."""
    world = World()
    world.drift()
    vector = Stubborn(world.faulty["vector"], "write")
    async with open_repair_engine(
        attrs.evolve(world.stores, vector=vector), config(store_call_timeout=1.0, breaker_reset=0.1)
    ) as engine:
        async with trio.open_nursery() as nursery:
            handle = engine.submit_nowait(job(**ONCE))
            nursery.start_soon(handle.wait)
            await trio.sleep(0.5)
            world.put("vector", number=0)
            await trio.sleep(30.0)
            vector.release.set()
        result = await handle.wait()
    assert (RepairOutcome.FAILED, "Vector store update failed: an earlier write has not ended") == (
        result.outcome,
        result.error,
    )


async def test_every_new_look_is_counted(autojump_clock):
    """Two looks more than one: `statistics()` says two."""
    world = World()
    world.drift()
    world.faulty["vector"].add(Fault(FaultKind.CONCURRENT_WRITE, "write", times=2))
    async with open_repair_engine(world.stores, config()) as engine:
        assert (await engine.execute_repair_job(job())).success
        assert 2 == engine.statistics().reobserved


async def test_a_document_that_never_rests(autojump_clock):
    """It is named, and what to do."""
    world = World()
    world.put("text", number=1)
    world.put("vector", number=7)

    async def writer() -> None:
        for number in range(8, 10_000):
            await trio.sleep(0.4)
            world.put("vector", number=number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer)
        result = await _repair(world, settings={"settle": 1.0, "max_reobserve": 1})
        nursery.cancel_scope.cancel()
    assert (
        "document 'd' changed while being repaired, each time it was to settle; repair again when it rests"
    ) == result.error


async def test_a_tombstone_is_written_as_it_is(autojump_clock):
    """With the time of the delete, for people."""
    when = dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc)
    world = World()
    world.put_all(number=3)
    world.memory["text"].put_nowait(Document.tombstone("d", number=4, updated_at=when))
    assert (await _repair(world)).success
    assert DocumentVersion(number=4, deleted=True) == world.version("vector")
    assert when == world.version("vector").updated_at


async def test_both_critical_stores_refuse_the_document(autojump_clock):
    """Deleted from neither, written to neither: both problems are told, in the order text, vector."""
    world = World()
    world.put("text", number=1)
    world.put("vector", number=2)
    world.memory["vector"].delete_nowait("d", number=3)
    world.memory["text"].delete_nowait("d", number=2)
    for name in ("text", "vector"):
        world.put(name, number=5, text="damaged")
    world.put("vector", number=6)
    for operation in ("prepare", "write"):
        for name in ("text", "vector"):
            world.faulty[name].heal()
            world.faulty[name].add(Fault(FaultKind.REJECTED, operation))
        async with open_repair_engine(world.stores, config()) as engine:
            result = await engine.resolve("d", "delete")
        assert (
            "Text search update failed: injected: never; Vector store update failed: injected: never"
        ) == result.error
        assert RepairOutcome.FAILED is result.outcome


async def test_a_document_that_moves_between_look_and_write(autojump_clock):
    """It is named, with the store that has changed and what to do; each new look is told of."""
    world = World()
    world.drift()
    world.faulty["vector"].add(Fault(FaultKind.CONCURRENT_WRITE, "write"))
    listener = RecordingInstrument()
    result = await _repair(world, settings={"max_reobserve": 1}, instruments=[listener], **ONCE)
    assert "vector store: document 'd' changed while being repaired; look again" == result.error
    (again,) = [event for event in listener.events if event.kind is EventKind.REOBSERVED]
    assert ("d", "vector", "d") == (again.doc_id, again.store, again.job.doc_id)


async def test_what_is_seen_is_told(autojump_clock):
    """Each look at each store, with token and version: before, and the critical stores again after."""
    world = World()
    world.drift()
    before = {name: store.observe_nowait("d") for name, store in world.memory.items()}
    listener = RecordingInstrument()
    await _repair(world, instruments=[listener])
    after = {name: store.observe_nowait("d") for name, store in world.memory.items()}
    seen = [
        (event.doc_id, event.store, event.token, event.version)
        for event in listener.events
        if event.kind is EventKind.OBSERVED
    ]
    expected = [("d", name, view.token, view.version) for name, view in before.items()]
    expected += [("d", name, after[name].token, after[name].version) for name in ("text", "vector")]
    assert sorted(expected, key=str) == sorted(seen, key=str)


@pytest.mark.parametrize(
    ("faults", "warning", "detail", "number"),
    [
        ([Fault(FaultKind.UNAVAILABLE, "observe")], f"{WARNING}: injected: not now", "injected: not now", 1),
        (
            [Fault(FaultKind.REJECTED, "prepare")],
            f"{WARNING}: entry removed, not refreshed: injected: never",
            None,
            None,
        ),
        (
            [Fault(FaultKind.REJECTED, "write")],
            f"{WARNING}: entry removed, not refreshed: injected: never",
            "injected: never",
            None,
        ),
        (
            [Fault(FaultKind.UNAVAILABLE, "write"), Fault(FaultKind.UNAVAILABLE, "remove")],
            f"{WARNING}: document 'd': injected: not now",
            "injected: not now",
            1,
        ),
        (
            [Fault(FaultKind.REJECTED, "prepare"), Fault(FaultKind.REQUEST_LOST, "remove")],
            f"{WARNING}: document 'd': injected: the request was lost",
            "injected: the request was lost",
            1,
        ),
        (
            [Fault(FaultKind.CONCURRENT_WRITE, "write")],
            f"{WARNING}: document 'd' changed while being repaired; its entry may be stale",
            None,
            ...,
        ),
    ],
)
async def test_what_went_wrong_with_the_cache(
    autojump_clock, faults: list[Fault], warning: str, detail: str | None, number: Any
):
    """The repair has succeeded all the same; one warning says what the entry is like now."""
    world = World()
    world.drift()
    world.faulty["cache"].add(*faults)
    result = await _repair(world, **ONCE)
    assert (RepairOutcome.REPAIRED, None, (warning,)) == (result.outcome, result.error, result.warnings)
    assert detail == result.step("cache").detail
    assert number in (..., world.number("cache"))


async def test_a_source_that_changes_while_the_cache_is_refreshed_from_it(autojump_clock):
    """The critical stores were read back equal; what the text store holds a moment later is not put into the cache."""
    world = World()
    world.put_all(number=2)
    world.put("cache", number=1)
    world.faulty["text"].add(Fault(FaultKind.CONCURRENT_WRITE, "read"))
    result = await _repair(world, **ONCE)
    assert (f"{WARNING}: entry removed, not refreshed: the source changed meanwhile",) == result.warnings
    assert None is world.number("cache")


async def test_an_entry_that_cannot_be_removed_for_no_reason_that_is_given(autojump_clock):
    """It is named, and may be stale."""
    world = World()
    world.drift()
    stores = attrs.evolve(world.stores, cache=Mute(world.faulty["cache"], WriteStatus.UNKNOWN))
    async with open_repair_engine(stores, config(cache="invalidate")) as engine:
        result = await engine.execute_repair_job(job(**ONCE))
    assert (f"{WARNING}: document 'd': the entry may be stale",) == result.warnings


async def test_a_cache_that_cannot_be_filled(autojump_clock):
    """Where there was no entry there is none now, and why is said."""
    world = World()
    world.put("text", number=2)
    world.put("vector", number=2)
    world.faulty["cache"].add(Fault(FaultKind.REJECTED, "prepare"))
    result = await _repair(world, settings={"cache": "fill"}, **ONCE)
    assert (f"{WARNING}: injected: never",) == result.warnings
    assert {"text": 2, "vector": 2, "cache": None} == world.numbers()


@attrs.define
class Watched:
    """A store that notes in which phase of the repair it is called."""

    inner: Any
    name: str
    phases: list[tuple[str, str, RepairPhase]]
    engine: Callable[[], RepairExecutionEngine]

    def __getattr__(self, operation: str) -> Any:
        method = getattr(self.inner, operation)
        if operation not in ("observe", "read", "prepare", "write", "remove"):
            return method

        async def call(items: Any) -> Any:
            (row,) = self.engine().active_operations.values()
            self.phases.append((self.name, operation, row.phase))
            return await method(items)

        return call


@pytest.mark.parametrize(
    ("critical", "expected"),
    [
        (
            True,
            [
                ("text", "read", RepairPhase.READ),
                ("vector", "prepare", RepairPhase.PREPARE),
                ("vector", "write", RepairPhase.WRITE),
                ("cache", "prepare", RepairPhase.CACHE),
                ("cache", "write", RepairPhase.CACHE),
            ],
        ),
        (
            False,
            [
                ("text", "read", RepairPhase.READ),
                ("cache", "prepare", RepairPhase.CACHE),
                ("cache", "write", RepairPhase.CACHE),
            ],
        ),
    ],
)
async def test_the_phase_that_is_shown_is_what_is_done(autojump_clock, critical: bool, expected: list[Any]):
    """Whatever a store is asked, the row of the running repair says why."""
    world = World()
    world.put_all(number=2)
    for name in ("vector", "cache") if critical else ("cache",):
        world.put(name, number=1)
    phases: list[tuple[str, str, RepairPhase]] = []
    engines: list[RepairExecutionEngine] = []
    stores = {name: Watched(store, name, phases, lambda: engines[0]) for name, store in world.faulty.items()}
    async with open_repair_engine(Stores(**stores), config()) as engine:
        engines.append(engine)
        result = await engine.execute_repair_job(job())
    assert (RepairOutcome.REPAIRED, "text") == (result.outcome, result.source)
    assert expected == [row for row in phases if row[1] != "observe"]
    looks = {phase for _name, operation, phase in phases if operation == "observe"}
    assert ({RepairPhase.OBSERVE, RepairPhase.VERIFY} if critical else {RepairPhase.OBSERVE}) == looks


async def test_metadata_that_is_content_is_proved_too(autojump_clock):
    """Where metadata is part of the content, the digest that proves a copy covers it. Control: other metadata do not."""
    content = ContentDefinition(metadata_keys=("title",))
    metadata = {"title": "T", "other": 1}
    version = DocumentVersion(number=2, digest=content.digest("text", metadata))
    assert version.digest != content.digest("text", {"title": "another"})
    stores = Stores(**{name: MemoryStore(name, content=content) for name in ("text", "vector", "cache")})
    stores.text.put_nowait(Document(doc_id="d", text="text", metadata=metadata, version=version))
    async with open_repair_engine(stores, config(content=content)) as engine:
        result = await engine.execute_repair_job(job())
    assert (RepairOutcome.REPAIRED, version) == (result.outcome, stores.vector.observe_nowait("d").version)


async def test_an_empty_text_is_a_text(autojump_clock):
    """Nothing in it, and it is copied like any other."""
    world = World()
    world.put("text", number=2, text="")
    result = await _repair(world)
    assert {"text": StepState.CONSISTENT, "vector": StepState.VERIFIED, "cache": StepState.CONSISTENT} == states(result)


async def test_a_wait_before_overwriting(autojump_clock):
    """It takes `settle` seconds and a second start, and is no failure."""
    world = World()
    world.put("text", number=1)
    world.put("vector", number=2)
    result = await _repair(world, settings={"settle": 3.0}, strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH)
    assert (RepairOutcome.REPAIRED, 2, 3.0) == (result.outcome, result.attempts, trio.current_time())


async def test_a_source_that_changes_between_look_and_read(autojump_clock):
    """It is the source that is named, since it has changed."""
    world = World()
    world.drift()
    world.faulty["text"].add(Fault(FaultKind.CONCURRENT_WRITE, "read"))
    result = await _repair(world, settings={"max_reobserve": 0}, **ONCE)
    assert "text store: document 'd' changed while being repaired; look again" == result.error


async def test_a_store_that_changes_after_its_write(autojump_clock):
    """Written, and by somebody else before it was read back: that store is named."""
    world = World()
    world.drift()

    class Rival(Mute):
        async def write(self, writes: Any) -> Any:
            answers = await self.inner.write(writes)
            world.put("vector", number=9)
            return answers

    stores = attrs.evolve(world.stores, vector=Rival(world.faulty["vector"], WriteStatus.LANDED))
    async with open_repair_engine(stores, config(max_reobserve=0)) as engine:
        result = await engine.execute_repair_job(job(**ONCE))
    assert "vector store: document 'd' changed while being repaired; look again" == result.error


async def test_neither_copy_can_be_read(autojump_clock):
    """Why each of them could not is told, in the order in which they were tried."""
    world = World()
    world.put("text", number=2)
    world.put("vector", number=2)
    damaged = attrs.evolve(world.memory["vector"].observe_nowait("d"), intact=False)
    for name in ("text", "vector"):
        world.faulty[name].add(Fault(FaultKind.REJECTED, "read"))

    class Damaged(Mute):
        async def observe(self, doc_ids: Any) -> Any:
            return [damaged for _ in doc_ids]

    stores = attrs.evolve(world.stores, text=Damaged(world.faulty["text"], WriteStatus.LANDED))
    async with open_repair_engine(stores, config()) as engine:
        result = await engine.resolve("d", "text")
    assert (
        "Manual resolution required: the text store cannot give the text (injected: never); "
        "the vector store cannot give the text (injected: never)"
    ) == result.error


async def test_a_choice_whose_first_attempt_landed_in_one_store(autojump_clock):
    """Tried again, what it wrote itself is no sign that somebody else was there."""
    world = World()
    world.put_all(number=3)
    world.faulty["vector"].add(Fault(FaultKind.UNAVAILABLE, "write", times=1))
    async with open_repair_engine(world.stores, config(), rng=random.Random(1)) as engine:
        expected = {name: world.memory[name].observe_nowait("d").token for name in ("text", "vector")}
        result = await engine.resolve("d", "delete", expected=expected)
    assert (RepairOutcome.REPAIRED, 2) == (result.outcome, result.attempts)
    assert [True, True] == [world.version(name).deleted for name in ("text", "vector")]


async def test_numbers_of_a_clock_are_held_against_the_wall(autojump_clock):
    """The engine's own wall clock decides what is the future, for the critical stores and for the cache."""
    world = World()
    past = pack(1_000, 0)
    world.put_all(number=past)
    world.put("text", number=past + (5_000 << 12))
    far = pack(2**41 - 1, 0)
    settings = {"numbers": "hlc"}
    result = await _repair(world, settings=settings, strategy=SyncStrategy.MOST_RECENT)
    assert (RepairOutcome.REPAIRED, past + (5_000 << 12)) == (result.outcome, world.number("cache"))
    world.put("text", number=far)
    result = await _repair(world, settings=settings, strategy=SyncStrategy.MOST_RECENT)
    assert RepairOutcome.NEEDS_MANUAL is result.outcome
    assert result.error.endswith("s in the future")
