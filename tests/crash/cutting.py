"""One repair, cut off at one step in one way; then what was told, what is stored, and whether it can be made good."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import attrs
import trio
from trio.testing import MockClock

from trio_repair import AutoRepairConfig, RepairResult, Stores, open_repair_engine
from trio_repair.testing import RecordingInstrument
from trio_repair.testing.simulation._scheduler import seeded_scheduler

from .judging import differences, losses
from .scenarios import MemoryWorld, Scenario, SqliteWorld
from .stepping import Stepper
from .witness import DeleteThenInsert, Witness

JOB_TIMEOUT = 60.0
STORE_CALL_TIMEOUT = 120.0


class Way(enum.Enum):
    """How a repair is cut off."""

    JOB = "engine.cancel"
    JOB_AND_AGAIN = "engine.cancel, and the next repair of the document at once"
    CALLER = "the caller of execute_repair_job is cancelled"
    HOST = "whatever the engine runs in is cancelled"
    HOST_WITHOUT_GRACE = "the same, and store calls get no time to end"
    TIMEOUT = "the repair's own timeout"
    HUNG_CALL = "the time limit of the store call under way"

    def __str__(self) -> str:
        return self.name.lower()


VIRTUAL = (Way.TIMEOUT, Way.HUNG_CALL)
"""Ways that need a clock that can jump."""


@attrs.define
class Cut:
    """What came of it."""

    steps: int = 0
    acted: bool = False
    result: RepairResult | None = None
    """What the first repair told; None if it was cut off before it was accepted."""
    wrong: list[str] = attrs.field(factory=list)


async def cut(
    world: MemoryWorld | SqliteWorld,
    scenario: Scenario,
    way: Way,
    step: int,
    stepper: Stepper,
    *,
    doc_id: str = "d",
    delete_then_insert: bool = False,
    checkpoints: bool = True,
    seen: set[object] | None = None,
) -> Cut:
    """Cut a repair off after `step` steps (0: let it be), and repair again, twice.

    Args:
        seen: states of the stores that it was repaired from already; the same ones need not be tried again.
    """
    done = Cut()
    await world.set_up(scenario, doc_id)
    inner: Mapping[str, Any] = world.stores
    if delete_then_insert:
        inner = {name: DeleteThenInsert(store) for name, store in inner.items()}
    # The next repair comes to its own write while this one's is still under way.
    slow = 20 if checkpoints and way is Way.JOB_AND_AGAIN else 0
    witnesses = {name: Witness(store, checkpoints=int(checkpoints), slow=slow) for name, store in inner.items()}
    stores = Stores(**witnesses)
    before = world.held(doc_id)
    tasks = trio.lowlevel.current_statistics().tasks_living
    grace = 0.0 if way is Way.HOST_WITHOUT_GRACE else 2.0
    config = AutoRepairConfig(grace=grace, store_call_timeout=STORE_CALL_TIMEOUT, backoff_base=0.001, settle=0.0)
    heard = RecordingInstrument()

    seen_last: list[object] = []

    def look_on() -> None:
        """In the middle of it all, nobody may see less than one copy, or more."""
        nonlocal seen_last
        if isinstance(world, MemoryWorld):
            documents = [store.get_nowait(doc_id) for store in world.stores.values()]
            if not seen_last or any(one is not other for one, other in zip(documents, seen_last, strict=True)):
                done.wrong += losses(doc_id, before, world.held(doc_id), deletes=scenario.deletes)
            seen_last = list(documents)

    with trio.CancelScope() as host:
        async with open_repair_engine(stores, config, instruments=[heard]) as engine:
            with trio.CancelScope() as caller:

                def act() -> None:
                    clock = trio.lowlevel.current_clock()
                    match way:
                        case Way.JOB | Way.JOB_AND_AGAIN:
                            engine.cancel("first")
                        case Way.CALLER:
                            caller.cancel()
                        case Way.HOST | Way.HOST_WITHOUT_GRACE:
                            host.cancel()
                        case Way.TIMEOUT:
                            assert isinstance(clock, MockClock)
                            clock.jump(JOB_TIMEOUT)
                        case Way.HUNG_CALL:
                            assert isinstance(clock, MockClock)
                            clock.jump(STORE_CALL_TIMEOUT)

                stepper.arm(step, act, look_on)
                await scenario.ask(engine, doc_id, "first", JOB_TIMEOUT)
            if way is Way.JOB_AND_AGAIN:
                await scenario.ask(engine, doc_id, "second", JOB_TIMEOUT)
    stepper.disarm()
    done.steps, done.acted = stepper.steps, stepper.acted
    if stepper.error is not None:
        raise stepper.error

    # Told and stored.
    settled = [result for result in heard.results if result.job_id == "first"]
    after = world.held(doc_id)
    done.wrong += losses(doc_id, before, after, deletes=scenario.deletes)
    if len(settled) > 1:
        done.wrong.append(f"{len(settled)} results of one job")
    if settled:
        done.result = settled[0]
        if way is not Way.JOB_AND_AGAIN:
            sent = {name for name, witness in witnesses.items() if witness.sent}
            done.wrong += differences(settled[0], before, after, sent)
    elif before != after or any(witness.sent for witness in witnesses.values()):
        done.wrong.append("something was written for a job that was never accepted")

    # Nothing is left.
    now = engine.statistics()
    if now.locked or now.running or now.active or now.queued:
        done.wrong.append(f"left behind: {now}")
    left = trio.lowlevel.current_statistics().tasks_living - tasks
    if left:
        done.wrong.append(f"{left} tasks are left")

    done.wrong += [
        f"two changes of {doc_id} under way at once: {name}" for name in witnesses if witnesses[name].overlaps
    ]

    # It converges, and then there is nothing to do.
    state = tuple(attrs.evolve(held, stamp="") for held in after.values())
    if seen is not None:
        if state in seen:
            return done
        seen.add(state)
    async with open_repair_engine(stores, config) as engine:
        for attempt in ("again", "once more"):
            count = sum(witness.sent.total() for witness in witnesses.values())
            await scenario.ask(engine, doc_id, attempt, JOB_TIMEOUT)
            held = world.held(doc_id)
            if not scenario.is_reached(doc_id, held):
                done.wrong.append(f"{attempt}: not repaired: {held}")
        if count != sum(witness.sent.total() for witness in witnesses.values()):
            done.wrong.append("a repair of what was repaired writes")
    return done


def cut_in_memory(
    scenario: Scenario, way: Way, step: int, seen: set[object], *, delete_then_insert: bool = False
) -> Cut:
    """The same over stores in memory, in virtual time, in an order of the scheduler that is always the same."""
    stepper = Stepper()

    async def main() -> Cut:
        world = MemoryWorld()
        return await cut(world, scenario, way, step, stepper, seen=seen, delete_then_insert=delete_then_insert)

    with seeded_scheduler(0):
        return trio.run(main, clock=MockClock(autojump_threshold=0), instruments=[stepper])


def cut_at_every_step(
    scenario: Scenario, way: Way, *, delete_then_insert: bool = False, at_first_wrong: bool = False
) -> list[Cut]:
    """Once for each step that it takes, left alone. `at_first_wrong`: only until something is wrong."""
    seen: set[object] = set()
    alone = cut_in_memory(scenario, way, 0, seen, delete_then_insert=delete_then_insert)
    cuts: list[Cut] = []
    for step in range(1, 1 + alone.steps):
        cuts.append(cut_in_memory(scenario, way, step, seen, delete_then_insert=delete_then_insert))
        if at_first_wrong and cuts[-1].wrong:
            break
    return cuts
