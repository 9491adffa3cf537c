"""What must come true once nothing goes wrong any more: the stores agree, and people hear of what is left to them."""

from __future__ import annotations

from typing import Final

import trio

from trio_repair import (
    Presence,
    RepairJob,
    RepairOutcome,
    RepairResult,
    SyncStrategy,
    check,
)

from ._operator import Host
from ._oracle import Judgement
from ._world import STORES, World

MOST_ROUNDS: Final = 4
"""So many rounds of check and repair must do; one more over all documents must find nothing to write."""


async def calm_down(world: World, host: Host, label: str) -> None:
    """Heal all stores, keep the application quiet, and hold the engine to convergence (I11, I14)."""
    witness = world.witness
    witness.note(None, f"calm {label}")
    for store in world.stores.values():
        store.heal()
    world.set_clock()
    engine = await host.start() if host.engine is None else host.engine
    witness.paused = False
    engine.resume()
    with trio.move_on_after(100_000) as patience:
        await engine.drain()
    if patience.cancelled_caught:
        witness.fail("I14", None, "an engine over healthy stores does not come to rest")
        return
    # Late landings and half-done writes of the application come to their end, and numbers from the future are past.
    await trio.sleep(60 + world.seconds_until_past())
    before = world.snapshot()
    verdicts = {doc_id: _judge(world, doc_id) for doc_id in world.doc_ids}
    for doc_id, verdict in verdicts.items():
        witness.note(doc_id, f"is to become: {verdict.action} {verdict.version}")
    for number in range(1, MOST_ROUNDS + 1):
        begin = world.snapshot()
        # To fill a cache is no check's business, and in the first round its breaker may be half open: then it is
        # passed over until a probe has come back.
        doc_ids = world.doc_ids if number <= 2 else await _check(world, host)
        await _repair(world, host, f"{label}-{number}", doc_ids)
        if witness.violation is not None:
            return
        if number > 1 and begin == world.snapshot():
            break
    witness.restless = False
    results = await _repair(world, host, f"{label}-last", world.doc_ids)
    found = await _check(world, host)
    witness.restless = True
    for doc_id, verdict in verdicts.items():
        _judge_end(world, doc_id, verdict, results[doc_id], reported=doc_id in found)
        if verdict.action == "manual":
            for name in STORES:
                if before[name].get(doc_id) != world.stores[name].snapshot().get(doc_id):
                    witness.fail("I11", doc_id, f"nobody can decide this document, and {name} was changed")


def _judge(world: World, doc_id: str) -> Judgement:
    text, vector = (world.stores[name].observe_nowait(doc_id) for name in ("text", "vector"))
    now = world.wall().timestamp()
    return world.witness.rules.judge(text, vector, SyncStrategy.MOST_RECENT, now=now)


async def _check(world: World, host: Host) -> list[str]:
    async with check(world.check_stores, host.config) as checking:
        return [divergence.doc_id async for divergence in checking]


async def _repair(world: World, host: Host, name: str, doc_ids: list[str]) -> dict[str, RepairResult]:
    assert host.engine is not None
    jobs = [
        RepairJob(
            id=f"calm-{name}-{index}",
            doc_id=doc_id,
            strategy=SyncStrategy.MOST_RECENT,
            created_at=world.wall(),
            timeout=600.0,
        )
        for index, doc_id in enumerate(doc_ids)
    ]
    async with host.engine.run(jobs) as results:
        return {result.doc_id: result async for result in results}


def _judge_end(world: World, doc_id: str, verdict: Judgement, result: RepairResult, *, reported: bool) -> None:
    witness, rules = world.witness, world.witness.rules
    views = {name: world.stores[name].observe_nowait(doc_id) for name in STORES}
    if verdict.action == "nowhere":
        # The cache may have held it alone; then its entry is gone now, and there was nothing else to do.
        if result.outcome not in (RepairOutcome.FAILED, RepairOutcome.ALREADY_CONSISTENT):
            witness.fail("I11", doc_id, f"is nowhere, and its repair ends {result.outcome.value}")
        return
    if verdict.action == "manual":
        if result.outcome is not RepairOutcome.NEEDS_MANUAL:
            witness.fail("I6", doc_id, f"nobody can decide this, and its repair ends {result.outcome.value}")
        elif not reported and _judge_differs(world, doc_id):
            witness.fail("I11", doc_id, "nobody can decide this, and no check reports it")
        return
    if result.outcome is not RepairOutcome.ALREADY_CONSISTENT:
        witness.fail("I11", doc_id, f"still ends {result.outcome.value} after {MOST_ROUNDS} rounds: {result.error}")
    for name in ("text", "vector"):
        if not rules.right(name, views[name], verdict.version):
            witness.fail("I11", doc_id, f"the {name} store did not converge: it holds {views[name].version}")
    if reported:
        witness.fail("I11", doc_id, "a check still reports what was repaired")
    entry = views["cache"]
    if entry.presence is not Presence.ABSENT and not rules.right("cache", entry, verdict.version):
        witness.fail("I11", doc_id, f"the cache did not converge: it holds {entry.version}")


def _judge_differs(world: World, doc_id: str) -> bool:
    """The critical stores do not agree on the document."""
    text, vector = (world.stores[name].observe_nowait(doc_id) for name in ("text", "vector"))
    return text.version != vector.version
