"""`trio-repair show` and `resolve`: look at one document, and commit a person's choice about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, TypeAlias

import attrs

from .. import (
    AutoRepairConfig,
    CacheStep,
    Divergence,
    Observation,
    PlanAction,
    Policy,
    Presence,
    RepairPlan,
    RepairResult,
    StoreError,
    Stores,
    SyncStrategy,
    open_repair_engine,
    plan_resolution,
)
from .._planning import MANUAL_REASON
from ._configuration import Configuration
from ._escape import printable
from ._lock import hold_lock
from ._look import Views, judge, look, seen, unreadable
from ._opening import open_stores
from ._output import Output, table
from ._plan import plan_now
from ._signals import Interruption, open_interruption
from ._status import ExitStatus, UsageError, report
from ._values import findings_json, observation_json, plan_json, result_json
from ._words import DIGEST_SHOWN, finding_words, number_words, plan_words

Take: TypeAlias = Literal["text", "vector", "delete"]


def _row(name: str, view: Observation | StoreError) -> tuple[str, ...]:
    if isinstance(view, StoreError):
        return (name, "?", "", "", f"{view.problem}")
    notes = [] if view.intact else ["damaged"]
    if view.embedding is not None:
        notes.append(f"{view.embedding.model}, {view.embedding.dimension} dimensions, {view.embedding.chunking}")
    if view.version is not None and view.version.updated_at is not None:
        notes.append(f"updated {view.version.updated_at.isoformat(timespec='seconds')}")
    digest = "" if view.version is None else view.version.digest[:DIGEST_SHOWN]
    return (name, view.presence.value, number_words(view.version), digest, "; ".join(notes))


def _show_views(output: Output, views: Views) -> None:
    rows = [_row(name, view) for name, view in views.items()]
    output.show(table(("store", "holds", "version", "digest", "notes"), rows))
    for name, view in views.items():
        if isinstance(view, Observation) and view.presence is not Presence.ABSENT:
            output.show(f"{name} token: {view.token}")


def _standing(divergence: Divergence | None, views: Mapping[str, Observation]) -> str:
    if all(view.presence is Presence.ABSENT for view in views.values()):
        return "in no store"
    return "consistent" if divergence is None else finding_words(divergence)


_WAY_OUT: Final = (
    "no other store can give it: write the document anew, or delete it with trio-repair resolve --take delete"
)


async def _readable(
    plans: Mapping[str, RepairPlan],
    doc_id: str,
    views: Mapping[str, Observation],
    stores: Stores,
    config: AutoRepairConfig,
) -> Mapping[str, RepairPlan]:
    """What becomes of plans once their sources are read: where no text can be had, a person must see to it."""
    names = {name for plan in plans.values() if plan.writes for name in plan.sources}
    versions = {name: view.version for name, view in views.items() if name in names and view.version is not None}
    without = await unreadable(stores, config.content, doc_id, versions, seconds=config.store_call_timeout)

    def read(plan: RepairPlan) -> RepairPlan:
        sources = tuple(name for name in plan.sources if name not in without)
        if sources or not plan.sources or not plan.writes:
            return attrs.evolve(plan, sources=sources)
        why = "; ".join(f"the {name} store cannot give the text ({without[name]})" for name in plan.sources)
        return attrs.evolve(
            plan,
            action=PlanAction.MANUAL,
            version=None,
            sources=(),
            writes=(),
            cache_step=CacheStep.NONE,
            reason=f"{MANUAL_REASON}: {why}; {_WAY_OUT}",
        )

    return {name: read(plan) for name, plan in plans.items()}


async def run_show(configuration: Configuration, output: Output, *, doc_id: str) -> ExitStatus:
    """Show what each store holds of a document, what is wrong, and what each strategy would do."""
    found: Views | None = None
    divergence: Divergence | None = None
    async with open_interruption() as interruption:
        with interruption.scope:
            async with open_stores(configuration) as stores:
                (found,) = await look(stores, [doc_id], seconds=configuration.engine.store_call_timeout)
                lost = next((view for view in found.values() if isinstance(view, StoreError)), None)
                if not output.json:
                    output.show(f"document {printable(doc_id)}")
                    _show_views(output, found)
                if lost is not None and output.json:
                    output.record(_show_json(doc_id, found, None, {}))
                if lost is not None:
                    return report(lost)
                views = seen(found)
                divergence = judge(doc_id, views, stores)
                plans = await _readable(
                    {
                        strategy.value: plan_now(doc_id, views, strategy, stores, configuration.engine)
                        for strategy in SyncStrategy
                    },
                    doc_id,
                    views,
                    stores,
                    configuration.engine,
                )
                if output.json:
                    plans_json = {strategy: plan_json(plan) for strategy, plan in plans.items()}
                    output.record(_show_json(doc_id, found, divergence, plans_json))
                else:
                    output.show(f"finding: {_standing(divergence, views)}")
                    rows = [(strategy, plan_words(plan)) for strategy, plan in plans.items()]
                    output.show(table(("strategy", "would"), rows))
    if interruption.signals:
        return ExitStatus.INTERRUPTED
    nowhere = found is not None and all(
        isinstance(view, Observation) and view.presence is Presence.ABSENT for view in found.values()
    )
    return ExitStatus.ATTENTION if divergence is not None or nowhere else ExitStatus.OK


def _show_json(
    doc_id: str, views: Views, divergence: Divergence | None, strategies: Mapping[str, object]
) -> dict[str, object]:
    return {
        "type": "document",
        "doc_id": doc_id,
        "stores": {name: observation_json(view) for name, view in views.items()},
        "findings": findings_json(divergence),
        "strategies": dict(strategies),
    }


def read_expected(path: Path, doc_id: str) -> Mapping[str, str]:
    """The tokens that `show --json` wrote, which a person has looked at.

    Raises:
        UsageError: the file cannot be read, is something else, or is about another document.
    """
    try:
        record = json.loads(path.read_bytes())
        tokens = {name: view["token"] for name, view in record["stores"].items()}
        about = record["doc_id"]
    except OSError as error:
        raise UsageError(f"--expected-from: cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise UsageError(f"--expected-from: {path} is not what `trio-repair show DOC_ID --json` writes") from None
    if about != doc_id:
        raise UsageError(f"--expected-from: {path} is about document {printable(str(about))}")
    if not all(isinstance(token, str) for token in tokens.values()) or not {"text", "vector"} <= tokens.keys():
        raise UsageError(f"--expected-from: {path} is not what `trio-repair show DOC_ID --json` writes")
    return tokens


async def _resolve(
    stores: Stores,
    config: AutoRepairConfig,
    doc_id: str,
    take: Take,
    expected: Mapping[str, str] | None,
    output: Output,
) -> RepairResult:
    (found,) = await look(stores, [doc_id], seconds=config.store_call_timeout)
    views = seen(found)
    decided = {str(take): plan_resolution(doc_id, views, take, Policy.of(stores, config))}
    plan = (await _readable(decided, doc_id, views, stores, config))[take]
    if not output.json:
        output.show(f"document {printable(doc_id)}, before:")
        _show_views(output, found)
        output.show(f"taking {take}: {plan_words(plan)}")
    tokens = {name: view.token for name, view in views.items()} if expected is None else expected
    async with open_repair_engine(stores, config) as engine:
        result = await engine.resolve(doc_id, take, expected=tokens)
    (after,) = await look(stores, [doc_id], seconds=config.store_call_timeout)
    if output.json:
        before_json = {name: observation_json(view) for name, view in found.items()}
        after_json = {name: observation_json(view) for name, view in after.items()}
        output.record({**result_json(result), "type": "resolution", "before": before_json, "after": after_json})
    else:
        output.show("after:")
        _show_views(output, after)
        output.show(f"{result.outcome.value}" + ("" if result.error is None else f": {result.error}"))
        for warning in result.warnings:
            output.show(f"warning: {warning}")
    return result


async def run_resolve(
    configuration: Configuration,
    config: AutoRepairConfig,
    output: Output,
    *,
    doc_id: str,
    take: Take,
    expected: Mapping[str, str] | None,
) -> ExitStatus:
    """Commit a person's choice, if the stores still hold what the person saw.

    Args:
        configuration: names the stores.
        config: the settings, with what the command line overrides.
        output: where to.
        doc_id: the document.
        take: the store whose copy is right, or "delete".
        expected: tokens by store; None: those that are observed, and shown, first.
    """
    result: RepairResult | None = None
    interruption: Interruption
    with hold_lock(configuration.path):
        async with open_interruption() as interruption:
            with interruption.scope:
                async with open_stores(configuration) as stores:
                    result = await _resolve(stores, config, doc_id, take, expected, output)
    if result is None:
        output.say("interrupted; `trio-repair show` tells what the stores hold now")
        return ExitStatus.INTERRUPTED
    return ExitStatus.OK if result.success else ExitStatus.ATTENTION
