"""A repair that is cut off before it wrote anything is settled in the step that cancels it; its task ends later."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from engine_world import World, config, job, states

from trio_repair import EngineEvent, EventKind, RepairExecutionEngine, RepairHandle, StepState, open_repair_engine
from trio_repair import RepairOutcome as Outcome
from trio_repair._supervisor import Supervisor

HANGS = {"text": {"observe": 1000.0}, "vector": {"observe": 1000.0}, "cache": {"observe": 1000.0}}
WRITES_FOR_LONG = {"vector": {"write": 1000.0}}


@contextlib.contextmanager
def told_by_its_task(monkeypatch: pytest.MonkeyPatch, told: bool):
    """The planted bug: nothing is told before the task of a repair has run again."""
    if told:
        monkeypatch.setattr(Supervisor, "_cut_off", lambda _self, _entry: False)
    yield


async def _running(engine: RepairExecutionEngine, *jobs: Any) -> list[RepairHandle]:
    handles = [engine.submit_nowait(one) for one in jobs]
    await trio.testing.wait_all_tasks_blocked()
    return handles


@pytest.mark.parametrize("late", [False, True], ids=["engine", "control"])
async def test_the_result_of_a_withdrawn_job_is_there_at_once(autojump_clock, monkeypatch, late: bool):
    """Before anything else runs: nothing was written, and there is nothing to wait for."""
    with told_by_its_task(monkeypatch, late):
        async with open_repair_engine(World(HANGS).stores, config()) as engine:
            (handle,) = await _running(engine, job())
            assert handle.cancel()
            assert late == (handle.result is None)
            assert not handle.cancel() or late
            result = await handle.wait()
    assert Outcome.CANCELLED is result.outcome
    assert dict.fromkeys(("text", "vector", "cache"), StepState.UNTOUCHED) == states(result)


@pytest.mark.parametrize("late", [False, True], ids=["engine", "control"])
async def test_at_one_deadline_all_results_are_there_before_the_tasks_end(autojump_clock, monkeypatch, late: bool):
    """Who waits for one of a flock goes on before the tasks of the other ones have ended."""
    ended: list[str] = []

    async def caller(engine: RepairExecutionEngine, doc_id: str) -> None:
        result = await engine.execute_repair_job(job(doc_id, timeout=1.0))
        assert Outcome.TIMED_OUT is result.outcome
        ended.append(f"told at {engine.statistics().running}")

    with told_by_its_task(monkeypatch, late):
        async with open_repair_engine(World(HANGS).stores, config(max_concurrent_jobs=50)) as engine:
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(caller, engine, f"d{number}")
    still = {int(said.split()[-1]) for said in ended}
    # The first of them runs beside those who wait, and wakes the others.
    assert still == ({0} if late else still & {50, 49})
    assert 50 == len(ended)


async def test_its_slot_and_its_document_are_taken_until_its_task_has_ended(autojump_clock):
    """One job more of the document, and one of another, wait for that; nothing starts in the step that cancels."""
    started: list[str] = []

    class Watch:
        def on_event(self, event: EngineEvent) -> None:
            if event.kind is EventKind.STARTED:
                started.append(event.job.id)

    async with open_repair_engine(
        World(HANGS).stores, config(max_concurrent_jobs=1, drain_timeout=0.0), instruments=[Watch()]
    ) as engine:
        first, _second, _other = await _running(engine, job(id="1"), job(id="2"), job("e", id="3"))
        assert first.cancel()
        said = engine.statistics()
        assert (["1"], 1, 2, 0) == (started, said.running, said.queued, said.active)
        assert said.accepted == sum(said.outcomes.values()) + said.queued + said.active
        await trio.testing.wait_all_tasks_blocked()
        assert (["1", "3"], 1) == (started, engine.statistics().running)


async def test_two_repairs_of_one_document_are_never_tasks_at_once(autojump_clock, monkeypatch):
    """With slots to spare, too."""
    at_once: list[int] = []
    tasks = 0
    supervise = Supervisor._supervise

    async def counted(self, entry) -> None:
        nonlocal tasks
        tasks += 1
        at_once.append(tasks)
        try:
            await supervise(self, entry)
        finally:
            tasks -= 1

    monkeypatch.setattr(Supervisor, "_supervise", counted)
    async with open_repair_engine(World(HANGS).stores, config()) as engine:
        handles = await _running(engine, *[job(id=str(number), timeout=None) for number in range(5)])
        for handle in handles:
            await trio.testing.wait_all_tasks_blocked()
            assert handle.cancel()
            assert handle.result is not None
    # Joined while they wait, or one after the other.
    assert {1} == set(at_once)


async def test_a_drain_waits_for_the_tasks_too(autojump_clock):
    """What was settled early still holds its slot; drained is drained."""
    async with open_repair_engine(World(HANGS).stores, config()) as engine:
        (handle,) = await _running(engine, job())

        async def drained() -> None:
            await engine.drain()
            assert (0, 0) == (engine.statistics().running, engine.statistics().active)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drained)
            await trio.testing.wait_all_tasks_blocked()
            assert handle.cancel()
            assert 1 == engine.statistics().running


async def test_a_write_under_way_is_waited_for_by_one_round(autojump_clock):
    """What a store says of a write may come in the very round of the cancellation, and then it counts."""
    world = World(WRITES_FOR_LONG)
    world.drift()
    async with open_repair_engine(world.stores, config(grace=0.0)) as engine:
        (handle,) = await _running(engine, job())
        assert handle.cancel()
        assert handle.result is None
        result = await handle.wait()
    assert (Outcome.CANCELLED, StepState.UNKNOWN) == (result.outcome, result.step("vector").state)


@pytest.mark.parametrize("around", [1.0, 2.0])
async def test_at_the_deadline_of_the_host_it_is_the_hosts(autojump_clock, around: float):
    """Where both fall into one moment, the job is cancelled, in whichever order the scheduler takes them."""
    for _ in range(20):
        with trio.move_on_after(around):
            async with open_repair_engine(World(HANGS).stores, config()) as engine:
                (handle,) = await _running(engine, job(timeout=1.0))
                await trio.sleep_forever()
        assert (Outcome.CANCELLED if around == 1.0 else Outcome.TIMED_OUT) is handle.result.outcome


@pytest.mark.parametrize("withdraws", ["itself", "the other"])
async def test_cleaning_up_tells_overdue_before_the_end(autojump_clock, withdraws: str):
    """Each id once and in its turn, and none for what an instrument has withdrawn meanwhile."""
    told: list[tuple[str, str]] = []
    handles: dict[str, RepairHandle] = {}

    class Watch:
        def on_event(self, event: EngineEvent) -> None:
            if event.kind in (EventKind.OVERDUE, EventKind.SETTLED):
                told.append((event.kind.value, event.job.id))
            if event.kind is EventKind.OVERDUE:
                assert handles[event.job.id].result is None
                handles[event.job.id if withdraws == "itself" else "2"].cancel()

    async with open_repair_engine(World(HANGS).stores, config(), instruments=[Watch()]) as engine:
        jobs = [job("d", id="1", timeout=1.0), job("e", id="2", timeout=1.0)]
        handles |= {handle.job.id: handle for handle in await _running(engine, *jobs)}
        autojump_clock.jump(1.0)
        overdue = engine.cleanup_timed_out_operations()
        assert [] == engine.cleanup_timed_out_operations()
        assert all(handle.result is not None for handle in handles.values())
    if withdraws == "itself":
        assert (["1", "2"], [("overdue", "1"), ("settled", "1"), ("overdue", "2"), ("settled", "2")]) == (overdue, told)
    else:
        assert (["1"], [("overdue", "1"), ("settled", "2"), ("settled", "1")]) == (overdue, told)


@pytest.mark.parametrize("how", ["submit", "cancel another", "raise"])
async def test_an_instrument_may_do_as_ever_in_the_scheduler(autojump_clock, caplog, how: str):
    """A deadline is told where no task is current; an instrument may take jobs in, withdraw others, and fail there."""
    settled: list[str] = []
    act: dict[str, Callable[[], object]] = {}

    class Watch:
        def on_event(self, event: EngineEvent) -> None:
            if event.kind is EventKind.SETTLED:
                settled.append(event.job.id)
                if event.job.id == "1":
                    act[how]()

    async with open_repair_engine(World(HANGS).stores, config(), instruments=[Watch()]) as engine:
        _first, second = await _running(engine, job("d", id="1", timeout=1.0), job("e", id="2", timeout=5.0))
        act |= {
            "submit": lambda: engine.submit_nowait(job("f", id="3", timeout=1.0)),
            "cancel another": second.cancel,
            "raise": trio.lowlevel.current_task,
        }
        await trio.sleep(1.5)
        assert {"submit": ["1"], "cancel another": ["1", "2"], "raise": ["1"]}[how] == settled
        await engine.drain()
    assert {"submit": ["1", "3", "2"], "cancel another": ["1", "2"], "raise": ["1"]}[how] == settled
    assert ("raised and is dropped" in caplog.text) == (how == "raise")


async def test_a_bug_in_settling_comes_out_of_the_engine(autojump_clock, monkeypatch):
    """Not out of the scheduler, where it would end the whole program as an internal error of Trio's."""

    def settle(_self: Supervisor, *_: object) -> None:
        raise KeyError("planted")

    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_repair_engine(World(HANGS).stores, config()) as engine:
            await _running(engine, job(timeout=1.0))
            monkeypatch.setattr(Supervisor, "_settle", settle)
            await trio.sleep(2.0)
    assert caught.group_contains(KeyError, match="planted")
