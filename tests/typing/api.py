"""The public surface as a type checker sees it. Checked by mypy, never run."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import assert_type

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
from trio_repair.testing import FaultyStore, RecordingInstrument, SimulatedStore

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
