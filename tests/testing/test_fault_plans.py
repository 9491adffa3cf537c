"""Fault plans: what starts and ends when, and what an engine lives through."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import trio
from engine_world import NAMES, World, config, job
from hypothesis import given, settings
from trio.testing import MockClock

from trio_repair import InvalidValue, StoreUnavailable, SyncStrategy, open_repair_engine
from trio_repair.stores.memory import MemoryStore
from trio_repair.testing import (
    Fault,
    FaultKind,
    FaultPlan,
    FaultyStore,
    RecordingInstrument,
    Trouble,
    applied,
    assert_trace,
    strategies,
)

DOWN = Fault(FaultKind.UNAVAILABLE, "count")


async def works(store: FaultyStore) -> bool:
    try:
        await store.count()
    except StoreUnavailable:
        return False
    return True


async def test_faults_start_and_end_as_planned(autojump_clock: MockClock) -> None:
    """Each fault strikes from its start to its end, in its own store; with the block all are over."""
    stores = {"text": FaultyStore(MemoryStore("text")), "vector": FaultyStore(MemoryStore("vector"))}
    plan = FaultPlan(
        [
            Trouble(store="text", fault=DOWN, start=2.0, end=4.0),
            Trouble(store="vector", fault=DOWN, start=3.0),
        ]
    )
    assert plan.seconds == 4.0
    seen = []
    async with applied(plan, stores):
        await trio.sleep(0.5)
        for _ in range(5):
            seen.append((await works(stores["text"]), await works(stores["vector"])))
            await trio.sleep(1.0)
    assert seen == [(True, True), (True, True), (False, True), (False, False), (True, False)]
    assert await works(stores["vector"])


async def test_a_plan_leaves_other_faults_alone(autojump_clock: MockClock) -> None:
    """Faults that were there before the plan are there after it; an error in the block ends the plan all the same."""
    store = FaultyStore(MemoryStore("text"), [DOWN])
    slow = Fault(FaultKind.LATENCY, delay=9.0)
    with pytest.raises(ExceptionGroup):
        async with applied(FaultPlan([Trouble(store="text", fault=slow)]), {"text": store}):
            await trio.sleep(1)
            raise RuntimeError
    start = trio.current_time()
    assert not await works(store)
    assert trio.current_time() == start


async def test_plans_that_cannot_be_played_are_refused(autojump_clock: MockClock) -> None:
    """A store that is not there, one that cannot crash, and moments that do not exist are errors before anything."""
    stores = {"text": FaultyStore(MemoryStore("text"))}
    crash = Fault(FaultKind.CRASH)
    for trouble in (Trouble(store="vector", fault=DOWN), Trouble(store="text", fault=crash)):
        with pytest.raises(InvalidValue):
            async with applied(FaultPlan([trouble]), stores):
                pass
    for start, end in ((-1.0, None), (2.0, 1.0), (math.inf, None), (0.0, math.nan)):
        with pytest.raises(InvalidValue):
            Trouble(store="text", fault=DOWN, start=start, end=end)


@settings(max_examples=40, deadline=None)
@given(plan=strategies.fault_plans(seconds=20.0), _order=st.random_module())
def test_engines_live_through_any_plan(plan: FaultPlan, _order: Any) -> None:
    """Whatever is planned, the trace holds, and once the plan is over everything that can be repaired is."""

    async def main() -> None:
        world = World()
        world.drift("a", "b", "c")
        instrument = RecordingInstrument()
        async with open_repair_engine(world.stores, config(), instruments=[instrument]) as engine:
            async with applied(plan, world.faulty):
                for _ in range(4):
                    for name in "abc":
                        engine.submit_nowait(job(name, strategy=SyncStrategy.MOST_RECENT, timeout=3.0))
                    await trio.sleep(6.0)
            for store in world.faulty.values():
                await store.wait_for_late_landings()
            await engine.drain()
            await trio.sleep(60.0)
            for name in "abc":
                await engine.execute_repair_job(job(name, strategy=SyncStrategy.MOST_RECENT))
                last = await engine.execute_repair_job(job(name, strategy=SyncStrategy.MOST_RECENT))
                assert last.success, last
                assert world.number("text", name) == world.number("vector", name)
        assert_trace(instrument.events, tolerance=0.0)

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_every_kind_is_planned() -> None:
    """Non-vacuity: plans hold several faults, of each store, some of which end in another order than they began."""
    kinds: set[FaultKind] = set()
    stores: set[str] = set()
    crossed: set[bool] = set()

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(strategies.fault_plans())
    def look(plan: FaultPlan) -> None:
        assert plan.seconds <= 60.0
        kinds.update(trouble.fault.kind for trouble in plan.troubles)
        stores.update(trouble.store for trouble in plan.troubles)
        by_start = sorted(plan.troubles, key=lambda trouble: trouble.start)
        ends = [trouble.end for trouble in by_start if trouble.end is not None]
        assert len(ends) == len(plan.troubles)
        crossed.add(ends != sorted(ends))

    look()
    never = {FaultKind.BLOCKED_LOOP, FaultKind.SHUFFLED_ANSWERS, FaultKind.CRASH}
    assert set(FaultKind) - never == kinds
    assert set(NAMES) == stores
    assert {True, False} == crossed
