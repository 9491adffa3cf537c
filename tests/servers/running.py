"""One fault in one run of repairs, and what is then told and held; and the runs after it, until all agrees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import attrs
import trio
from crash.held import Holdings
from crash.judging import differences, losses

from trio_repair import (
    AutoRepairConfig,
    EventKind,
    RepairJob,
    RepairOutcome,
    RepairResult,
    StepState,
    Stores,
    SyncStrategy,
    check,
    open_repair_engine,
)
from trio_repair.testing import RecordingInstrument, assert_trace

from .ground import OWN, SHARED, Application, Pair, World, goal, open_world

MOST_RUNS = 4
"""Runs after a fault, at most."""
_ENOUGH = 40.0
_TOLERANCE = 2.0

Inject = Callable[[World, int, "trio.TaskStatus[None]"], Awaitable[None]]
"""Make the fault happen in this round, and take it back. Says `started` once the run may begin."""


@attrs.frozen(kw_only=True, eq=False)
class Fault:
    """Something that happens to a server, or on the way to it, while repairs run."""

    name: str
    """As the table shows it."""
    inject: Inject
    unknown: frozenset[str] = frozenset()
    """Stores whose verdict may really be lost: only their receipts may say UNKNOWN."""
    proxied: frozenset[str] = frozenset()
    role: Mapping[str, str] = attrs.field(factory=dict)
    redis_user: bool = False
    limits: Mapping[str, float] = attrs.field(factory=dict)
    config: Mapping[str, Any] = attrs.field(factory=dict)
    evicts: bool = False
    """Cache entries vanish by themselves."""
    loses_tables: bool = False
    """What the vector store held is gone, newer versions too."""
    says: str = ""
    """Words that a result must have in an error, a warning or a receipt; "": any."""

    def __str__(self) -> str:
        return self.name


@attrs.define
class Report:
    """What became of one fault."""

    injected: int = 0
    outcomes: Counter[str] = attrs.field(factory=Counter)
    """Of the run in which it happened."""
    states: Counter[str] = attrs.field(factory=Counter)
    """What its receipts say."""
    wrong: list[str] = attrs.field(factory=list)
    """Receipts that do not agree with what the stores hold, in any run."""
    lost: list[str] = attrs.field(factory=list)
    """Acknowledged writes that are not there, and copies that were readable."""
    acknowledged: int = 0
    """Writes of the application that were acknowledged meanwhile."""
    runs: int = 0
    """How many runs it took after the fault, until all agreed."""
    disagreeing: list[str] = attrs.field(factory=list)
    """What never came to agree."""
    said: set[str] = attrs.field(factory=set)
    """The errors, warnings and details of the first run."""

    def add(self, other: Report) -> None:
        """Another round of the same fault."""
        self.injected += other.injected
        self.outcomes += other.outcomes
        self.states += other.states
        self.acknowledged += other.acknowledged
        self.runs = max(self.runs, other.runs)
        for name in ("wrong", "lost", "disagreeing"):
            getattr(self, name).extend(getattr(other, name))
        self.said |= other.said


def _settings(fault: Fault) -> AutoRepairConfig:
    return AutoRepairConfig(
        **{
            "max_concurrent_jobs": 10,
            "job_timeout_seconds": 8.0,
            "store_call_timeout": 5.0,
            "unavailable_timeout": 0.3,
            "breaker_reset": 0.05,
            "backoff_base": 0.02,
            "backoff_cap": 0.1,
            "settle": 0.0,
            "grace": 1.0,
            **fault.config,
        }
    )


async def _run(world: World, config: AutoRepairConfig, instruments: Sequence[Any] = ()) -> RecordingInstrument:
    recording = RecordingInstrument()
    # By turns, so that what happens early in a run happens to both kinds.
    ids = sorted([*OWN, *SHARED], key=lambda doc_id: (doc_id[1:].zfill(2), doc_id))
    jobs = [RepairJob(doc_id=doc_id, strategy=SyncStrategy.MOST_RECENT, max_retries=2) for doc_id in ids]
    with trio.fail_after(_ENOUGH):
        async with open_repair_engine(Stores(**world.stores), config, instruments=[recording, *instruments]) as engine:
            async with engine.run(jobs) as results:
                async for _ in results:
                    pass
    return recording


def _without_cache(result: RepairResult) -> RepairResult:
    return attrs.evolve(
        result,
        receipt=[step for step in result.receipt if step.store != "cache"],
        updated_systems=[name for name in result.updated_systems if name != "cache"],
    )


def judge(
    fault: Fault,
    recording: RecordingInstrument,
    before: Mapping[str, Holdings],
    after: Mapping[str, Holdings],
    *,
    unknown: frozenset[str],
) -> tuple[list[str], list[str]]:
    """Which receipts are wrong, and which readable copies are lost."""
    sent: dict[str, set[str]] = {}
    for event in recording.of(EventKind.WRITE_SENT):
        assert event.doc_id is not None
        assert event.store is not None
        sent.setdefault(event.doc_id, set()).add(event.store)
    wrong: list[str] = []
    lost: list[str] = []
    for result in recording.results:
        wrong += [
            f"{result.doc_id}: {step.store} is told as unknown, but its verdict was not lost; {step}"
            for step in result.receipt
            if step.state is StepState.UNKNOWN and step.store not in unknown
        ]
        doc_id = result.doc_id
        if doc_id not in OWN:
            continue
        if fault.evicts and not after[doc_id]["cache"].present:
            result = _without_cache(result)  # noqa: PLW2901 - compared without it
        wrong += differences(result, before[doc_id], after[doc_id], sent.get(doc_id, set()))
        lost += losses(doc_id, before[doc_id], after[doc_id], deletes=goal(doc_id).word is None)
    try:
        assert_trace(recording.events, tolerance=_TOLERANCE)
    except AssertionError as error:
        wrong.append(f"the trace: {error}")
    return wrong, lost


def disagreements(held: Mapping[str, Holdings], *, goals: bool) -> list[str]:
    """Documents that are not the same everywhere, or not what they were to be."""
    found = []
    for doc_id, stores in held.items():
        text, vector, cache = stores["text"], stores["vector"], stores["cache"]
        same = (text.number, text.digest, text.deleted) == (vector.number, vector.digest, vector.deleted)
        whole = text.deleted or text.copies == vector.copies == 1
        cached = not cache.present or (cache.copies == 1 and (cache.number, cache.digest) == (text.number, text.digest))
        due = not goals or doc_id not in OWN or text.holds(goal(doc_id).document(doc_id).version)
        if not (same and whole and cached and due):
            found.append(f"{doc_id}: {dict(stores)}")
    return found


async def suffer(pair: Pair, fault: Fault, round_number: int = 0) -> Report:
    """Let a fault happen while repairs run and an application writes, and see to the end of it."""
    report = Report()
    config = _settings(fault)
    async with open_world(
        pair, proxied=fault.proxied, role=fault.role, redis_user=fault.redis_user, limits=fault.limits
    ) as world:
        before = world.held()
        application = Application(world.connect, f"{world.text}.documents")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(application.run)
            while not application.writes:  # noqa: ASYNC110 - it is another thread that is waited for
                await trio.sleep(0.005)
            await nursery.start(fault.inject, world, round_number)
            recording = await _run(world, config, [world.progress])
            world.progress.over.set()
            application.stopped = True
        await world.settle()
        report.injected = world.injected
        report.acknowledged = application.writes
        report.outcomes.update(result.outcome.value for result in recording.results)
        for result in recording.results:
            report.states.update(step.state.value for step in result.receipt)
            told = [result.error, *result.warnings, *(step.detail for step in result.receipt)]
            report.said.update(one for one in told if one is not None)
        held = world.held()
        wrong, report.lost = judge(fault, recording, before, held, unknown=fault.unknown)
        report.wrong += wrong
        report.lost += application.lost(held)
        world.kept = ""
        await _converge(world, fault, report)
        report.lost += [] if fault.loses_tables else application.lost(world.held())
    return report


async def _converge(world: World, fault: Fault, report: Report) -> None:
    """Run until all agrees; then once more, in which nothing is left to do."""
    config = attrs.evolve(_settings(fault), store_call_timeout=10.0)
    before = world.held()
    while disagreements(before, goals=not fault.loses_tables) and report.runs < MOST_RUNS:
        recording = await _run(world, config)
        after = world.held()
        wrong, lost = judge(fault, recording, before, after, unknown=frozenset())
        report.wrong += wrong
        report.lost += lost
        report.runs += 1
        before = after
    report.disagreeing = disagreements(before, goals=not fault.loses_tables)
    recording = await _run(world, config)
    report.disagreeing += [
        f"{result.doc_id}: {result.outcome.value} although all had agreed, {result.error}"
        for result in recording.results
        if result.outcome is not RepairOutcome.ALREADY_CONSISTENT
    ]
    async with check(Stores(**world.stores), config) as divergences:
        report.disagreeing += [f"a check finds {one.doc_id}" async for one in divergences]
