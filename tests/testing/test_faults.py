"""`FaultyStore`: each kind of fault does what it says, is counted, and spares everybody else."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

import pytest
import trio

from trio_repair import (
    Document,
    InvalidValue,
    Observation,
    Prepared,
    Removal,
    RepairJob,
    StoredDocument,
    StoreRejected,
    Stores,
    StoreUnavailable,
    SyncStrategy,
    Write,
    WriteStatus,
    open_repair_engine,
)
from trio_repair.abc import Store
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import DriverFault, Fault, FaultKind, FaultyStore, make_document


def filled() -> MemoryStore:
    store = MemoryStore()
    for doc_id in ("a", "b", "c"):
        store.put_nowait(make_document(doc_id, f"text of {doc_id}"))
    return store


async def planned_writes(store: MemoryStore, text: str = "new") -> list[Write]:
    """Writes of version 2 over all that `store` holds, on the tokens it holds now."""
    prepared = await store.prepare([make_document(doc_id, text, number=2) for doc_id in store.documents()])
    writes = []
    for one in prepared:
        assert isinstance(one, Prepared)
        writes.append(Write(prepared=one, token=store.observe_nowait(one.document.doc_id).token))
    return writes


def texts(store: MemoryStore) -> dict[str, str | None]:
    return {doc_id: document.text for doc_id, document in store.documents().items()}


OLD = {"a": "text of a", "b": "text of b", "c": "text of c"}
NEW = {"a": "new", "b": "new", "c": "new"}


async def call_each(store: Store, inner: MemoryStore) -> None:
    """Make one call of each operation, each of which succeeds on a store without faults."""
    await store.observe(["a"])
    await store.read(["a"])
    prepared = (await store.prepare([make_document("d", "text of d")]))[0]
    assert isinstance(prepared, Prepared)
    assert WriteStatus.LANDED is (await store.write([Write(prepared=prepared, token="absent")]))[0].status
    removal = Removal(doc_id="d", token=inner.observe_nowait("d").token)
    assert WriteStatus.LANDED is (await store.remove([removal]))[0].status
    async with store.open_scan() as pages:
        assert [doc_id async for page in pages for doc_id, _ in page] == ["a", "b", "c"]
    assert await store.count() == 3


async def test_without_faults_it_is_the_store_inside() -> None:
    """A wrapper without faults changes no answer and injects nothing."""
    inner = filled()
    store = FaultyStore(inner)
    assert isinstance(store, Store)
    assert inner.traits == store.traits
    await call_each(store, inner)
    await store.aclose()
    assert dict(store.injected) == {}
    with pytest.raises(StoreUnavailable):
        await inner.count()


async def test_unavailable_has_no_effect() -> None:
    """UNAVAILABLE raises before anything is done, `times` times, and then no more."""
    inner = filled()
    store = FaultyStore(inner, [Fault(FaultKind.UNAVAILABLE, "write", times=2)])
    writes = await planned_writes(inner)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="text store"):
            await store.write(writes)
        assert texts(inner) == OLD
    await store.write(writes)
    assert texts(inner) == NEW
    assert dict(store.injected) == {FaultKind.UNAVAILABLE: 2}


async def test_late_error_has_its_effect() -> None:
    """LATE_ERROR raises after the write has landed."""
    inner = filled()
    store = FaultyStore(inner, [Fault(FaultKind.LATE_ERROR, "write")])
    with pytest.raises(StoreUnavailable):
        await store.write(await planned_writes(inner))
    assert texts(inner) == NEW
    assert store.injected[FaultKind.LATE_ERROR] == 1


async def test_driver_error_is_not_translated() -> None:
    """DRIVER_ERROR raises what no adapter should let out, and does nothing."""
    inner = filled()
    store = FaultyStore(inner, [Fault(FaultKind.DRIVER_ERROR)])
    with pytest.raises(DriverFault):
        await store.write(await planned_writes(inner))
    assert texts(inner) == OLD


@pytest.mark.parametrize(("kind", "after"), [(FaultKind.ACK_LOST, NEW), (FaultKind.REQUEST_LOST, OLD)])
async def test_unknown_with_and_without_effect(kind: FaultKind, after: dict[str, str]) -> None:
    """ACK_LOST and REQUEST_LOST give the same answers; only the store knows which it was."""
    inner = filled()
    store = FaultyStore(inner, [Fault(kind)])
    answers = await store.write(await planned_writes(inner))
    assert [answer.status for answer in answers] == [WriteStatus.UNKNOWN] * 3
    assert [answer.error.doc_id for answer in answers if answer.error is not None] == ["a", "b", "c"]
    assert after == texts(inner)
    assert {kind: 1} == dict(store.injected)


async def test_rejected_concerns_one_document() -> None:
    """REJECTED refuses the named document and serves the others, in order."""
    inner = filled()
    store = FaultyStore(inner, [Fault(FaultKind.REJECTED, doc_id="b")])
    assert [isinstance(one, Observation) for one in await store.observe(["a", "b", "c"])] == [True, False, True]
    read = await store.read(["c", "b", "a"])
    assert isinstance(read[1], StoreRejected)
    held = [one.document for one in read if isinstance(one, StoredDocument)]
    assert [document.doc_id for document in held if document is not None] == ["c", "a"]
    answers = await store.write(await planned_writes(inner))
    assert [answer.status for answer in answers] == [WriteStatus.LANDED, WriteStatus.REJECTED, WriteStatus.LANDED]
    assert texts(inner) == NEW | {"b": "text of b"}


async def test_document_unavailable_picks_one_of_a_batch() -> None:
    """DOCUMENT_UNAVAILABLE without a name strikes exactly one document, chosen by the seeded generator."""
    inner = filled()
    store = FaultyStore(inner, [Fault(FaultKind.DOCUMENT_UNAVAILABLE)], rng=random.Random(1))
    struck = set()
    for _ in range(30):
        answers = await store.observe(["a", "b", "c"])
        (error,) = (one for one in answers if isinstance(one, StoreUnavailable))
        struck.add(error.doc_id)
    assert {"a", "b", "c"} == struck
    verdicts = await store.write(await planned_writes(inner))
    assert sorted((verdict.status for verdict in verdicts), key=lambda status: status.value) == [
        WriteStatus.LANDED
    ] * 2 + [WriteStatus.UNKNOWN]
    assert sum(text != "new" for text in texts(inner).values()) == 1


async def test_latency_passes_on_trios_clock(autojump_clock: trio.testing.MockClock) -> None:
    """LATENCY delays each call by `delay` seconds, scans by page, and changes nothing else."""
    inner = filled()
    store = FaultyStore(inner, [Fault(FaultKind.LATENCY, delay=5.0)])
    start = trio.current_time()
    await call_each(store, inner)
    # Six calls, and a scan of one page: opened, page, end.
    assert trio.current_time() - start == 9 * 5.0
    assert store.injected[FaultKind.LATENCY] == 9


@pytest.mark.parametrize(("kind", "after"), [(FaultKind.HANG, OLD), (FaultKind.HANG_AFTER, NEW)])
async def test_hang_lasts_for_ever_and_can_be_cancelled(
    kind: FaultKind, after: dict[str, str], autojump_clock: trio.testing.MockClock
) -> None:
    """HANG waits before the effect, HANG_AFTER after it; a cancel scope ends either."""
    inner = filled()
    store = FaultyStore(inner, [Fault(kind, "write")])
    writes = await planned_writes(inner)
    with trio.move_on_after(1e6) as scope:
        await store.write(writes)
    assert scope.cancelled_caught
    assert after == texts(inner)
    assert store.calls_under_way == 0


async def test_heal_lets_hanging_calls_go_on(autojump_clock: trio.testing.MockClock) -> None:
    """After `heal` a call that hung has its effect and its answer, and no fault strikes again."""
    inner = filled()
    store = FaultyStore(inner, [Fault(FaultKind.HANG, "write"), Fault(FaultKind.UNAVAILABLE, "read")])
    statuses: list[WriteStatus] = []

    async def write() -> None:
        statuses.extend(answer.status for answer in await store.write(await planned_writes(inner)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.sleep(1)
        assert store.calls_under_way == 1
        store.heal()
    assert statuses == [WriteStatus.LANDED] * 3
    assert len(await store.read(["a"])) == 1


async def test_concurrent_write_comes_first() -> None:
    """CONCURRENT_WRITE changes the document under the caller, whose token is then refused."""
    inner = filled()
    store = FaultyStore(inner, [Fault(FaultKind.CONCURRENT_WRITE, "write", doc_id="b", times=1)])
    writes = await planned_writes(inner)
    answers = await store.write(writes)
    assert [answer.status for answer in answers] == [WriteStatus.LANDED, WriteStatus.REFUSED, WriteStatus.LANDED]
    assert [inner.get_nowait("b")] == store.rival_writes
    assert dict(store.injected) == {FaultKind.CONCURRENT_WRITE: 1}


async def test_concurrent_write_by_a_rival_of_ones_own() -> None:
    """`rival` decides what is written, a tombstone for instance; a rival that is refused is not counted."""
    inner = filled()

    def delete(doc_id: str, held: Observation) -> Document:
        return Document.tombstone(doc_id, number=9)

    store = FaultyStore(inner, [Fault(FaultKind.CONCURRENT_WRITE, "observe")], rival=delete)
    (seen,) = await store.observe(["a"])
    assert isinstance(seen, Observation)
    assert seen.version is not None
    assert seen.version.deleted
    refused = FaultyStore(
        FaultyStore(inner, [Fault(FaultKind.UNAVAILABLE, "write")]), [Fault(FaultKind.CONCURRENT_WRITE, "observe")]
    )
    await refused.observe(["b"])
    assert dict(refused.injected) == {}


async def test_swallowed_cancel_returns_although_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    """SWALLOWED_CANCEL ends at the caller's timeout, but with a landed write and no Cancelled."""
    inner = filled()
    store = FaultyStore(inner, [Fault(FaultKind.SWALLOWED_CANCEL, "write", delay=100)])
    statuses: list[WriteStatus] = []
    start = trio.current_time()
    with trio.move_on_after(3) as scope:
        writes = await planned_writes(inner)
        statuses.extend(answer.status for answer in await store.write(writes))
    assert statuses == [WriteStatus.LANDED] * 3
    assert trio.current_time() - start == 3
    assert scope.cancel_called
    assert not scope.cancelled_caught
    assert store.injected[FaultKind.SWALLOWED_CANCEL] == 1


async def test_swallowed_cancel_needs_a_cancellation_to_count(autojump_clock: trio.testing.MockClock) -> None:
    """A call that nobody cancels swallows nothing, and says so in the count."""
    inner = filled()
    store = FaultyStore(inner, [Fault(FaultKind.SWALLOWED_CANCEL, "write", delay=1)])
    await store.write(await planned_writes(inner))
    assert dict(store.injected) == {}


@pytest.mark.parametrize(
    ("kind", "ended"), [(FaultKind.STUCK, 2.0), (FaultKind.SWALLOWED_CANCEL, 1.0), (FaultKind.LATENCY, 1.0)]
)
async def test_deafness_covers_only_its_own_part(
    kind: FaultKind, ended: float, autojump_clock: trio.testing.MockClock
) -> None:
    """A call that is deaf at first and hangs afterwards can be cancelled while it hangs; LATENCY is never deaf."""
    inner = filled()
    store = FaultyStore(inner, [Fault(kind, "write", delay=2.0), Fault(FaultKind.HANG_AFTER, "write")])
    writes = await planned_writes(inner)
    start = trio.current_time()
    with trio.move_on_after(1) as scope:
        await store.write(writes)
    assert ended == trio.current_time() - start
    assert scope.cancelled_caught
    assert texts(inner) == (OLD if kind is FaultKind.LATENCY else NEW)
    assert store.calls_under_way == 0


@pytest.mark.parametrize("kind", [FaultKind.STUCK, FaultKind.SWALLOWED_CANCEL])
async def test_engine_closes_over_a_call_that_is_deaf_and_then_hangs(
    kind: FaultKind, autojump_clock: trio.testing.MockClock
) -> None:
    """The engine waits for the deaf part alone: it closes without anybody healing the store."""
    text, vector = filled(), FaultyStore(MemoryStore("vector"))
    vector.add(Fault(kind, "observe", delay=5.0), Fault(FaultKind.HANG_AFTER, "observe"))
    with trio.fail_after(600):
        async with open_repair_engine(Stores(text=text, vector=vector)) as engine:
            job = RepairJob(doc_id="a", strategy=SyncStrategy.TEXT_SOURCE_OF_TRUTH, timeout=1.0)
            result = await engine.execute_repair_job(job)
    assert not result.success


async def test_wrong_length_drops_an_answer() -> None:
    """WRONG_LENGTH does the work and gives one answer too few; an empty batch has none to drop."""
    inner = filled()
    store = FaultyStore(inner, [Fault(FaultKind.WRONG_LENGTH)])
    assert len(await store.write(await planned_writes(inner))) == 2
    assert texts(inner) == NEW
    assert len(await store.observe([])) == 0
    assert store.injected[FaultKind.WRONG_LENGTH] == 1


async def test_blocked_loop_stops_every_task() -> None:
    """BLOCKED_LOOP holds up tasks that have nothing to do with the store."""
    store = FaultyStore(filled(), [Fault(FaultKind.BLOCKED_LOOP, "observe", delay=0.05)])
    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.observe, ["a"])
        await trio.testing.wait_all_tasks_blocked()
        await trio.lowlevel.checkpoint()
    assert time.perf_counter() - start >= 0.05
    assert store.injected[FaultKind.BLOCKED_LOOP] == 1


async def test_faults_strike_scans_and_counts() -> None:
    """Scans fail when opened and between pages; counts fail too."""
    inner = filled()
    store = FaultyStore(inner, [Fault(FaultKind.UNAVAILABLE, "scan", times=1)])
    with pytest.raises(StoreUnavailable):
        async with store.open_scan():
            pass
    store.add(Fault(FaultKind.LATE_ERROR, "count"))
    with pytest.raises(StoreUnavailable):
        await store.count()
    async with store.open_scan() as pages:
        store.add(Fault(FaultKind.UNAVAILABLE, "scan"))
        with pytest.raises(StoreUnavailable):
            await anext(pages)


async def test_chance_is_seeded() -> None:
    """The same seed strikes the same calls, another seed others, and about as many as `probability` says."""

    async def struck(seed: int) -> list[bool]:
        store = FaultyStore(
            filled(), [Fault(FaultKind.UNAVAILABLE, "observe", probability=0.3)], rng=random.Random(seed)
        )
        seen = []
        for _ in range(200):
            try:
                await store.observe(["a"])
                seen.append(False)
            except StoreUnavailable:
                seen.append(True)
        assert sum(seen) == store.injected[FaultKind.UNAVAILABLE]
        return seen

    first = await struck(1)
    assert first == await struck(1)
    assert first != await struck(2)
    assert 30 < sum(first) < 90


async def test_calls_are_counted(autojump_clock: trio.testing.MockClock) -> None:
    """`peak_calls` is the most calls under way at once, so a test can hold an engine to `max_calls`."""
    store = FaultyStore(filled(), [Fault(FaultKind.LATENCY, delay=1)])
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(store.observe, ["a", "b"])
    await store.count()
    assert store.peak_calls == 3
    assert dict(store.calls) == {"observe": 3, "count": 1}
    assert store.documents["observe"] == 6


def test_fault_that_cannot_strike_is_refused() -> None:
    """A fault that would never fire is an error when it is made, not a test that proves nothing."""
    makers: list[Callable[[], Fault]] = [
        lambda: Fault(FaultKind.ACK_LOST, "read"),
        lambda: Fault(FaultKind.REJECTED, "scan"),
        lambda: Fault(FaultKind.UNAVAILABLE, "close"),
        lambda: Fault(FaultKind.UNAVAILABLE, "scan", doc_id="a"),
        lambda: Fault(FaultKind.UNAVAILABLE, times=0),
        lambda: Fault(FaultKind.UNAVAILABLE, probability=1.5),
        lambda: Fault(FaultKind.UNAVAILABLE, probability=math.nan),
        lambda: Fault(FaultKind.LATENCY),
        lambda: Fault(FaultKind.LATENCY, delay=math.inf),
    ]
    for make in makers:
        with pytest.raises(InvalidValue):
            make()


@pytest.mark.parametrize(
    ("kinds", "counted", "statuses"),
    [
        ((FaultKind.REJECTED, FaultKind.REQUEST_LOST), {FaultKind.REJECTED}, "r"),
        ((FaultKind.REQUEST_LOST, FaultKind.REJECTED), {FaultKind.REQUEST_LOST}, "u"),
        ((FaultKind.REJECTED, FaultKind.REQUEST_LOST), {FaultKind.REJECTED, FaultKind.REQUEST_LOST}, "ru"),
        ((FaultKind.REJECTED, FaultKind.DOCUMENT_UNAVAILABLE), {FaultKind.REJECTED}, "r"),
        ((FaultKind.REQUEST_LOST, FaultKind.ACK_LOST), {FaultKind.REQUEST_LOST}, "uu"),
        ((FaultKind.REJECTED, FaultKind.ACK_LOST), {FaultKind.REJECTED, FaultKind.ACK_LOST}, "u"),
        ((FaultKind.ACK_LOST, FaultKind.ACK_LOST), {FaultKind.ACK_LOST}, "uu"),
        ((FaultKind.SHUFFLED_ANSWERS, FaultKind.SHUFFLED_ANSWERS), {FaultKind.SHUFFLED_ANSWERS}, "ll"),
        ((FaultKind.WRONG_LENGTH, FaultKind.WRONG_LENGTH), {FaultKind.WRONG_LENGTH}, ""),
        ((FaultKind.WRONG_LENGTH, FaultKind.ACK_LOST), {FaultKind.WRONG_LENGTH, FaultKind.ACK_LOST}, "u"),
        ((FaultKind.WRONG_LENGTH, FaultKind.SHUFFLED_ANSWERS), {FaultKind.WRONG_LENGTH}, "l"),
    ],
)
async def test_of_several_faults_those_that_had_an_effect_are_counted(
    kinds: tuple[FaultKind, ...], counted: set[FaultKind], statuses: str
) -> None:
    """A fault to which those before it left nothing is not counted, and no fault undoes another."""
    inner = MemoryStore()
    size = max(len(statuses), 1) + (FaultKind.WRONG_LENGTH in kinds and bool(statuses))
    for doc_id in "ab"[:size]:
        inner.put_nowait(make_document(doc_id, f"text of {doc_id}"))
    victim = {FaultKind.REJECTED: "a", FaultKind.DOCUMENT_UNAVAILABLE: "a"}
    store = FaultyStore(inner, [Fault(kind, "write", doc_id=victim.get(kind)) for kind in kinds])
    answers = await store.write(await planned_writes(inner))
    assert statuses == "".join(answer.status.value[0] for answer in answers)
    assert dict.fromkeys(counted, 1) == dict(store.injected)


async def test_shuffled_twice_is_shuffled() -> None:
    """Two documents whose answers are shuffled twice are not in order again."""
    inner = filled()
    store = FaultyStore(inner, [Fault(FaultKind.SHUFFLED_ANSWERS, "read") for _ in range(2)])
    named = [one.document for one in await store.read(["a", "b"]) if isinstance(one, StoredDocument)]
    assert ["b", "a"] == [one.doc_id for one in named if one is not None]


async def test_what_was_refused_does_not_land_late() -> None:
    """A LATE_LANDING takes in what faults before it have left: a REJECTED document never lands."""
    inner = filled()
    faults = [Fault(FaultKind.REJECTED, "write", doc_id="a"), Fault(FaultKind.LATE_LANDING, "write", delay=0.001)]
    store = FaultyStore(inner, faults)
    await store.write(await planned_writes(inner))
    await store.wait_for_late_landings()
    assert {**NEW, "a": OLD["a"]} == texts(inner)
    assert {FaultKind.REJECTED: 1, FaultKind.LATE_LANDING: 1} == dict(store.injected)
