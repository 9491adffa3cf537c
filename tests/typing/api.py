"""The public surface as a type checker sees it. Checked by mypy, never run."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import assert_type

from hypothesis.strategies import SearchStrategy

from trio_repair import (
    ActiveRepair,
    AutoRepairConfig,
    ChangeCounts,
    CheckStatistics,
    Divergence,
    Document,
    DocumentVersion,
    EngineStatistics,
    Observation,
    PlannedJob,
    Policy,
    Prepared,
    RepairHandle,
    RepairJob,
    RepairOutcome,
    RepairPlan,
    RepairResult,
    StoredDocument,
    StoreError,
    Stores,
    SyncStrategy,
    WriteAnswer,
    check,
    count_changes,
    open_repair_engine,
    plan_repair,
)
from trio_repair.abc import Embedder, Instrument, Store
from trio_repair.instrumentation import LoggingInstrument
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import (
    CrashingStore,
    Fault,
    FaultKind,
    FaultPlan,
    FaultyStore,
    Interleaving,
    RecordingInstrument,
    SimulatedStore,
    Trouble,
    Turn,
    applied,
    strategies,
)
from trio_repair.testing.stateful import RepairMachine, TrioStateMachine, initialize, invariant, repair_machine, rule

text: Store = MemoryStore("text")
simulated: Store = SimulatedStore(MemoryStore("vector"), {"write": 0.1})
faulty: Store = FaultyStore(MemoryStore("cache"), [])
instruments: Sequence[Instrument] = [LoggingInstrument(), RecordingInstrument()]
stores = Stores(text=text, vector=simulated, cache=faulty)


async def engine(job: RepairJob) -> None:
    async with open_repair_engine(stores, AutoRepairConfig(), instruments=instruments) as opened:
        assert_type(await opened.execute_repair_job(job), RepairResult)
        handle = await opened.submit(job)
        assert_type(handle, RepairHandle)
        assert_type(await handle.wait(), RepairResult)
        assert_type(opened.submit_nowait(job).cancel(), bool)
        assert_type(opened.active_operations, Mapping[str, ActiveRepair])
        assert_type(opened.cleanup_timed_out_operations(), list[str])
        assert_type(opened.statistics(), EngineStatistics)
        assert_type(await opened.resolve("a", "text", expected={"text": "1"}), RepairResult)
        opened.limits.max_concurrent_jobs = 3
        plan = plan_repair("a", {}, SyncStrategy.MOST_RECENT, Policy.of(stores, AutoRepairConfig()), now=0.0)
        assert_type(plan, RepairPlan)
        async with opened.run([job, PlannedJob(job, plan)]) as results:
            async for result in results:
                assert_type(result.outcome, RepairOutcome)


async def jobs() -> AsyncIterator[RepairJob]:
    async with check(stores) as divergences:
        async for divergence in divergences:
            assert_type(divergence, Divergence)
            yield RepairJob(doc_id=divergence.doc_id, strategy=SyncStrategy.MOST_RECENT)
        assert_type(divergences.statistics(), CheckStatistics)
    assert_type(await count_changes(stores, SyncStrategy.MOST_RECENT), ChangeCounts)


async def store(document: Document) -> None:
    assert_type(await text.observe(["a"]), Sequence[Observation | StoreError])
    assert_type(await text.read(["a"]), Sequence[StoredDocument | StoreError])
    assert_type(await text.prepare([document]), Sequence[Prepared | StoreError])
    assert_type(await text.write([]), Sequence[WriteAnswer])
    assert_type(document.version, DocumentVersion)


async def embed(embedder: Embedder) -> None:
    assert_type(await embedder.embed(["a"]), Sequence[Sequence[float]])


crashing = FaultyStore(CrashingStore("text", commit_after=1.0), [Fault(FaultKind.CRASH, "write", delay=2.0)])
plan = FaultPlan([Trouble(store="text", fault=Fault(FaultKind.STUCK, delay=9.0), start=1.0, end=2.0)])
assert_type(strategies.fault_plans(stores=["text"]), SearchStrategy[FaultPlan])
assert_type(strategies.interleavings(), SearchStrategy[Interleaving])


async def trouble() -> None:
    async with applied(plan, {"text": crashing}):
        crashing.heal(plan.troubles[0].fault)
        await crashing.wait_for_late_landings()

    async def actor(turn: Turn) -> None:
        await turn()

    assert_type(await Interleaving([1, 0]).play(actor, actor), list[int])


class Machine(TrioStateMachine):
    @initialize()
    async def begin(self) -> None:
        self.nursery.start_soon(trouble)

    @rule(number=strategies.version_numbers())
    async def step(self, number: int | None) -> None: ...

    @invariant()
    def holds(self) -> None: ...


@asynccontextmanager
async def open_stores() -> AsyncGenerator[Stores, None]:
    yield stores


assert_type(repair_machine(open_stores, config=AutoRepairConfig(), real_time=True), type[RepairMachine])
TestMachine = repair_machine(open_stores).TestCase
