"""`trio-repair repair --dry-run`: what a repair would do, without writing anything."""

from __future__ import annotations

from typing import assert_never

import attrs

from .. import RepairPlan, Stores, check
from ._escape import printable
from ._look import look, seen
from ._opening import open_stores
from ._output import Output
from ._plan import Forecast, change_counts, forecast_json, live_stores, mass_change, plan_now
from ._plan_file import PlanCounts, PlanFile
from ._progress import estimate, show_progress
from ._repair import Everything, Named, RepairRequest, count_named, count_planned
from ._signals import open_interruption
from ._status import ExitStatus
from ._values import plan_json

_BATCH = 256


async def _forecast_plan(
    request: RepairRequest, plan_file: PlanFile, stores: Stores, forecast: Forecast, moved: list[str]
) -> None:
    """Hold a plan against what the stores hold now; documents that it no longer fits go to `moved`."""
    batch: list[RepairPlan] = []

    async def flush() -> None:
        found = await look(stores, [plan.doc_id for plan in batch], seconds=request.config.store_call_timeout)
        for plan, answers in zip(batch, found, strict=True):
            views = seen(answers)
            if any(views[name].token != plan.tokens[name] for name in stores.critical):
                moved.append(plan.doc_id)
            else:
                forecast.add(plan, live_stores(views))
        batch.clear()

    for plan in plan_file.plans():
        batch.append(plan)
        if len(batch) == _BATCH:
            await flush()
    if batch:
        await flush()


async def _forecast(
    request: RepairRequest, stores: Stores, forecast: Forecast, moved: list[str], output: Output
) -> PlanCounts:
    match request.what:
        case Everything():
            scale = await estimate(stores, request.config.store_call_timeout)
            async with check(stores, request.config) as checking:
                async with show_progress(output, "planning", lambda: checking.statistics().documents, scale):
                    async for divergence in checking:
                        plan = plan_now(divergence.doc_id, divergence.views, request.strategy, stores, request.config)
                        forecast.add(plan, live_stores(divergence.views))
                return forecast.counter.counts(checking.statistics().documents)
        case Named() as named:
            counts = await count_named(request, named, stores, forecast)
            return forecast.counter.counts(counts.documents)
        case PlanFile() as plan_file:
            counts = await count_planned(request, plan_file, stores)
            await _forecast_plan(request, plan_file, stores, forecast, moved)
            return attrs.evolve(plan_file.counts, documents=counts.documents, deletes=counts.deletes)
        case _:
            assert_never(request.what)


async def run_dry(request: RepairRequest, output: Output) -> ExitStatus:
    """Show what a repair would do. Exit status 0 if that is nothing."""

    def record(plan: RepairPlan) -> None:
        output.record({"type": "document", **plan_json(plan)})

    forecast = Forecast(most_shown=request.limit, on_plan=record if output.json else None)
    moved: list[str] = []
    counts: PlanCounts | None = None
    async with open_interruption() as interruption:
        with interruption.scope:
            async with open_stores(request.configuration) as stores:
                counts = await _forecast(request, stores, forecast, moved, output)
    if counts is None:
        output.say("interrupted; nothing was changed")
        return ExitStatus.INTERRUPTED
    planned = forecast.counter.planned
    if output.json:
        summary = forecast_json("dry-run", request.strategy, forecast.counter.counts(counts.documents), forecast)
        output.record({**summary, "moved": len(moved)})
    else:
        forecast.show(output)
        output.show(f"dry run, nothing was written; documents that need a step: {planned}")
    if moved:
        first = ", ".join(printable(doc_id, 96) for doc_id in moved[:3])
        output.say(f"{len(moved)} planned documents have moved since and would be refused: {first}")
    limited = not isinstance(request.what, Named) or request.what.bulk
    refusal = mass_change(change_counts(counts), request.config) if limited else None
    if refusal is not None:
        output.say(f"repair would refuse this, because it {refusal}")
    return ExitStatus.ATTENTION if planned or moved else ExitStatus.OK
