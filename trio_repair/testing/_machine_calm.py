"""The end of a `RepairMachine`: no more faults, and then every document that can be decided must converge (I11)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Final

import trio

from trio_repair import (
    AutoRepairConfig,
    Observation,
    Presence,
    RepairExecutionEngine,
    RepairJob,
    RepairOutcome,
    RepairResult,
    SyncStrategy,
    check,
)

from ._machine_world import World
from .simulation._oracle import CRITICAL, Judgement

MOST_ROUNDS: Final = 4
"""So many repairs of each document must do; one more must find nothing to write."""
_PATIENCE: Final = 10_000.0
_LONGEST_RESET: Final = 31.0
"""Seconds after which an open circuit breaker has let a probe through."""

_Views = dict[str, Observation]


async def converge(
    world: World,
    engine: RepairExecutionEngine,
    config: AutoRepairConfig,
    doc_ids: Sequence[str],
    *,
    quiet: float,
    now: Callable[[], dt.datetime],
) -> None:
    """Hold the engine to convergence.

    Raises:
        AssertionError: it does not come to rest, a document does not converge, one that nobody can decide was changed
            or is not reported, or a run over converged stores wrote.
    """
    world.heal()
    engine.resume()
    with trio.move_on_after(_PATIENCE) as patience:
        await engine.drain()
    assert not patience.cancelled_caught, "I14: over healthy stores the engine does not come to rest"
    await world.wait_for_late_landings()
    await trio.sleep(quiet)
    if any(one.breaker != "closed" for one in engine.statistics().stores.values()):
        await trio.sleep(_LONGEST_RESET)
    before = await world.snapshot(doc_ids)
    verdicts = {doc_id: world.judge(views, now().timestamp()) for doc_id, views in before.items()}
    for number in range(MOST_ROUNDS):
        begin = await world.snapshot(doc_ids)
        await _repair(engine, doc_ids)
        if number and begin == await world.snapshot(doc_ids):
            break
    calm = await world.snapshot(doc_ids)
    results = await _repair(engine, doc_ids)
    after = await world.snapshot(doc_ids)
    async with check(world.stores, config) as checking:
        reported = {divergence.doc_id async for divergence in checking}
    for doc_id, verdict in verdicts.items():
        assert calm[doc_id] == after[doc_id], f"I11: a run over converged stores wrote {doc_id!r}"
        _judge(world, doc_id, verdict, results[doc_id], before[doc_id], after[doc_id], reported=doc_id in reported)


async def _repair(engine: RepairExecutionEngine, doc_ids: Sequence[str]) -> dict[str, RepairResult]:
    jobs = [RepairJob(doc_id=doc_id, strategy=SyncStrategy.MOST_RECENT, max_retries=5) for doc_id in doc_ids]
    async with engine.run(jobs) as results:
        return {result.doc_id: result async for result in results}


def _judge(
    world: World,
    doc_id: str,
    verdict: Judgement,
    result: RepairResult,
    before: _Views,
    after: _Views,
    *,
    reported: bool,
) -> None:
    ended = f"its repair ends {result.outcome.value}: {result.error}"
    if verdict.action == "nowhere":
        nothing_to_do = (RepairOutcome.FAILED, RepairOutcome.ALREADY_CONSISTENT)
        assert result.outcome in nothing_to_do, f"I11: {doc_id!r} is in no store, and {ended}"
        return
    if verdict.action == "manual":
        assert result.outcome is RepairOutcome.NEEDS_MANUAL, f"I6: nobody can decide {doc_id!r}, and {ended}"
        assert before == after, f"I6: nobody can decide {doc_id!r}, and it was changed"
        differs = before["text"].version != before["vector"].version
        assert reported or not differs, f"I11: nobody can decide {doc_id!r}, and no check reports it"
        return
    assert result.outcome is RepairOutcome.ALREADY_CONSISTENT, f"I11: {doc_id!r} does not converge: {ended}"
    for name in CRITICAL:
        held = after[name]
        assert world.holds(name, held, verdict.version), (
            f"I11: the {name} store does not converge: {doc_id!r} is to be {verdict.version}, it holds {held.version}"
        )
    assert not reported, f"I11: a check still reports {doc_id!r}, which has converged"
    entry = after.get("cache")
    if entry is not None and entry.presence is not Presence.ABSENT:
        assert world.holds("cache", entry, verdict.version), f"I11: the cache does not converge: {doc_id!r}"
