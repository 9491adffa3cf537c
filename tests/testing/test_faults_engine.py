"""What the faults that need an engine to show their effect do to one; each with a control without the fault."""

from __future__ import annotations

import datetime as dt
import random

import pytest
import trio
from engine_world import World, config, job, states
from trio.testing import MockClock

from trio_repair import (
    InvalidValue,
    Observation,
    Prepared,
    RepairOutcome,
    StepState,
    Stores,
    StoreUnavailable,
    SyncStrategy,
    Write,
    WriteStatus,
    open_repair_engine,
)
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import CrashingStore, Fault, FaultKind, FaultyStore, make_document

LATE = Fault(FaultKind.LATE_LANDING, "write", times=1, delay=5.0)


@pytest.mark.parametrize("disturbed", [True, False])
async def test_late_landing_meets_the_fence(disturbed: bool, autojump_clock: MockClock) -> None:
    """A write lands after its job has ended, unless somebody has written meanwhile (the control: nobody has)."""
    world = World()
    world.drift()
    world.faulty["vector"].add(LATE)
    async with open_repair_engine(world.stores, config()) as engine:
        result = await engine.execute_repair_job(job(max_retries=0))
        assert RepairOutcome.FAILED is result.outcome
        assert world.number("vector") == 1
        if disturbed:
            world.put("vector", number=9)
        assert world.faulty["vector"].landing_late == 1
        await world.faulty["vector"].wait_for_late_landings()
    assert world.number("vector") == (9 if disturbed else 2)
    assert world.faulty["vector"].injected[FaultKind.LATE_LANDING] == (0 if disturbed else 1)


async def test_late_landing_outlives_a_cancelled_call(autojump_clock: MockClock) -> None:
    """The call hangs and is cancelled; what it asked for is done all the same, `delay` seconds after it began."""
    store = FaultyStore(MemoryStore(), [LATE, Fault(FaultKind.HANG, "write")])
    (prepared,) = await store.prepare([make_document("a", "new")])
    assert isinstance(prepared, Prepared)
    with trio.move_on_after(1) as scope:
        await store.write([Write(prepared=prepared, token="absent")])
    assert scope.cancelled_caught
    assert await store.inner.count() == 0
    await trio.sleep(3.9)
    assert await store.inner.count() == 0
    await trio.sleep(0.2)
    assert await store.inner.count() == 1


@pytest.mark.parametrize("struck", [True, False])
async def test_partial_bulk_is_found_out(struck: bool, autojump_clock: MockClock) -> None:
    """A call that serves some and says that it failed leaves some written; trying again mends the rest."""
    world = World()
    world.drift("a", "b", "c")
    if struck:
        world.faulty["vector"].add(Fault(FaultKind.PARTIAL_BULK, "write", times=1))
    async with open_repair_engine(world.stores, config()) as engine:
        handles = [engine.submit_nowait(job(name, max_retries=0)) for name in "abc"]
        outcomes = {(await handle.wait()).outcome for handle in handles}
        landed = {name for name in "abc" if world.number("vector", name) == 2}
        assert (RepairOutcome.FAILED in outcomes) == struck
        assert (0 < len(landed) < 3) == struck
        for name in "abc":
            assert (await engine.execute_repair_job(job(name))).success
    assert world.faulty["vector"].injected[FaultKind.PARTIAL_BULK] == struck


async def test_partial_bulk_spares_a_single_document() -> None:
    """A call that names one document cannot be done in part."""
    store = FaultyStore(MemoryStore(), [Fault(FaultKind.PARTIAL_BULK, "observe")])
    assert len(await store.observe(["a"])) == 1
    with pytest.raises(StoreUnavailable, match="half-way"):
        await store.observe(["a", "b"])


@pytest.mark.parametrize("struck", [True, False])
async def test_overtaken_calls_have_their_effect_later(struck: bool, autojump_clock: MockClock) -> None:
    """The write that was asked for first lands after the one that was asked for second."""
    world = World({"vector": {"write": 0.1}})
    world.drift("a", "b")
    if struck:
        world.faulty["vector"].add(Fault(FaultKind.OVERTAKEN, "write", doc_id="a", times=1, delay=8.0))
    ended = []
    async with open_repair_engine(world.stores, config()) as engine, trio.open_nursery() as nursery:

        async def repair(name: str) -> None:
            assert (await engine.execute_repair_job(job(name))).success
            ended.append(name)

        nursery.start_soon(repair, "a")
        await trio.sleep(0.05)
        nursery.start_soon(repair, "b")
    assert (["b", "a"] if struck else ["a", "b"]) == ended
    assert world.faulty["vector"].injected[FaultKind.OVERTAKEN] == struck


async def test_a_call_that_nothing_overtakes_goes_on(autojump_clock: MockClock) -> None:
    """Alone, it waits for `delay` seconds, and is not counted."""
    store = FaultyStore(MemoryStore(), [Fault(FaultKind.OVERTAKEN, delay=3.0)])
    start = trio.current_time()
    await store.observe(["a"])
    assert trio.current_time() - start == 3.0
    assert dict(store.injected) == {}


@pytest.mark.parametrize("operation", ["read", "prepare", "observe", "write"])
async def test_shuffled_answers_mix_up_no_documents(operation: str, autojump_clock: MockClock) -> None:
    """Answers that name their document are seen to be in the wrong order; behind the others stands the fence.

    The control is what the store answers: it is wrong each time.
    """
    world = World()
    world.drift("a", "b")
    world.put("text", "b", number=5)
    shuffled = world.faulty["vector" if operation in ("prepare", "write") else "text"]
    shuffled.add(Fault(FaultKind.SHUFFLED_ANSWERS, operation, times=1))
    async with open_repair_engine(world.stores, config()) as engine:
        handles = [engine.submit_nowait(job(name)) for name in "ab"]
        for handle in handles:
            await handle.wait()
        misbehaved = engine.statistics().stores[shuffled.name].misbehaved
    assert shuffled.injected[FaultKind.SHUFFLED_ANSWERS] == 1
    assert (misbehaved > 0) == (operation in ("read", "prepare"))
    for name, number in (("a", 2), ("b", 5)):
        held = world.memory["vector"].get_nowait(name)
        assert held is not None
        assert held.text in (f"{name} at 1", f"{name} at {number}")


@pytest.mark.parametrize("kind", [FaultKind.STUCK, FaultKind.HANG])
async def test_stuck_calls_keep_their_document(kind: FaultKind, autojump_clock: MockClock) -> None:
    """After the timeout a call that ignores cancellation still holds its document; one that only hangs (the control)
    does not."""
    world = World()
    world.drift()
    fault = Fault(kind, "write", times=1, delay=1000.0)
    world.faulty["vector"].add(fault)
    async with open_repair_engine(world.stores, config(store_call_timeout=3.0)) as engine:
        result = await engine.execute_repair_job(job(timeout=2.0, max_retries=0))
        assert RepairOutcome.TIMED_OUT is result.outcome
        await trio.sleep(10)
        assert engine.statistics().locked == (kind is FaultKind.STUCK)
        world.faulty["vector"].heal(fault)
        await trio.sleep(0.1)
        assert engine.statistics().locked == 0
    assert world.number("vector") == (2 if kind is FaultKind.STUCK else 1)
    assert world.faulty["vector"].injected[kind] == 1


async def test_stuck_calls_end_at_last(autojump_clock: MockClock) -> None:
    """Without `heal`, a stuck call does its work after `delay` seconds, cancelled or not."""
    store = FaultyStore(MemoryStore(), [Fault(FaultKind.STUCK, "count", delay=50.0)])
    start = trio.current_time()
    with trio.move_on_after(1) as scope:
        assert await store.count() == 0
    assert not scope.cancelled_caught
    assert trio.current_time() - start == 50.0


@pytest.mark.parametrize(("numbers", "outcome"), [("hlc", "needs-manual"), ("counter", "repaired")])
async def test_clock_skew_is_no_reason_to_decide(numbers: str, outcome: str, autojump_clock: MockClock) -> None:
    """A number from the future is left to a person; an engine that takes numbers as they come believes it."""
    noon = dt.datetime(2024, 1, 1, 12, tzinfo=dt.timezone.utc)
    text, vector = MemoryStore("text"), MemoryStore("vector")
    document = make_document("d", "older", number=1)
    text.put_nowait(document)
    vector.put_nowait(document)
    skewed = FaultyStore(text, [Fault(FaultKind.CLOCK_SKEW, "observe", times=1, delay=3600.0)], wall_clock=lambda: noon)
    stores = Stores(text=skewed, vector=vector)
    async with open_repair_engine(stores, config(numbers=numbers), wall_clock=lambda: noon) as engine:
        result = await engine.execute_repair_job(job(strategy=SyncStrategy.MOST_RECENT))
    assert outcome == result.outcome.value
    assert skewed.injected[FaultKind.CLOCK_SKEW] == 1
    (written,) = skewed.rival_writes
    assert written.version.updated_at == noon + dt.timedelta(hours=1)


async def test_clock_skew_can_lie_behind() -> None:
    """A clock that is behind gives the newest write the lowest number."""
    noon = dt.datetime(2024, 1, 1, 12, tzinfo=dt.timezone.utc)
    store = FaultyStore(MemoryStore(), [Fault(FaultKind.CLOCK_SKEW, "observe", delay=-60.0)], wall_clock=lambda: noon)
    await store.observe(["a"])
    store.heal()
    store.add(Fault(FaultKind.CLOCK_SKEW, "observe", delay=-120.0))
    await store.observe(["a"])
    first, second = (document.version.number for document in store.rival_writes)
    assert first is not None
    assert second is not None
    assert second == first - (60_000 << 12)
    (held,) = await store.inner.observe(["a"])
    assert isinstance(held, Observation)
    assert held.version == store.rival_writes[-1].version


@pytest.mark.parametrize("committed", [False, True])
async def test_a_crash_takes_back_what_was_verified(committed: bool, autojump_clock: MockClock) -> None:
    """What a repair has verified is gone after a crash, and the next one does it again; committed, it is not gone."""
    text, inner = MemoryStore("text"), CrashingStore("vector")
    text.put_nowait(make_document("d", "new", number=2))
    inner.put_nowait(make_document("d", "old", number=1))
    inner.commit()
    vector = FaultyStore(inner)
    async with open_repair_engine(Stores(text=text, vector=vector), config()) as engine:
        result = await engine.execute_repair_job(job())
        assert StepState.VERIFIED is states(result)["vector"]
        if committed:
            inner.commit()
        vector.add(Fault(FaultKind.CRASH, "observe", times=1, delay=2.0))
        with pytest.raises(StoreUnavailable, match="crashed"):
            await vector.observe(["d"])
        held = inner.get_nowait("d")
        assert held is not None
        assert held.version.number == (2 if committed else 1)
        with pytest.raises(StoreUnavailable, match="not back"):
            await vector.observe(["d"])
        await trio.sleep(2.0)
        again = await engine.execute_repair_job(job())
    assert (RepairOutcome.ALREADY_CONSISTENT if committed else RepairOutcome.REPAIRED) is again.outcome
    assert dict(inner.lost) == ({} if committed else {"d": 1})
    assert vector.injected[FaultKind.CRASH] == 1


async def test_a_crash_fails_the_calls_under_way(autojump_clock: MockClock) -> None:
    """Calls that wait, or hang after their effect, find out; nobody is told that a write landed."""
    inner = CrashingStore(commit_after=60.0)
    store = FaultyStore(inner, [Fault(FaultKind.HANG_AFTER, "write"), Fault(FaultKind.LATENCY, "read", delay=5.0)])
    (prepared,) = await inner.prepare([make_document("a", "new")])
    assert isinstance(prepared, Prepared)
    said: list[object] = []

    async def write() -> None:
        said.extend(answer.status for answer in await store.write([Write(prepared=prepared, token="absent")]))

    async def read() -> None:
        with pytest.raises(StoreUnavailable):
            await store.read(["a"])
        said.append("read failed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        nursery.start_soon(read)
        await trio.sleep(1.0)
        assert inner.uncommitted == 1
        store.add(Fault(FaultKind.CRASH, "observe", times=1))
        with pytest.raises(StoreUnavailable):
            await store.observe(["a"])
    assert WriteStatus.UNKNOWN in said
    assert "read failed" in said
    assert inner.get_nowait("a") is None


async def test_commits_come_with_time(autojump_clock: MockClock) -> None:
    """What is older than `commit_after` survives a crash, what is younger does not; tokens never come again."""
    store = CrashingStore(commit_after=10.0)
    old = store.put_nowait(make_document("a", "old", number=1))
    await trio.sleep(10.0)
    lost = store.put_nowait(make_document("a", "lost", number=2))
    store.put_nowait(make_document("b", "lost too"))
    store.crash()
    assert store.observe_nowait("a") == old
    assert store.get_nowait("b") is None
    assert store.put_nowait(make_document("a", "lost", number=2)).token != lost.token
    assert dict(store.lost) == {"a": 1, "b": 1}


def test_crash_needs_a_store_that_can() -> None:
    """A crash of a store that cannot lose anything would prove nothing: it is refused."""
    with pytest.raises(InvalidValue, match="cannot crash"):
        FaultyStore(MemoryStore(), [Fault(FaultKind.CRASH)])
    with pytest.raises(InvalidValue, match="commit_after"):
        CrashingStore(commit_after=-1.0)


async def test_new_faults_are_seeded(autojump_clock: MockClock) -> None:
    """The same seed breaks the same bulk call at the same place; another seed elsewhere."""

    async def written(seed: int) -> list[str]:
        inner = MemoryStore()
        faults = [Fault(FaultKind.PARTIAL_BULK, "write", probability=0.5)]
        store = FaultyStore(inner, faults, rng=random.Random(seed))
        for round_ in range(8):
            ids = [f"{round_}{name}" for name in "abcdef"]
            prepared = await inner.prepare([make_document(doc_id) for doc_id in ids])
            try:
                await store.write(
                    [Write(prepared=one, token="absent") for one in prepared if isinstance(one, Prepared)]
                )
            except StoreUnavailable:
                continue
        return sorted(inner.documents())

    assert await written(1) == await written(1)
    assert await written(1) != await written(2)


async def test_heal_can_name_a_fault(autojump_clock: MockClock) -> None:
    """Healing one fault leaves the others, and lets only its own calls go on."""
    hang, slow = Fault(FaultKind.HANG, "observe"), Fault(FaultKind.LATENCY, "count", delay=7.0)
    other = Fault(FaultKind.HANG, "read")
    store = FaultyStore(MemoryStore(), [hang, slow, other])
    ended = []

    async def call(operation: str) -> None:
        await getattr(store, operation)(["a"])
        ended.append(operation)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, "observe")
        nursery.start_soon(call, "read")
        await trio.sleep(1)
        store.heal(hang)
        await trio.sleep(1)
        assert ended == ["observe"]
        start = trio.current_time()
        await store.count()
        assert trio.current_time() - start == 7.0
        store.heal()
    assert ended == ["observe", "read"]
