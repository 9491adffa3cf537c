"""Plays a scenario in virtual time and returns what happened."""

from __future__ import annotations

import datetime as dt
import logging
import random
from typing import Any
from unittest.mock import patch

import attrs
import trio
import trio.testing
from trio.testing import MockClock

from trio_repair import (
    AbsentMeans,
    Document,
    DuplicateJob,
    EngineClosed,
    EngineEvent,
    Fence,
    Observation,
    Policy,
    RepairExecutionEngine,
    RepairJob,
    RepairPlan,
    RepairResult,
    StoreTraits,
    _engine,
    open_repair_engine,
    plan_repair,
)
from trio_repair._model import MAX_VERSION_NUMBER
from trio_repair.abc import Stores
from trio_repair.instrumentation import LoggingInstrument
from trio_repair.testing import EMBEDDING, FaultyStore, SimulatedStore, make_document

from .recording import (
    AttemptBegan,
    AttemptEnded,
    GroundStore,
    Happened,
    LimitSet,
    RoundBegan,
    Sampled,
    Tap,
)
from .scenario import (
    STORES,
    AddFault,
    AnyStep,
    Cancel,
    Cleanup,
    Heal,
    JobSpec,
    Latency,
    MakePlan,
    Pause,
    Resolve,
    Resume,
    Scenario,
    SetLimit,
    Stream,
    Submit,
    Write,
)
from .trace import MARKER, PATIENT, Caller, Trace

EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)


class ProgramError(Exception):
    """What the application raises inside the engine's block."""


def traits_of(name: str, scenario: Scenario) -> StoreTraits:
    keeps = name != "cache"
    absent = AbsentMeans.MISSING if keeps else AbsentMeans.MANUAL
    return StoreTraits(
        fence=Fence.STRONG,
        holds_text=True,
        keeps_tombstones=keeps,
        absent=scenario.absent.get(name, absent),
        max_calls=scenario.max_calls,
        max_batch=scenario.max_batch,
    )


def rival(doc_id: str, held: Observation) -> Document:
    """What a concurrent writer writes: one number higher, if there is one."""
    number = -1 if held.version is None or held.version.number is None else held.version.number
    return make_document(doc_id, f"{MARKER}rival {number + 1}", number=min(number + 1, MAX_VERSION_NUMBER))


class _Watch(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(self.format(record))


def play(scenario: Scenario) -> Trace:
    trace = Trace(scenario)
    logger = logging.getLogger("trio_repair")
    watch = _Watch(trace.said)
    old = (logger.level, logger.propagate)
    logger.addHandler(watch)
    logger.setLevel(logging.DEBUG if scenario.logged else logging.ERROR)
    logger.propagate = False
    try:
        trio.run(_Play(trace).run, clock=MockClock(autojump_threshold=0))
    finally:
        logger.removeHandler(watch)
        logger.level, logger.propagate = old
        logger.setLevel(old[0])
    return trace


class _Play:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.scenario = trace.scenario
        self.log = trace.log
        self.rng = random.Random(self.scenario.seed)
        self.jobs = 0
        self.planned: dict[str, RepairPlan] = {}
        self.numbers: dict[str, int] = {}
        self.engine: RepairExecutionEngine
        self.nursery: trio.Nursery
        self.tasks: trio.Nursery

    async def run(self) -> None:
        trace, scenario = self.trace, self.scenario
        tasks_before = trio.lowlevel.current_statistics().tasks_living
        self.log.start = trio.current_time()
        stores = self._build_stores()
        with patch.object(_engine, "utc_now", self._wall), trio.fail_after(100_000):
            async with trio.open_nursery() as self.nursery:
                with trio.CancelScope() as self.host:
                    try:
                        await self._first_engine(stores)
                    except ProgramError:
                        pass
                    except Exception as error:
                        trace.escaped = error
                trace.host_cancelled = self.host.cancelled_caught
                trace.ended_at = self.log.now()
                trace.statistics = self.engine.statistics()
            trace.tasks_left = trio.lowlevel.current_statistics().tasks_living - tasks_before
            trace.after = {name: store.snapshot() for name, store in trace.stores.items()}
            for faulty in trace.faulty.values():
                faulty.heal()
            for number in range(scenario.rounds):
                self.log.add(RoundBegan, number=number)
                trace.final_rounds.append(await self._round(stores))

    def _build_stores(self) -> Stores:
        taps = {}
        for name in STORES if self.scenario.with_cache else STORES[:2]:
            ground = GroundStore(
                name,
                self.log,
                traits=traits_of(name, self.scenario),
                embedding=EMBEDDING if name == "vector" else None,
            )
            self.trace.stores[name] = ground
            faults = self.scenario.faults.get(name, ())
            faulty = FaultyStore(ground, faults, rng=self.rng, rival=rival, name=name)
            self.trace.faulty[name] = faulty
            latency = self.scenario.latencies.get(name, Latency())
            slow = SimulatedStore(
                faulty, dict.fromkeys(("observe", "read", "prepare", "write", "remove"), latency.before)
            )
            taps[name] = Tap(name, slow, ground, self.log, latency.after, self.scenario.leaking)
        fillable = {**self.trace.stores}
        if not self.scenario.with_cache:
            fillable["cache"] = GroundStore("cache", self.log, traits=traits_of("cache", self.scenario))
        self.scenario.contents.fill(fillable)
        self.log.on = True
        self.trace.before = {name: store.snapshot() for name, store in self.trace.stores.items()}
        return Stores(text=taps["text"], vector=taps["vector"], cache=taps.get("cache"))

    def _wall(self) -> dt.datetime:
        return EPOCH + dt.timedelta(seconds=self.log.now())

    async def _first_engine(self, stores: Stores) -> None:
        trace, scenario = self.trace, self.scenario
        instruments: list[Any] = [self, LoggingInstrument()] if scenario.logged else [self]
        async with open_repair_engine(stores, scenario.config, instruments=instruments, rng=self.rng) as engine:
            self.engine = engine
            self.policy = Policy.of(stores, scenario.config)
            repairer, late = engine._supervisor.repairer, {*scenario.stubborn, *scenario.raising_late}
            # What goes on after it was cut off has not ended there.
            cut_off = repairer._cut_off
            repairer._cut_off = lambda entry: entry.doc_id not in late and cut_off(entry)
            execute = engine._supervisor.execute
            engine._supervisor.execute = lambda entry: self._watched(execute, entry)  # type: ignore[method-assign]  # watched from outside
            self.log.add(LimitSet, value=engine.limits.max_concurrent_jobs)
            try:
                for step in scenario.program:
                    if step.wait:
                        await trio.sleep(step.wait)
                    await self._take(step)
                    self.log.add(Sampled, statistics=engine.statistics(), active=tuple(engine.active_operations))
                if scenario.ending == "drain":
                    # Whoever is about to submit has done so, or waits for room.
                    await trio.testing.wait_all_tasks_blocked()
            finally:
                trace.ending_at = self.log.now()
            if scenario.ending == "raise":
                raise ProgramError
            if scenario.ending == "cancel":
                self.host.cancel()
                await trio.lowlevel.checkpoint()

    async def _round(self, stores: Stores) -> list[RepairResult]:
        strategy = self.scenario.rounds_strategy
        jobs = [RepairJob(doc_id=doc_id, strategy=strategy, max_retries=3) for doc_id in self.scenario.doc_ids]
        async with open_repair_engine(stores, attrs.evolve(self.scenario.config, **PATIENT), rng=self.rng) as engine:
            async with engine.run(jobs) as results:
                return [result async for result in results]

    # The engine's instrument

    def on_event(self, event: EngineEvent) -> None:
        now = trio.current_time()
        late = tuple(job_id for job_id, row in self.engine.active_operations.items() if now > row.timeout_at + 1e-9)
        self.log.add(Happened, event=event, late=late)

    async def _watched(self, execute: Any, entry: Any) -> Any:
        doc_id = entry.doc_id
        self.log.add(AttemptBegan, doc_id=doc_id)
        timed_out = False
        try:
            if doc_id in self.scenario.raising:
                raise RuntimeError(f"planned bug in the repair of {doc_id!r}")
            try:
                verdict = await execute(entry)
                if verdict is None:
                    timed_out = trio.current_time() >= entry.timeout_at and not entry.cancelled
                    if doc_id in self.scenario.stubborn or doc_id in self.scenario.raising_late:
                        await trio.lowlevel.checkpoint()  # cancelled
                return verdict  # noqa: TRY300 - it may have been cancelled in here
            except trio.Cancelled as cancelled:
                timed_out = trio.current_time() >= entry.timeout_at and not entry.cancelled
                if doc_id in self.scenario.stubborn:
                    with trio.CancelScope(shield=True):
                        await trio.sleep(self.scenario.stubborn[doc_id])
                if doc_id in self.scenario.raising_late:
                    raise BaseExceptionGroup("", [cancelled, RuntimeError("planned bug")]) from None
                raise
        finally:
            self.log.add(AttemptEnded, doc_id=doc_id, timed_out=timed_out)

    # Steps

    async def _take(self, step: AnyStep) -> None:
        engine, trace = self.engine, self.trace
        match step:
            case Submit():
                self._submit(step)
            case Stream():
                self.nursery.start_soon(self._stream, [self._job(spec) for spec in step.jobs], step.take)
            case MakePlan():
                views = {name: store.observe_nowait(step.doc_id) for name, store in trace.stores.items()}
                self.planned[step.doc_id] = plan_repair(step.doc_id, views, step.strategy, self.policy, now=0.0)
            case Cancel():
                engine.cancel(f"job-{step.job}")
            case Pause():
                engine.pause()
            case Resume():
                engine.resume()
            case Cleanup():
                trace.cleaned.append(engine.cleanup_timed_out_operations())
            case SetLimit():
                self.log.add(LimitSet, value=step.value)
                engine.limits.max_concurrent_jobs = step.value
            case AddFault():
                if step.store in trace.faulty:
                    trace.faulty[step.store].add(step.fault)
            case Heal():
                for faulty in trace.faulty.values():
                    faulty.heal()
            case Write():
                self.nursery.start_soon(self._write, step)
            case Resolve():
                self.nursery.start_soon(self._resolve, step)
        # A step is taken when all that it causes at once has happened.
        await trio.lowlevel.checkpoint()

    def _job(self, spec: JobSpec) -> RepairJob:
        job_id = f"job-{self.jobs}"
        self.jobs += 1
        deadline = None if spec.deadline is None else EPOCH + dt.timedelta(seconds=spec.deadline)
        return RepairJob(
            id=job_id,
            doc_id=spec.doc_id,
            strategy=spec.strategy,
            priority=spec.priority,
            timeout=spec.timeout,
            deadline=deadline,
            max_retries=spec.max_retries,
        )

    def _submit(self, step: Submit) -> None:
        job = self._job(step.job)
        plan = self.planned.get(job.doc_id) if step.planned and step.how != "execute" else None
        if plan is not None:
            self.trace.plans[job.id] = plan
        if step.how == "execute":
            self.nursery.start_soon(self._execute, job, step.withdraw_after)
        elif step.how == "submit":
            self.nursery.start_soon(self._submit_waiting, job, plan)
        else:
            try:
                self.trace.handles[job.id] = self.engine.submit_nowait(job, plan=plan)
            except (trio.WouldBlock, EngineClosed):
                self.trace.refused += 1

    async def _submit_waiting(self, job: RepairJob, plan: RepairPlan | None) -> None:
        try:
            self.trace.handles[job.id] = await self.engine.submit(job, plan=plan)
        except EngineClosed:
            self.trace.refused += 1

    async def _execute(self, job: RepairJob, withdraw_after: float | None) -> None:
        caller = Caller(job_id=job.id)
        self.trace.callers.append(caller)
        with trio.CancelScope() as scope:
            if withdraw_after is not None:
                scope.deadline = trio.current_time() + withdraw_after
            try:
                caller.result = await self.engine.execute_repair_job(job)
            except EngineClosed:
                caller.refused = True
        caller.left = scope.cancelled_caught

    async def _stream(self, jobs: list[RepairJob], take: int | None) -> None:
        try:
            async with self.engine.run(jobs) as results:
                if take == 0:
                    return
                async for result in results:
                    self.trace.streamed.append(result)
                    if take is not None and len(self.trace.streamed) >= take:
                        return
        except (EngineClosed, DuplicateJob):
            self.trace.refused += 1

    async def _resolve(self, step: Resolve) -> None:
        expected = None
        if step.fenced:
            expected = {name: store.observe_nowait(step.doc_id).token for name, store in self.trace.stores.items()}
        try:
            self.trace.resolved.append(await self.engine.resolve(step.doc_id, step.choice, expected=expected))
        except EngineClosed:
            self.trace.refused += 1

    async def _write(self, step: Write) -> None:
        held = [store.observe_nowait(step.doc_id).version for store in self.trace.stores.values()]
        numbers = [version.number for version in held if version is not None and version.number is not None]
        number = 1 + max([self.numbers.get(step.doc_id, 0), *numbers])
        self.numbers[step.doc_id] = number
        for index, name in enumerate(step.stores):
            if index and step.gap:
                await trio.sleep(step.gap)
            store = self.trace.stores.get(name)
            if store is None:
                continue
            if step.delete:
                store.delete_nowait(step.doc_id, number=number)
            else:
                store.put_nowait(make_document(step.doc_id, f"{MARKER}app {number}", number=number))
