"""`trio-repair plan`: write down what a repair would do."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

import attrs
import trio

from .. import (
    AutoRepairConfig,
    ChangeCounts,
    MassChangeRefused,
    Observation,
    PlanAction,
    Policy,
    Presence,
    RepairPlan,
    Stores,
    SyncStrategy,
    check,
    plan_repair,
)
from ._configuration import Configuration
from ._escape import printable
from ._opening import open_stores
from ._output import Output, table
from ._plan_file import PlanCounter, PlanCounts, PlanWriter
from ._progress import estimate, show_progress
from ._signals import open_interruption
from ._status import ExitStatus
from ._words import plan_words

_ID_WIDTH: Final = 96


def plan_now(
    doc_id: str, views: Mapping[str, Observation], strategy: SyncStrategy, stores: Stores, config: AutoRepairConfig
) -> RepairPlan:
    """What a repair would do about a document, now."""
    return plan_repair(doc_id, views, strategy, Policy.of(stores, config), now=time.time())


def live_stores(views: Mapping[str, Observation]) -> Collection[str]:
    """The stores that hold a live copy."""
    return {name for name, view in views.items() if view.presence is Presence.LIVE}


@attrs.define
class Forecast:
    """What a repair would do: the counts and the first documents."""

    most_shown: int
    on_plan: Callable[[RepairPlan], None] | None = None
    """Told of every plan that is taken in."""
    counter: PlanCounter = attrs.field(factory=PlanCounter)
    first: list[RepairPlan] = attrs.field(factory=list)

    def add(self, plan: RepairPlan, live: Collection[str]) -> None:
        """Take in the plan for one document; `live` names the stores that hold a live copy of it."""
        self.counter.add(plan, live)
        if len(self.first) < self.most_shown:
            self.first.append(plan)
        if self.on_plan is not None:
            self.on_plan(plan)

    def show(self, output: Output) -> None:
        """Tables for people."""
        if not self.counter.planned:
            return
        rows = [(action.value, count) for action, count in self.counter.by_action.items() if count]
        output.show(table(("action", "documents"), rows, numbers=("documents",)))
        shown = [(printable(plan.doc_id, _ID_WIDTH), plan_words(plan)) for plan in self.first]
        if shown:
            more = self.counter.planned > len(shown)
            title = f"the first {len(shown)} of {self.counter.planned}" if more else None
            output.show(table(("document", "what would be done"), shown, title=title))


def change_counts(counts: PlanCounts) -> ChangeCounts:
    """The counts in the form that is held against the limits for mass changes."""
    return ChangeCounts(
        documents=counts.documents,
        divergent=counts.planned,
        changes=counts.changes,
        deletes=counts.deletes,
        manual=counts.manual,
    )


def percent(part: float, whole: int) -> str:
    """How much of the whole."""
    return f"{100 * part / max(1, whole):.3g}%"


def mass_change(counts: ChangeCounts, config: AutoRepairConfig) -> MassChangeRefused | None:
    """Why a bulk repair of so much is refused, in the words of the command; None if it is not."""
    try:
        counts.guard(config)
    except MassChangeRefused:
        deletes = counts.deletes > config.max_deletes * counts.documents
        verb, count = ("delete", counts.deletes) if deletes else ("change", counts.changes)
        setting, allowed = ("max_deletes", config.max_deletes) if deletes else ("max_changed", config.max_changed)
        share = percent(count, counts.documents)
        return MassChangeRefused(
            f"would {verb} {count} of {counts.documents} documents ({share}; {setting} is {allowed:g}, which is "
            f"{percent(allowed, 1)}); make sure that the configuration names the right stores and that none was "
            "emptied; --allow-mass then lifts the limits",
            documents=counts.documents,
            changes=counts.changes,
            deletes=counts.deletes,
        )
    return None


def forecast_json(kind: str, strategy: SyncStrategy, counts: PlanCounts, forecast: Forecast) -> dict[str, object]:
    """The JSON summary of a plan or a dry run."""
    return {
        "type": kind,
        "strategy": strategy.value,
        "counts": attrs.asdict(counts),
        "actions": {action.value: forecast.counter.by_action[action] for action in PlanAction},
    }


async def run_plan(
    configuration: Configuration, output: Output, *, strategy: SyncStrategy, out: Path, limit: int
) -> ExitStatus:
    """Write a plan for everything that diverges."""
    forecast = Forecast(most_shown=limit)
    config = configuration.engine
    counts: PlanCounts | None = None
    with closing(PlanWriter.open(out)) as writer:
        async with open_interruption() as interruption:
            with interruption.scope:
                async with open_stores(configuration) as stores:
                    scale = await estimate(stores, config.store_call_timeout)
                    async with check(stores, config) as checking:
                        async with show_progress(output, "planning", lambda: checking.statistics().documents, scale):
                            async for divergence in checking:
                                plan = plan_now(divergence.doc_id, divergence.views, strategy, stores, config)
                                live = live_stores(divergence.views)
                                writer.add(plan, live)
                                forecast.add(plan, live)
                                # Planning is synchronous; a signal is to be heard even when the check is far ahead.
                                await trio.lowlevel.checkpoint()
                        documents = checking.statistics().documents
                counts = writer.finish(configuration, strategy, documents).counts
    if counts is None:
        output.say("interrupted; no plan was written")
        return ExitStatus.INTERRUPTED
    if output.json:
        output.record({**forecast_json("plan", strategy, counts, forecast), "file": str(out)})
    else:
        forecast.show(output)
        output.show(f"{counts.planned} of {counts.documents} documents diverge; the plan is in {out}")
    refusal = mass_change(change_counts(counts), config)
    if refusal is not None:
        output.say(f"repair will refuse this plan, because it {refusal}")
    return ExitStatus.ATTENTION if counts.planned else ExitStatus.OK
