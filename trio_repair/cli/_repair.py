"""`trio-repair repair`: make the copies agree, and tell truly what was done, however the run ends."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any, Final, assert_never

import attrs
import trio

from .. import (
    AutoRepairConfig,
    ChangeCounts,
    MassChangeRefused,
    Observation,
    PlannedJob,
    Presence,
    RepairExecutionEngine,
    RepairJob,
    RepairPlan,
    RepairTrigger,
    Stores,
    SyncStrategy,
    TrioRepairError,
    check,
    count_changes,
    open_repair_engine,
)
from ..abc import Instrument
from ._configuration import Configuration
from ._lock import hold_lock
from ._look import count_held, look, look_in_batches, seen
from ._metrics import serving_metrics
from ._opening import open_stores
from ._output import Output
from ._patience import hung_stores
from ._plan import Forecast, change_counts, live_stores, mass_change, plan_now
from ._plan_file import PlanCounter, PlanFile
from ._progress import Scale, estimate, show_progress
from ._receipts import ReceiptFile
from ._signals import Interruption, open_interruption
from ._status import ExitStatus, UsageError, report
from ._tally import Tally
from ._tap import JobTap

_BATCH: Final = 256

_STOPPED: Final = {
    "interrupted": "interrupted: the repairs under way were finished, the rest was not begun",
    "max-duration": "--max-duration is over: the repairs under way were finished, the rest was not begun; run it again",
    "receipts": "stopped because receipts could not be written; the repairs under way were finished",
}


class Everything:
    """Repair all that a check finds."""


@attrs.frozen
class Named:
    """Repair these documents."""

    doc_ids: Iterable[str]
    count: int
    bulk: bool
    """They come from a file, not from a person's fingers: the limits for mass changes hold."""


@attrs.frozen(kw_only=True)
class RepairRequest:
    """What one run of `repair` is asked to do; already validated."""

    configuration: Configuration
    config: AutoRepairConfig
    strategy: SyncStrategy
    max_retries: int
    what: Everything | Named | PlanFile
    max_duration: float | None = None
    receipts: Path | None = None
    metrics_port: int | None = None
    """Where to serve metrics while the run lasts; 0: any port that is free."""
    limit: int = 10
    """How many failures, or documents of a dry run, are shown."""


@attrs.define
class _Run:
    """What is known about a run, for its summary."""

    tally: Tally
    started: float
    metrics: Sequence[Instrument] = ()
    counts: ChangeCounts | None = None
    tap: JobTap | None = None
    counting: bool = False
    """The stores were open, and were looked at."""
    begun: bool = False
    """The engine was opened."""
    out_of_time: bool = False
    """The time was up before the engine was opened."""
    unsettled: int = 0
    """Documents that the check could not judge."""
    refused: MassChangeRefused | None = None
    """It was counted, and stopped before it wrote anything."""
    failure: BaseException | None = None


def _job(request: RepairRequest, doc_id: str, trigger: RepairTrigger) -> RepairJob:
    return RepairJob(doc_id=doc_id, strategy=request.strategy, trigger=trigger, max_retries=request.max_retries)


async def _divergent(request: RepairRequest, checking: Any) -> AsyncIterator[RepairJob | PlannedJob]:
    async for divergence in checking:
        yield _job(request, divergence.doc_id, RepairTrigger.CONSISTENCY_CHECK)


async def _named(request: RepairRequest, doc_ids: Iterable[str]) -> AsyncIterator[RepairJob | PlannedJob]:
    for doc_id in doc_ids:
        yield _job(request, doc_id, RepairTrigger.MANUAL)


async def _planned(request: RepairRequest, plan: PlanFile) -> AsyncIterator[RepairJob | PlannedJob]:
    for planned in plan.jobs(max_retries=request.max_retries):
        yield planned


async def count_named(request: RepairRequest, named: Named, stores: Stores, forecast: Forecast) -> ChangeCounts:
    """Count what a repair of named documents would do; `forecast` takes in each of them that is not in order.

    Raises:
        StoreError: a store could not be looked at.
    """
    seconds = request.config.store_call_timeout
    held = await count_held(stores, seconds=seconds)
    met = 0
    async for doc_id, answers in look_in_batches(stores, named.doc_ids, seconds=seconds):
        views = seen(answers)
        met += _is_held(views)
        plan = plan_now(doc_id, views, request.strategy, stores, request.config)
        if plan.writes or plan.reason is not None or plan.cache_step.value != "none":
            forecast.add(plan, live_stores(views))
    return change_counts(forecast.counter.counts(_documents(held, met)))


def _is_held(views: Mapping[str, Observation]) -> bool:
    return any(view.presence is not Presence.ABSENT for view in views.values())


def _documents(held: Mapping[str, int], met: int) -> int:
    """How many documents there are at least, tombstones and all, as in `count_changes`.

    It was not asked how many of the stores' documents are the same ones: no fewer than the fullest store holds, be it
    the cache, and no fewer than were looked at and found (`met`).
    """
    return max(met, *held.values())


async def count_planned(request: RepairRequest, plan_file: PlanFile, stores: Stores) -> ChangeCounts:
    """Count what a plan would do to what the stores hold now. What the file says of itself, somebody may have edited.

    Raises:
        UsageError: the plan is for more documents than there are.
        StoreError: a store could not be looked at.
    """
    seconds = request.config.store_call_timeout
    held = await count_held(stores, seconds=seconds)
    announced, possible = plan_file.header.counts.documents, sum(held.values())
    if announced > possible and held.keys() == stores.by_name.keys():
        raise UsageError(
            f"{plan_file.path}: its header announces {announced} documents, and the stores hold {possible} at most: "
            "it was edited, or much was purged since; make the plan again"
        )
    counter = PlanCounter()
    met = 0
    batch: dict[str, RepairPlan] = {}
    for plan in itertools.chain(plan_file.plans(), [None]):
        if plan is not None:
            batch[plan.doc_id] = plan
        if batch and (plan is None or len(batch) == _BATCH):
            found = await look(stores, list(batch), seconds=seconds)
            for planned, answers in zip(batch.values(), found, strict=True):
                views = seen(answers)
                met += _is_held(views)
                counter.add(planned, live_stores(views))
            batch.clear()
    return change_counts(counter.counts(_documents(held, met)))


async def _count(request: RepairRequest, stores: Stores, output: Output) -> ChangeCounts | None:
    """How much the run would change, before it changes anything; None if no limit applies."""
    match request.what:
        case Everything():
            counted = deque([0], maxlen=1)
            scale = await estimate(stores, request.config.store_call_timeout)
            async with show_progress(output, "counting what differs", lambda: counted[-1], scale):
                return await count_changes(stores, request.strategy, request.config, on_progress=counted.append)
        case Named() as named if named.bulk:
            return await count_named(request, named, stores, Forecast(most_shown=0))
        case Named():
            return None
        case PlanFile() as plan:
            return await count_planned(request, plan, stores)
        case _:
            assert_never(request.what)


async def _jobs(
    request: RepairRequest, stores: Stores, stack: AsyncExitStack, run: _Run
) -> AsyncIterator[RepairJob | PlannedJob]:
    match request.what:
        case Everything():
            checking = await stack.enter_async_context(check(stores, request.config))
            stack.callback(lambda: setattr(run, "unsettled", checking.statistics().unsettled))
            return _divergent(request, checking)
        case Named() as named:
            return _named(request, named.doc_ids)
        case PlanFile() as plan:
            return _planned(request, plan)
        case _:
            assert_never(request.what)


def _withdraw_waiting(engine: RepairExecutionEngine, tally: Tally) -> int:
    """Take back every job that is not running. Returns how many go on."""
    running = engine.active_operations
    for job_id in list(tally.live):
        if job_id not in running:
            engine.cancel(job_id)
    return len(running)


def _total(what: Everything | Named | PlanFile, counts: ChangeCounts | None) -> int:
    match what:
        case Named():
            return what.count
        case PlanFile():
            return what.counts.planned
        case Everything():
            return 0 if counts is None else counts.divergent
        case _:
            assert_never(what)


async def _execute(
    request: RepairRequest, stores: Stores, run: _Run, interruption: Interruption, output: Output
) -> None:
    deadline = math.inf if request.max_duration is None else run.started + request.max_duration
    run.counting = True
    with trio.move_on_at(deadline) as counting:
        run.counts = await _count(request, stores, output)
    if counting.cancelled_caught:
        run.out_of_time = True
        return
    if run.counts is not None and (refusal := mass_change(run.counts, request.config)) is not None:
        run.refused = refusal
        return
    total = _total(request.what, run.counts)
    if not total:
        return
    output.say(f"documents to repair: {total}; strategy: {request.strategy.value}")
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(
            open_repair_engine(stores, request.config, instruments=[run.tally, *run.metrics])
        )
        tap = run.tap = JobTap(await _jobs(request, stores, stack, run), deadline)
        run.begun = True

        def drain() -> None:
            tap.stop("interrupted")
            running = _withdraw_waiting(engine, run.tally)
            output.say(f"interrupted; repairs that are still finished: {running}; interrupt again to cancel them")

        interruption.on_first = drain
        run.tally.on_receipts_failed = lambda: tap.stop("receipts")
        async with (
            show_progress(output, "repairing", lambda: run.tally.total, Scale(total=total)),
            engine.run(tap) as results,
        ):
            async for _ in results:
                pass


async def run_repair(request: RepairRequest, output: Output) -> ExitStatus:
    """Repair, and sum up.

    Raises:
        TrioRepairError: nothing was begun.
    """
    run = _Run(Tally(most_failures=request.limit), trio.current_time())
    with ExitStack() as files:
        run.metrics = files.enter_context(serving_metrics(request.metrics_port, output))
        files.enter_context(hold_lock(request.configuration.path))
        if request.receipts is not None:
            run.tally.receipts = ReceiptFile.open(request.receipts)
            files.callback(run.tally.receipts.close)
        async with open_interruption() as interruption:
            try:
                with interruption.scope:
                    async with open_stores(request.configuration) as stores:
                        await _execute(request, stores, run, interruption, output)
            except (TrioRepairError, BaseExceptionGroup) as error:
                if not run.begun and not (output.json and run.counting and hung_stores(error)):
                    raise
                # What was done until then is told all the same.
                run.failure = error
                run.tally.hung.update(hung_stores(error))
    return _sum_up(request, run, interruption, output)


def _nothing_done(what: Everything | Named | PlanFile, run: _Run) -> str:
    if isinstance(what, PlanFile):
        return "the plan holds nothing to do"
    if isinstance(what, Named):
        return "no document ids were given; nothing to do"
    if run.counts is None or run.unsettled:
        return "nothing was repaired"
    return f"all {run.counts.documents} documents are consistent; nothing to repair"


def _refused_json(refusal: MassChangeRefused) -> dict[str, int]:
    return {"documents": refusal.documents, "changes": refusal.changes, "deletes": refusal.deletes}


def _sum_up(request: RepairRequest, run: _Run, interruption: Interruption, output: Output) -> ExitStatus:
    tally = run.tally
    stopped: str | None = None if run.tap is None else run.tap.stopped
    if run.out_of_time:
        stopped = "max-duration"
    if run.refused is not None:
        stopped = "mass-change"
    if interruption.signals:
        stopped = "interrupted"
    ended = stopped if stopped is not None or run.failure is None else "failed"
    if output.json:
        output.record(
            {
                "type": "repair",
                "strategy": request.strategy.value,
                **tally.as_json(),
                "stopped": "cancelled" if interruption.scope.cancelled_caught else ended,
                "refused": None if run.refused is None else _refused_json(run.refused),
                "unsettled": run.unsettled,
                "seconds": round(trio.current_time() - run.started, 3),
            }
        )
    elif tally.total:
        tally.show(output)
    elif stopped is None and run.failure is None:
        output.show(_nothing_done(request.what, run))
    for store, calls in tally.hung.items():
        output.say(f"the {store} store hung; calls given up after {request.config.store_call_timeout:g} s: {calls}")
    if run.unsettled:
        output.say(f"{run.unsettled} documents kept changing and were left alone; run it again")
    if tally.receipts_failed is not None:
        output.say(f"{tally.receipts_failed} ({tally.receipts_lost} results have no receipt)")
    if interruption.scope.cancelled_caught:
        output.say("interrupted: running repairs were cancelled" if run.begun else "interrupted: nothing was changed")
    elif run.refused is not None:
        output.say(f"nothing was begun: the repair {run.refused}")
    elif stopped is not None:
        output.say(_STOPPED[stopped])
    status = ExitStatus.OK if run.failure is None else report(run.failure)
    if interruption.signals:
        return ExitStatus.INTERRUPTED
    if status is ExitStatus.OK and (tally.failed or stopped is not None or run.unsettled):
        return ExitStatus.ATTENTION
    return status
