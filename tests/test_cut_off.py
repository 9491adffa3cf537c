"""A repair that is cut off before it wrote anything is settled in the step that cancels it; its task ends later."""

from __future__ import annotations

import contextvars
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


def told_by_its_task(monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    """The planted bug: nothing is told before the task of a repair has run again."""
    if told:
        monkeypatch.setattr(Supervisor, "_cut_off", lambda _self, _entry: False)


async def _running(engine: RepairExecutionEngine, *jobs: Any) -> list[RepairHandle]:
    handles = [engine.submit_nowait(one) for one in jobs]
    await trio.testing.wait_all_tasks_blocked()
    return handles


@pytest.mark.parametrize("late", [False, True], ids=["engine", "control"])
async def test_the_result_of_a_withdrawn_job_is_there_at_once(autojump_clock, monkeypatch, late: bool):
    """Before anything else runs: nothing was written, and there is nothing to wait for."""
    told_by_its_task(monkeypatch, late)
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
    still: list[int] = []

    async def caller(engine: RepairExecutionEngine, doc_id: str) -> None:
        result = await engine.execute_repair_job(job(doc_id, timeout=1.0))
        assert Outcome.TIMED_OUT is result.outcome
        still.append(len(engine._supervisor.active))

    told_by_its_task(monkeypatch, late)
    async with open_repair_engine(World(HANGS).stores, config(max_concurrent_jobs=50)) as engine:
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(caller, engine, f"d{number}")
    # The first of them runs beside those who wait, and wakes the others.
    assert set(still) <= ({0} if late else {49, 50})
    assert 50 == len(still)


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
        assert (["1"], 0, 2, 0) == (started, said.running, said.queued, said.active)
        assert 1 == len(engine._supervisor.active)
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
            assert (0, 0) == (len(engine._supervisor.active), engine.statistics().active)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drained)
            await trio.testing.wait_all_tasks_blocked()
            assert handle.cancel()
            assert 1 == len(engine._supervisor.active)


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


async def test_a_host_that_is_cancelled_after_the_deadline_cancels(autojump_clock):
    """The loop was busy until then, and Trio has not come to the job's deadline: as long as it has not, it is no cause."""
    with trio.CancelScope() as host:
        async with open_repair_engine(World(HANGS).stores, config()) as engine:
            handles = await _running(engine, *[job(f"d{number}", timeout=1.0) for number in range(20)])
            autojump_clock.jump(2.0)
            host.cancel()
            assert {None} == {handle.result for handle in handles}
    assert {Outcome.CANCELLED} == {handle.result.outcome for handle in handles}


async def test_a_deadline_that_the_host_sets_later_is_the_hosts(autojump_clock):
    """The engine did not know of it; the job's own deadline has not come."""
    with trio.CancelScope() as host:
        async with open_repair_engine(World(HANGS).stores, config()) as engine:
            (handle,) = await _running(engine, job(timeout=5.0))
            host.deadline = trio.current_time() + 1.0
            await trio.sleep_forever()
    assert Outcome.CANCELLED is handle.result.outcome


async def test_a_deadline_of_the_host_that_was_lifted_is_forgotten(autojump_clock):
    """One for the start of a program, say; the first that ends after it costs a round more, and the next ones do not."""
    with trio.move_on_after(1.0) as host:
        async with open_repair_engine(World(HANGS).stores, config()) as engine:
            handles = await _running(engine, *[job(f"d{number}", timeout=2.0 + number) for number in range(2)])
            host.deadline = float("inf")
            known = [(await handle.wait(), engine._supervisor._host_deadline)[1] for handle in handles]
            await engine.drain()
    assert [Outcome.TIMED_OUT] * 2 == [handle.result.outcome for handle in handles]
    assert [float("inf")] * 2 == known


@pytest.mark.parametrize("phase", ["observe", "read", "prepare"])
async def test_whatever_comes_before_a_write_is_cut_off_at_once(autojump_clock, phase: str):
    """Looking, reading and preparing have no effect that a store could still tell of."""
    world = World({name: {phase: 1000.0} for name in ("text", "vector", "cache")})
    world.drift()
    async with open_repair_engine(world.stores, config(grace=0.0)) as engine:
        (handle,) = await _running(engine, job())
        assert phase == engine.active_operations[handle.job.id].phase.value
        assert handle.cancel()
        assert Outcome.CANCELLED is handle.result.outcome


@pytest.mark.parametrize("withdraws", ["itself", "the other", "one that shares its repair"])
async def test_cleaning_up_tells_overdue_before_the_end(autojump_clock, withdraws: str):
    """Each id once and in its turn, and none for what an instrument has withdrawn meanwhile."""
    told: list[tuple[str, str]] = []
    handles: dict[str, RepairHandle] = {}
    other = {"itself": None, "the other": "2", "one that shares its repair": "3"}[withdraws]

    class Watch:
        def on_event(self, event: EngineEvent) -> None:
            if event.kind in (EventKind.OVERDUE, EventKind.SETTLED):
                told.append((event.kind.value, event.job.id))
            if event.kind is EventKind.OVERDUE and event.job.id != "3":
                handles[event.job.id if other is None else other].cancel()

    async with open_repair_engine(World(HANGS).stores, config(), instruments=[Watch()]) as engine:
        first = job("d", id="1", timeout=1.0), job("d", id="3", timeout=1.0), job("e", id="2", timeout=1.0)
        engine.pause()
        handles |= {handle.job.id: handle for handle in [engine.submit_nowait(one) for one in first]}
        engine.resume()
        await trio.testing.wait_all_tasks_blocked()
        autojump_clock.jump(1.0)
        overdue = engine.cleanup_timed_out_operations()
        assert [] == engine.cleanup_timed_out_operations()
        await engine.drain()
    assert {"itself": ["1", "3", "2"], "the other": ["1", "3"], "one that shares its repair": ["1", "2"]}[
        withdraws
    ] == overdue
    settled = [job_id for kind, job_id in told if kind == "settled"]
    assert ["1", "2", "3"] == sorted(settled)
    for job_id in overdue:
        assert told.index(("overdue", job_id)) < told.index(("settled", job_id))
    assert sorted(overdue) == sorted(job_id for kind, job_id in told if kind == "overdue")


async def test_an_instrument_that_withdraws_all_others_does_not_nest(autojump_clock):
    """Fail fast, with any number of them: no more than one is settled inside the other."""
    handles: list[RepairHandle] = []
    depth: list[int] = []
    inside = 0

    class FailFast:
        def on_event(self, event: EngineEvent) -> None:
            nonlocal inside
            if event.kind is EventKind.SETTLED:
                inside += 1
                depth.append(inside)
                for handle in handles:
                    handle.cancel()
                inside -= 1

    async with open_repair_engine(
        World(HANGS).stores, config(max_concurrent_jobs=300), instruments=[FailFast()]
    ) as engine:
        handles += await _running(engine, *[job(f"d{number}") for number in range(300)])
        assert handles[0].cancel()
    assert (300, 1) == (len(depth), max(depth))
    assert {Outcome.CANCELLED} == {handle.result.outcome for handle in handles}


async def test_what_is_started_at_a_deadline_has_the_context_of_the_engine(autojump_clock):
    """Not that of the scheduler, in which the host's variables are not set."""
    seen: list[str | None] = []
    variable: contextvars.ContextVar[str | None] = contextvars.ContextVar("variable", default=None)
    variable.set("the host's")
    world = World(HANGS)
    observe = world.faulty["text"].observe

    async def observe_and_see(doc_ids):
        seen.append(variable.get())
        return await observe(doc_ids)

    world.faulty["text"].observe = observe_and_see

    class Again:
        def on_event(self, event: EngineEvent) -> None:
            if event.kind is EventKind.SETTLED and event.job.id == "1":
                engine.submit_nowait(job("e", id="2", timeout=1.0))

    async with open_repair_engine(world.stores, config(), instruments=[Again()]) as engine:
        await _running(engine, job(id="1", timeout=1.0))
        await trio.sleep(1.5)
        await engine.drain()
    assert ["the host's", "the host's"] == seen


@pytest.mark.parametrize("kind", [EventKind.ENDED, EventKind.SETTLED])
async def test_what_ends_more_than_an_instrument_comes_out_of_the_engine(autojump_clock, kind: EventKind):
    """Where a deadline is told, in the scheduler, as everywhere; and who waits for the job is cancelled."""

    class Exits:
        def on_event(self, event: EngineEvent) -> None:
            if event.kind is kind:
                raise SystemExit(3)

    with pytest.raises(BaseExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            async with open_repair_engine(World(HANGS).stores, config(), instruments=[Exits()]) as engine:
                nursery.start_soon(engine.execute_repair_job, job(timeout=1.0))
                await trio.sleep(2.0)
    assert caught.group_contains(SystemExit)
    assert not caught.group_contains(Exception)


async def test_an_instrument_may_resume_an_engine_that_closes(autojump_clock):
    """What it lets start is no longer there to be settled as never started."""
    outcomes: dict[str, str] = {}

    class Resumes:
        def on_event(self, event: EngineEvent) -> None:
            if event.kind is EventKind.SETTLED:
                outcomes[event.job.id] = event.result.outcome.value
                engine.resume()

    async with open_repair_engine(World(HANGS).stores, config(drain_timeout=1.0), instruments=[Resumes()]) as engine:
        engine.pause()
        for number in range(4):
            engine.submit_nowait(job(f"d{number}", id=str(number)))
    assert {str(number): "cancelled" for number in range(4)} == outcomes


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
